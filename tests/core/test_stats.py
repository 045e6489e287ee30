"""The derived rates and counts, and what they say about a request without steps."""

import dataclasses

import pytest

from specx.core.stats import GenerationStats, StepStats


def _stats() -> GenerationStats:
    steps = [
        StepStats(nodes=9, depth=4, accepted=3, new_tokens=4, draft_s=0.1, verify_s=0.3),
        StepStats(nodes=9, depth=4, accepted=0, new_tokens=1, commit_s=0.2, retrieve_s=0.1),
        StepStats(nodes=1, depth=0, accepted=0, new_tokens=1, verify_s=0.3),
        StepStats(nodes=5, depth=4, accepted=3, new_tokens=2, verify_s=0.5),
    ]
    return GenerationStats(
        prompt_tokens=1000,
        new_tokens=9,
        prefill_target_s=1.5,
        prefill_draft_s=0.5,
        decode_s=1.6,
        total_s=4.5,
        steps=steps,
    )


def test_counts_are_sums_over_the_steps() -> None:
    stats = _stats()
    assert stats.drafted == 8 + 8 + 0 + 4
    assert stats.accepted == 6
    assert stats.accepted_histogram == [2, 0, 0, 2]
    assert sum(stats.accepted_histogram) == len(stats.steps)


def test_accepted_excludes_the_bonus_and_tokens_per_step_includes_it() -> None:
    stats = _stats()
    assert stats.accepted_per_step == pytest.approx(1.5)
    assert stats.tokens_per_step == pytest.approx(2.5)


def test_the_share_of_copies_is_of_what_was_accepted() -> None:
    steps = [
        StepStats(nodes=9, depth=4, accepted=3, new_tokens=4, copied=2),
        StepStats(nodes=9, depth=4, accepted=1, new_tokens=2, copied=0),
    ]
    assert GenerationStats(steps=steps).copied == 2
    assert GenerationStats(steps=steps).copied_share == pytest.approx(0.5)
    assert GenerationStats().copied_share == 0.0


def test_tokens_per_step_along_the_output() -> None:
    """Position 0 is the prefill's; a step counts where it began."""
    first = [StepStats(nodes=9, depth=8, accepted=7, new_tokens=8)] * 128  # 1 … 1,025
    later = [StepStats(nodes=9, depth=8, accepted=1, new_tokens=2)] * 600
    stats = GenerationStats(steps=first + later)
    assert stats.tokens_per_step_by_position == [8.0, 2.0, 2.0]
    assert GenerationStats().tokens_per_step_by_position == []


def test_plain_decoding_has_one_token_a_step() -> None:
    stats = GenerationStats(steps=[StepStats(nodes=1, depth=0, accepted=0, new_tokens=1)] * 3)
    assert stats.tokens_per_step == 1.0


def test_rates_keep_prefill_decode_and_the_whole_apart() -> None:
    stats = _stats()
    assert stats.prefill_s == pytest.approx(2.0)
    assert stats.prefill_tokens_per_s == pytest.approx(500.0)
    assert stats.decode_tokens_per_s == pytest.approx(8 / 1.6), "the first token is the prefill's"
    assert stats.end_to_end_tokens_per_s == pytest.approx(2.0)


def test_a_step_is_as_long_as_its_phases() -> None:
    assert _stats().steps[0].total_s == pytest.approx(0.4)
    assert _stats().steps[1].total_s == pytest.approx(0.3)


def test_nothing_divides_by_zero_before_the_first_step() -> None:
    empty = GenerationStats()
    assert (empty.accepted_per_step, empty.tokens_per_step) == (0.0, 0.0)
    assert empty.accepted_histogram == []
    assert empty.prefill_tokens_per_s == empty.decode_tokens_per_s == 0.0
    assert empty.end_to_end_tokens_per_s == 0.0


def test_a_step_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        _stats().steps[0].accepted = 9  # type: ignore[misc]
