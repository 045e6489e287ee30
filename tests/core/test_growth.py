"""How far a tree grows: costs against brute force, both rules, and the switch back to plain."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.core.config import TreeConfig
from specx.core.growth import FixedGrowth, Governor, Growth, MeasuredGrowth, StepCosts
from specx.core.stats import StepStats
from specx.core.tree import TreeBuilder
from tests.core.tiny import EXAMPLES

_SECONDS = st.floats(1e-4, 1.0)
_MEASURED = st.dictionaries(st.integers(2, 64), _SECONDS, max_size=5)


def _step(accepted: int, seconds: float) -> StepStats:
    return StepStats(nodes=9, depth=4, accepted=accepted, new_tokens=accepted + 1, verify_s=seconds)


def _levels(growth: Growth, chance: float, most: int = 20) -> int:
    """Levels that a chain of guesses, each as probable, grows to."""
    builder, node = TreeBuilder(0, 64), 0
    for depth in range(1, most):
        node = builder.add(node, depth, chance)
        if not growth.another_level(builder, builder.reaches([node])[0]):
            return depth
    return most


@settings(EXAMPLES, max_examples=100)
@given(_MEASURED, _SECONDS)
def test_a_wider_verify_is_never_cheaper(measured: dict[int, float], one: float) -> None:
    costs = StepCosts({1: one} | measured)
    seconds = [costs.verify_s(rows) for rows in range(1, 200)]
    assert seconds[0] == pytest.approx(one)
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(seconds))


def test_verify_costs_are_linear_between_and_beyond_the_measured_counts() -> None:
    costs = StepCosts({1: 1.0, 4: 1.3, 8: 2.1})
    got = [costs.verify_s(rows) for rows in (1, 2, 4, 6, 8, 12)]
    assert got == pytest.approx([1.0, 1.1, 1.3, 1.7, 2.1, 2.9])
    assert StepCosts({1: 0.5}).verify_s(64) == 0.5


@settings(EXAMPLES, max_examples=150)
@given(_MEASURED, _SECONDS, st.lists(st.floats(0.0, 1.0), max_size=30), st.floats(0.0, 1.0))
def test_the_best_count_is_the_brute_force_maximum(
    measured: dict[int, float], one: float, chances: list[float], draft_s: float
) -> None:
    costs = StepCosts({1: one} | measured)
    reaches = sorted(chances, reverse=True)
    rates = [
        (1.0 + sum(reaches[:count])) / (draft_s + costs.verify_s(1 + count))
        for count in range(len(reaches) + 1)
    ]
    count, expected, seconds = costs.best_count(reaches, draft_s)
    assert rates[count] == pytest.approx(max(rates))
    assert expected == pytest.approx(1.0 + sum(reaches[:count]))
    assert seconds == pytest.approx(draft_s + costs.verify_s(1 + count))


def test_level_times_are_a_moving_average() -> None:
    costs = StepCosts({1: 1.0}, level_s=0.5)
    costs.observe_level(1.0)
    assert 0.5 < costs.level_s < 1.0
    for _ in range(100):
        costs.observe_level(1.0)
    assert costs.level_s == pytest.approx(1.0)
    assert 0.0 < StepCosts({1: 1.0}).level_s < 1.0, "unknown at first: a part of a plain step"


def test_the_fixed_rule_stops_at_the_threshold() -> None:
    """A level of reach 0.9^d is worth it as long as 0.9^d ≥ the threshold."""
    assert _levels(FixedGrowth(TreeConfig(threshold=0.5)), 0.9) == 7  # 0.9^7 = 0.48
    assert _levels(FixedGrowth(TreeConfig(threshold=0.95)), 0.9) == 1
    assert _levels(FixedGrowth(TreeConfig(threshold=0.0)), 0.9) == 20


def test_the_fixed_rule_verifies_as_many_nodes_as_it_may() -> None:
    builder = TreeBuilder(0, 7)
    assert FixedGrowth(TreeConfig(nodes=7)).guesses(builder) == 7


def test_the_measured_rule_grows_with_what_a_level_is_worth() -> None:
    def levels(chance: float, level_s: float) -> int:
        costs = StepCosts({1: 1.0, 64: 1.2}, level_s=level_s)
        return _levels(MeasuredGrowth(costs), chance)

    assert levels(0.9, 0.01) > levels(0.9, 0.2) > 1
    assert levels(0.9, 0.05) > levels(0.4, 0.05)
    assert levels(0.9, 10.0) == 1
    assert levels(0.01, 0.05) == 1


def test_the_measured_rule_verifies_no_guess_that_costs_more_than_it_brings() -> None:
    costs = StepCosts({1: 1.0, 2: 2.0, 3: 3.0}, level_s=0.0)
    growth, builder = MeasuredGrowth(costs), TreeBuilder(0, 64)
    builder.add(0, 1, 0.5)
    assert growth.guesses(builder) == 0


def test_the_governor_keeps_a_draft_that_pays() -> None:
    governor = Governor(lambda: StepCosts({1: 1.0}))
    for _ in range(50):
        governor.observe(_step(accepted=2, seconds=2.0))
    assert governor.drafting
    assert governor.reason == ""


def test_the_governor_ends_a_draft_that_loses_and_says_why() -> None:
    governor = Governor(lambda: StepCosts({1: 1.0}))
    steps = 0
    while governor.drafting:
        governor.observe(_step(accepted=1, seconds=2.5))
        steps += 1
        assert steps < 50
    assert steps > 1, "one slow step is no evidence"
    assert "2.00 tokens per 2500 ms step against 1000 ms" in governor.reason


def test_the_governor_forgets_a_good_beginning() -> None:
    governor = Governor(lambda: StepCosts({1: 1.0}))
    for _ in range(200):
        governor.observe(_step(accepted=9, seconds=2.0))
    for _ in range(50):
        governor.observe(_step(accepted=0, seconds=2.0))
    assert not governor.drafting
