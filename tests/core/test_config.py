"""The settings: defaults of the paper, values refused by name, modes as sets of parts."""

import dataclasses
from typing import Any

import pytest

from specx.core.config import (
    MODES,
    Parts,
    RetrievalConfig,
    SamplingConfig,
    TreeConfig,
    parts_for,
)


def test_the_defaults_of_the_tree_are_those_of_the_paper() -> None:
    tree = TreeConfig()
    assert (tree.nodes, tree.depth, tree.threshold) == (50, 10, 0.7)
    assert RetrievalConfig().chunk_tokens == 32
    assert RetrievalConfig().top_chunks == 32


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (TreeConfig, "nodes", 0),
        (TreeConfig, "nodes", 513),
        (TreeConfig, "depth", 0),
        (TreeConfig, "depth", 65),
        (TreeConfig, "threshold", -0.1),
        (TreeConfig, "threshold", 1.1),
        (RetrievalConfig, "chunk_tokens", 0),
        (RetrievalConfig, "top_chunks", -1),
        (RetrievalConfig, "sink_chunks", -1),
        (RetrievalConfig, "recent_chunks", 0),
        (RetrievalConfig, "every_steps", 0),
        (SamplingConfig, "temperature", -0.5),
        (SamplingConfig, "temperature", float("nan")),
        (SamplingConfig, "temperature", float("inf")),
        (SamplingConfig, "top_k", -1),
        (SamplingConfig, "top_p", 0.0),
        (SamplingConfig, "top_p", 1.5),
        (SamplingConfig, "min_p", 1.0),
        (SamplingConfig, "repetition_penalty", 0.0),
        (SamplingConfig, "repetition_penalty", float("inf")),
        (SamplingConfig, "repetition_penalty", float("nan")),
        (SamplingConfig, "seed", -1),
        (SamplingConfig, "seed", 2**63),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(kind: Any, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        kind(**{field: value})


def test_the_budget_counts_every_kind_of_chunk() -> None:
    config = RetrievalConfig(chunk_tokens=8, top_chunks=3, sink_chunks=1, recent_chunks=2)
    assert config.budget_tokens == 48


def test_modes_differ_in_their_parts_alone() -> None:
    assert MODES["plain"].drafter == "none"
    assert (MODES["spec"].draft_cache, MODES["spec"].draft_prefill) == ("full", "full")
    assert MODES["specx"] == Parts() == MODES["auto"]
    assert MODES["spec"].tree_attention == MODES["specx"].tree_attention == "hybrid"


def test_a_part_of_a_mode_is_switched_alone() -> None:
    parts = parts_for("specx", {"draft_cache": "window"})
    assert parts == dataclasses.replace(MODES["specx"], draft_cache="window")
    assert parts_for("spec") == MODES["spec"]


def test_unknown_modes_and_parts_are_errors() -> None:
    with pytest.raises(KeyError):
        parts_for("fast")
    with pytest.raises(TypeError):
        parts_for("specx", {"draft_cash": "full"})


def test_a_shared_mode_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODES["specx"].drafter = "none"  # type: ignore[misc]
    with pytest.raises(TypeError):
        MODES["specx"] = Parts()  # type: ignore[index]
