"""How far a draft tree grows: by the paper's fixed rule, or by what levels and rows cost here.

In: a tree under construction and measured step times. Out: "one more level?" and "how many
nodes?". It does not know models or tokens. Whatever it decides, the text stays the same; only the
speed depends on it.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import Protocol

from specx.core.config import TreeConfig
from specx.core.stats import StepStats
from specx.core.tree import TreeBuilder

_MOMENTUM = 0.2  # weight of the newest draft-level time


class StepCosts:
    """Seconds of a verify forward by row count, and of one draft level, on this machine."""

    def __init__(self, verify: dict[int, float], level_s: float | None = None) -> None:
        """``verify`` maps row counts to seconds and must hold the entry for one row."""
        # A wider forward is never cheaper: what looks so is noise.
        self._rows = sorted(verify)
        self._seconds = [max(verify[r] for r in self._rows if r <= rows) for rows in self._rows]
        self.level_s = level_s if level_s is not None else 0.1 * self._seconds[0]

    def verify_s(self, rows: int) -> float:
        """Seconds of a verify forward, linear between and beyond the measured row counts."""
        if len(self._rows) == 1:
            return self._seconds[0]
        right = min(max(bisect_right(self._rows, rows), 1), len(self._rows) - 1)
        (r0, r1), (s0, s1) = self._rows[right - 1 : right + 1], self._seconds[right - 1 : right + 1]
        return s0 + (s1 - s0) * (rows - r0) / (r1 - r0)

    def observe_level(self, seconds: float) -> None:
        """Take in the time of one draft level."""
        self.level_s += _MOMENTUM * (seconds - self.level_s)

    def best_count(self, reaches: list[float], draft_s: float) -> tuple[int, float, float]:
        """How many of the best guesses to verify; also the expected tokens and seconds.

        ``reaches`` decreasing. Maximises expected tokens per second of the whole step.
        """
        expected, best = 1.0, (0, 1.0, draft_s + self.verify_s(1))
        for count, reach in enumerate(reaches, start=1):
            expected += reach
            seconds = draft_s + self.verify_s(1 + count)
            if expected * best[2] > best[1] * seconds:
                best = (count, expected, seconds)
        return best


class Growth(Protocol):
    """Decides about one tree; a new object for every tree."""

    def another_level(self, builder: TreeBuilder, frontier_reach: float) -> bool:
        """Whether to expand one more level; ``frontier_reach`` sums its nodes' reaches."""
        ...

    def guesses(self, builder: TreeBuilder) -> int:
        """How many of the best nodes to verify."""
        ...


class FixedGrowth:
    """OPT-Tree's rule: go on while a level adds ``threshold`` expected tokens."""

    def __init__(self, config: TreeConfig) -> None:
        self._config = config
        self._expected = 1.0

    def another_level(self, builder: TreeBuilder, frontier_reach: float) -> bool:
        """See ``Growth``."""
        expected = builder.expected()
        gain, self._expected = expected - self._expected, expected
        return gain >= self._config.threshold

    def guesses(self, builder: TreeBuilder) -> int:
        """See ``Growth``."""
        return self._config.nodes


class MeasuredGrowth:
    """Goes on while another level raises the expected tokens per second of the step."""

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._levels = 0
        self._frontier = 1.0  # reach of the nodes that the last level expanded
        self._expected = 1.0

    def another_level(self, builder: TreeBuilder, frontier_reach: float) -> bool:
        """See ``Growth``. The next level is predicted to keep the share the last one kept."""
        self._levels += 1
        expected = builder.expected()
        share = (expected - self._expected) / self._frontier
        self._expected, self._frontier = expected, max(frontier_reach, 1e-9)
        _, now, seconds = self._best(builder)
        later = now + share * frontier_reach
        return later * seconds > now * (seconds + self._costs.level_s)

    def guesses(self, builder: TreeBuilder) -> int:
        """See ``Growth``."""
        return self._best(builder)[0]

    def _best(self, builder: TreeBuilder) -> tuple[int, float, float]:
        reaches = builder.reaches(builder.best())
        return self._costs.best_count(reaches, self._levels * self._costs.level_s)


class Governor:
    """Turns drafting off for the rest of a request once it loses against plain steps (``auto``)."""

    _FEWEST = 8  # steps before the first judgement
    _WINDOW = 24  # steps that are looked at

    def __init__(self, costs: Callable[[], StepCosts]) -> None:
        self._costs = costs
        self._steps: deque[tuple[int, float]] = deque(maxlen=self._WINDOW)
        self.drafting = True
        self.reason = ""

    def observe(self, step: StepStats) -> None:
        """Take in a step that drafted."""
        self._steps.append((step.accepted + 1, step.total_s))
        if not self.drafting or len(self._steps) < self._FEWEST:
            return
        tokens = sum(count for count, _ in self._steps)
        seconds = sum(duration for _, duration in self._steps)
        plain_s = self._costs().verify_s(1)
        if tokens * plain_s < seconds:
            self.drafting = False
            each, every = tokens / len(self._steps), seconds / len(self._steps)
            self.reason = (
                f"plain from here on: {each:.2f} tokens per {every * 1e3:.0f} ms step "
                f"against {plain_s * 1e3:.0f} ms for a plain token"
            )
