"""Thoughts have a bound of their own; where it closes one, every draft and every kernel agree."""

import functools

import pytest
import torch

from specx.core.bounds import Bounds, ThoughtBound
from specx.core.config import MODES, Parts, SamplingConfig
from tests.core.tiny import VOCABULARY, Job, Pair, Run, random_tokens

PARTS = {
    "plain": MODES["plain"],
    "spec": MODES["spec"],
    "specx": MODES["specx"],
    "lookup": Parts(drafter="lookup"),
}
SETTINGS = {
    "greedy": SamplingConfig(),
    "everything": SamplingConfig(1.0, 20, 0.95, 0.02, 1.3, seed=2**63 - 1),
}
_PROMPT = torch.cat([random_tokens(60), random_tokens(50, seed=1), random_tokens(40)])


class Tags:
    """Finds a thought by two token ids; ``opening`` None: the prompt has begun it. The opening one
    may come after some others."""

    def __init__(self, opening: int | None, closing: int, patience: int = 6) -> None:
        self._opening, self._closing, self._patience = opening, closing, patience
        self.is_open, self.is_undecided = opening is None, opening is not None
        self.tokens = self._pushed = 0

    def push(self, token: int) -> None:
        self._pushed += 1
        if self.is_open:
            self.tokens, self.is_open = self._pushed, token != self._closing
        elif self.is_undecided:
            self.is_open = token == self._opening
            self.is_undecided = not self.is_open and self._pushed < self._patience
            self.tokens = self._pushed if self.is_open else 0


@functools.cache
def _pair() -> Pair:
    return Pair.make("llama")


def _run(
    parts: str,
    setting: str,
    tags: tuple[int | None, int],
    bound: int,
    *,
    closes: bool = True,
    is_fixed: bool = False,
) -> Run:
    def thought() -> ThoughtBound:
        return ThoughtBound(Tags(*tags), bound, tags[1] if closes else None, bound + 8)

    sampling = SETTINGS[setting]
    job = Job(_pair(), _PROMPT, PARTS[parts], 12, sampling, is_fixed=is_fixed, thought=thought)
    return job.run()


@functools.cache
def _free(setting: str) -> list[int]:
    """What the target says when nobody interferes."""
    return Job(_pair(), _PROMPT, max_tokens=30, sampling=SETTINGS[setting]).run().tokens


@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("parts", PARTS)
def test_a_bound_is_where_it_is_in_plain_decoding(parts: str, setting: str, is_fixed: bool) -> None:
    free = _free(setting)
    unsaid = next(token for token in range(VOCABULARY) if token not in free)
    at = next(i for i in range(5, 12) if free[i] not in free[:i])  # closes by itself there
    opening = free[3] if free[3] not in free[:3] else None
    for tags in ((None, unsaid), (None, free[at]), (opening, unsaid), (opening, free[at])):
        for bound in (0, 1, 4, at, at + 1, 14):
            plain = _run("plain", setting, tags, bound)
            run = _run(parts, setting, tags, bound, is_fixed=is_fixed)
            assert run.tokens == plain.tokens
            assert run.finish_reason == "length"
            is_ended = tags[1] == free[at] and bound >= at
            first = 0 if tags[0] is None else 4
            end = at if is_ended else max(bound, first)
            assert run.tokens[: end + 1] == [*free[:end], tags[1]]
            assert len(run.tokens) == end + 1 + 12


@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize("parts", PARTS)
def test_without_a_closing_token_the_output_ends(parts: str, is_fixed: bool) -> None:
    free = _free("greedy")
    unsaid = next(token for token in range(VOCABULARY) if token not in free)
    run = _run(parts, "greedy", (None, unsaid), 9, closes=False, is_fixed=is_fixed)
    assert (run.tokens, run.finish_reason) == (free[:9], "length")


@pytest.mark.parametrize("parts", PARTS)
def test_what_never_opens_is_an_answer(parts: str) -> None:
    free = _free("greedy")
    unsaid = next(token for token in range(VOCABULARY) if token not in free)
    run = _run(parts, "greedy", (unsaid, free[8]), 2)
    assert run.tokens == free[:12]


def test_the_limit_bounds_both() -> None:
    bounds = Bounds(5, ThoughtBound(Tags(None, 7), 4, 7, 12), limit=6)
    assert bounds.take([1, 2, 7]) is None
    assert not bounds.is_open
    assert bounds.take([3, 4, 5, 6]) == 3
