"""How far a draft tree grows: by the paper's fixed rule, or by what levels and rows cost here.

In: a tree under construction and measured step times. Out: which nodes to expand, and how many to
verify. It does not know models or tokens. Whatever it decides, the text stays the same; only the
speed depends on it.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

from specx.core.config import TreeConfig
from specx.core.stats import StepStats
from specx.core.tree import TreeBuilder

_MOMENTUM = 0.2  # weight of the newest draft-level time
WIDTH = 10  # nodes expanded a level at most, as in OPT-Tree


class StepCosts:
    """Seconds of a verify forward by row count, and of one draft level, on this machine."""

    def __init__(self, verify: dict[int, float], level_s: float | None = None) -> None:
        """``verify`` maps row counts to seconds and must hold the entry for one row."""
        # Noise only ever slows: a forward costs at most what a wider one took.
        self._rows = sorted(verify)
        self._seconds = [min(verify[r] for r in self._rows if r >= rows) for rows in self._rows]
        self.level_s = level_s if level_s is not None else 0.1 * self._seconds[0]

    def verify_s(self, rows: int) -> float:
        """Seconds of a verify forward, linear between the measured row counts.

        Beyond them it rises as between the last two, and no slower than over all of them: two
        that look alike by chance must not make every further row free.
        """
        if len(self._rows) == 1:
            return self._seconds[0]
        right = min(max(bisect_right(self._rows, rows), 1), len(self._rows) - 1)
        slope = self._slope(right - 1, right)
        if rows > self._rows[-1]:
            slope = max(slope, self._slope(0, right))
        return self._seconds[right] + slope * (rows - self._rows[right])

    def _slope(self, left: int, right: int) -> float:
        """Seconds a row between two measured counts."""
        rise = self._seconds[right] - self._seconds[left]
        return rise / (self._rows[right] - self._rows[left])

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

    def frontier(self, builder: TreeBuilder, depth: int) -> list[int]:
        """The nodes of ``depth`` to expand next; none when the tree is done."""
        ...

    def guesses(self, builder: TreeBuilder) -> int:
        """How many of the best nodes to verify."""
        ...


class FixedGrowth:
    """OPT-Tree's rule: go on while a level adds ``threshold`` expected tokens."""

    def __init__(self, config: TreeConfig) -> None:
        self._config = config
        self._expected = 1.0

    def frontier(self, builder: TreeBuilder, depth: int) -> list[int]:
        """See ``Growth``."""
        expected = builder.expected()
        gain, self._expected = expected - self._expected, expected
        return builder.frontier(depth, WIDTH) if gain >= self._config.threshold else []

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

    def frontier(self, builder: TreeBuilder, depth: int) -> list[int]:
        """See ``Growth``. The next level is predicted to keep the share the last one kept."""
        self._levels += 1
        nodes = builder.frontier(depth, WIDTH)
        reach, expected = sum(builder.reaches(nodes)), builder.expected()
        share = (expected - self._expected) / self._frontier
        self._expected, self._frontier = expected, max(reach, 1e-9)
        _, now, seconds = self._best(builder)
        later = now + share * reach
        return nodes if later * seconds > now * (seconds + self._costs.level_s) else []

    def guesses(self, builder: TreeBuilder) -> int:
        """See ``Growth``."""
        return self._best(builder)[0]

    def _best(self, builder: TreeBuilder) -> tuple[int, float, float]:
        reaches = builder.reaches(builder.best())
        return self._costs.best_count(reaches, self._levels * self._costs.level_s)


class Governor:
    """Chooses between drafting and plain steps (mode ``auto``), by the rates seen so far.

    Starts drafting. Whenever the way in use is slower than the other one was when last seen, it
    changes over; a change starts a fresh measurement, so a machine that became busy in between
    is noticed on both sides.
    """

    _FEWEST = 8  # steps before a judgement
    _WINDOW = 16  # steps that a rate is taken over

    def __init__(self, costs: Callable[[], StepCosts]) -> None:
        self._costs = costs
        self._seen: dict[bool, deque[tuple[int, float]]] = {
            way: deque(maxlen=self._WINDOW) for way in (True, False)
        }
        self._all: dict[bool, list[tuple[int, float]]] = {True: [], False: []}
        self.drafting = True

    @property
    def reason(self) -> str:
        """Why steps were plain; "" when all of them drafted."""
        drafted, plain = self._all[True], self._all[False]
        if not plain:
            return ""
        rates = f"{_rate(drafted):.1f} tokens/s drafting, {_rate(plain):.1f} plain"
        return f"{len(plain)} of {len(drafted) + len(plain)} steps were plain: {rates}"

    def observe(self, step: StepStats) -> None:
        """Take in a step that was made the present way, and decide about the next."""
        way, other = self.drafting, not self.drafting
        taken = (step.accepted + 1, step.total_s)
        self._all[way].append(taken)
        self._seen[way].append(taken)
        if len(self._seen[way]) < self._FEWEST:
            return
        # Before any plain step, the measured cost of one row stands for it.
        known = _rate(self._seen[other]) if self._seen[other] else 1.0 / self._costs().verify_s(1)
        if _rate(self._seen[way]) < known:
            self.drafting = other
            self._seen[other].clear()


def _rate(steps: Collection[tuple[int, float]]) -> float:
    """Tokens per second over (tokens, seconds) of steps."""
    return sum(tokens for tokens, _ in steps) / max(sum(seconds for _, seconds in steps), 1e-9)
