"""Names of modes: what they stand for, groups, and mistakes."""

import pytest

from specx.bench.modes import BASES, GROUPS, PARTS, WITNESSES, parse_mode, parse_modes
from specx.core.config import parts_for
from specx.errors import UsageError


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("change", PARTS)
def test_every_part_is_one_of_the_core(base: str, change: str) -> None:
    variant = parse_mode(f"{base}+{change}")
    parts = parts_for(variant.mode, dict(variant.parts))
    name, value = PARTS[change]
    assert getattr(parts, name) == value


def test_the_last_of_two_changes_counts() -> None:
    variant = parse_mode("standard+hybrid+sdpa+no-graphs")
    assert variant.mode == "spec"
    assert variant.parts == {
        "prefill_attention": "eager",
        "tree_attention": "sdpa",
        "launch": "eager",
    }


@pytest.mark.parametrize("group", GROUPS)
def test_groups_are_made_of_modes_without_repeats(group: str) -> None:
    variants = parse_modes([group, group])
    assert tuple(variant.name for variant in variants) == GROUPS[group]


def test_the_gpus_group_takes_one_thing_away_at_a_time() -> None:
    variants = {variant.name: variant for variant in parse_modes(["gpu"])}
    assert parse_mode("specx+no-copies").parts == {"copies": "none"}
    assert variants["plain+no-graphs"].parts == {"launch": "eager"}
    assert variants.pop("hf").name in WITNESSES
    assert {variant.mode for variant in variants.values()} == {"plain", "specx"}
    assert max(len(variant.parts) for variant in variants.values()) == 1


@pytest.mark.parametrize(
    ("name", "near"),
    [("plian", "plain"), ("specx+no-graph", "no-graphs")],
)
def test_an_unknown_name_has_near_ones(name: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mode(name)
    assert near in caught.value.hints[0]
