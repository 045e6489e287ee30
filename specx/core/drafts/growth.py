"""How far a draft tree grows: by the paper's fixed rule, or by what levels and rows cost here. The
text stays the same whatever is decided. Two policies, because what a step costs differs: where the
device works in step with the host, each level is decided when the last one is known; where a whole
draft is one recording, before it starts."""

from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Sequence
from itertools import accumulate
from math import inf

from specx.core.config import TreeConfig
from specx.core.stats import StepStats

_MOMENTUM = 0.2  # weight of the newest draft-level time
_WORTH_CHANGING = 1.03
_MOST_KEPT = 0.95  # of a level's gain, by a level that was not drafted


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


class StepwiseGrowth:
    """Decides level by level, for a device that works in step with the host.

    By OPT-Tree's rule a tree grows while a level adds ``threshold`` expected tokens; with measured
    costs, while another level raises the expected tokens per second of the step.
    """

    def __init__(self, config: TreeConfig) -> None:
        self._config = config
        self._costs: StepCosts | None = None
        self.start()

    def begin(self, costs: StepCosts | None) -> None:
        """A new request. Without ``costs`` the fixed rule decides."""
        self._costs = costs if self._config.size == "measured" else None

    def start(self) -> None:
        self.levels_s: list[float] = []  # what each level took
        self._read = 1.0  # reach of the nodes that the last level was read under
        self._expected = 1.0

    def width(self, reaches: list[float], frontier: list[float]) -> int:
        """How many nodes of the newest level's ``frontier`` to read next; 0: the tree is done.

        ``reaches`` of the best guesses so far, as many as may be verified, and of the frontier,
        both decreasing. The next level is predicted to keep the share that the last one kept.
        """
        weakest = reaches[-1] if len(reaches) >= self._config.nodes else 0.0
        worth = [reach for reach in frontier if reach > 0.0 and reach >= weakest]
        expected = 1.0 + sum(reaches)
        gain, self._expected = expected - self._expected, expected
        if self._costs is None:
            return len(worth) if gain >= self._config.threshold else 0
        share, reach = gain / self._read, sum(worth)
        self._read = max(reach, 1e-9)
        level_s = self._costs.level_s
        _, now, seconds = self._costs.best_count(reaches, len(self.levels_s) * level_s)
        return len(worth) if (now + share * reach) * seconds > now * (seconds + level_s) else 0

    def guesses(self, reaches: list[float]) -> int:
        """How many of the best guesses to verify."""
        if self._costs is None:
            return len(reaches)
        return self._costs.best_count(reaches, len(self.levels_s) * self._costs.level_s)[0]

    def observe_level(self, seconds: float) -> None:
        self.levels_s.append(seconds)
        if self._costs is not None:
            self._costs.observe_level(seconds)


class ForecastGrowth:
    """Chooses levels and rows of the next tree before it grows, from what the last ones were worth.

    A running mean of the expected tokens, by depth and by size, predicts what the next tree will
    bring.
    """

    def __init__(self, config: TreeConfig, sizes: Sequence[int]) -> None:
        """``sizes``: row counts that a tree may be padded to, increasing."""
        self._config = config
        most = next((size for size in sizes if size > config.nodes), sizes[-1])
        self._rows = [min(size, config.nodes + 1) for size in sizes if 1 < size <= most]
        self._expected: list[list[float]] = []  # tokens of a step, by levels − 1 and by size
        self._draft_s: dict[int, float] = {}  # by levels
        self._plan = config.depth, self._rows[-1]
        self.begin(None)

    def begin(self, costs: StepCosts | None) -> None:
        """A new request. Without ``costs`` every tree has the configured depth and nodes."""
        self._costs = costs if self._config.size == "measured" else None
        self._is_timed = False  # some draft of this request

    def plan(self) -> tuple[int, int]:
        """Levels to draft and rows to verify."""
        costs = self._costs
        if costs is None or not self._draft_s:
            return self._config.depth, self._rows[-1]
        rates = {
            (levels, rows): expected / (self._seconds(levels) + costs.verify_s(rows))
            for levels, row in enumerate(self._expected, start=1)
            for rows, expected in zip(self._rows, row, strict=True)
        }
        best = max(rates, key=rates.__getitem__)
        # Every plan is a recording of its own: not for a gain that the next step takes back.
        if rates[best] > _WORTH_CHANGING * rates.get(self._plan, 0.0):
            self._plan = best
        return self._plan

    def observe(
        self, levels: int, draft_s: float | None, reaches: list[float], depths: list[int]
    ) -> None:
        """Take in a draft of ``levels``: the reach and depth of its nodes, and its seconds (None
        when it was not yet a recording: compiling takes a thousand times as long)."""
        if draft_s is not None:
            self._time(levels, draft_s)
        guesses = sorted(zip(reaches, depths, strict=True), reverse=True)
        guesses = [(reach, depth) for reach, depth in guesses if depth > 0]
        seen = [self._by_size(guesses, depth) for depth in range(1, levels + 1)]
        while len(seen) < self._config.depth:
            seen.append(_next_level(seen))
        if not self._expected:
            self._expected = seen
        for known, new in zip(self._expected, seen, strict=True):
            known[:] = [a + _MOMENTUM * (b - a) for a, b in zip(known, new, strict=True)]

    def _time(self, levels: int, draft_s: float) -> None:
        """Take in the seconds of a draft. Longer contexts slow all drafts alike, so what one depth
        takes now corrects the others too; at once where they were timed for another request."""
        if levels in self._draft_s:
            weight = _MOMENTUM if self._is_timed else 1.0
            factor = 1.0 + weight * (draft_s / self._draft_s[levels] - 1.0)
            self._draft_s = {known: factor * s for known, s in self._draft_s.items()}
        elif self._is_timed:
            self._draft_s[levels] = draft_s
        else:
            self._draft_s = {levels: draft_s}
        self._is_timed = True

    def _seconds(self, levels: int) -> float:
        """Of a draft; where none was timed, as the nearest, whose start cost like a level."""
        nearest = min(self._draft_s, key=lambda known: abs(known - levels))
        return self._draft_s[nearest] * (levels + 1) / (nearest + 1)

    def _by_size(self, guesses: list[tuple[float, int]], depth: int) -> list[float]:
        """Expected tokens with the best guesses down to ``depth``, for each number of rows."""
        reaches = [reach for reach, at in guesses if at <= depth]
        sums = list(accumulate(reaches, initial=1.0))
        # What the tree left out is no better than its weakest guess, and no level adds more than
        # one token: half of the former, until it is tried.
        beyond = 0.5 * guesses[-1][0] if guesses else 0.0
        left_out = [max(0, rows - 1 - len(reaches)) for rows in self._rows]
        return [
            min(1.0 + depth, sums[min(rows - 1, len(reaches))] + beyond * count)
            for rows, count in zip(self._rows, left_out, strict=True)
        ]


def _next_level(seen: list[list[float]]) -> list[float]:
    """A level nobody drafted: it keeps the share of the gain that the last one kept."""
    last, before = seen[-1], seen[-2] if len(seen) > 1 else [1.0] * len(seen[-1])
    earlier = seen[-3] if len(seen) > 2 else [1.0 if len(seen) > 1 else 0.0] * len(last)
    gains = [(a - b, b - c) for a, b, c in zip(last, before, earlier, strict=True)]
    shares = [min(_MOST_KEPT, new / old) if old > 0 else 0.0 for new, old in gains]
    return [a + share * gain for a, share, (gain, _) in zip(last, shares, gains, strict=True)]


class Governor:
    """Chooses between drafting and plain steps (mode ``auto``), by the rates seen so far.

    Starts drafting. Whenever the way in use is slower than the other one was when last seen, it
    changes over; a change starts a fresh measurement, so a machine that became busy in between
    is noticed on both sides.
    """

    _FEWEST = 8  # steps before a judgement
    _WINDOW = 16  # steps that a rate is taken over

    def __init__(self, plain_s: float = inf) -> None:
        #: Seconds of a plain step, as long as none was made.
        self.plain_s = plain_s
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

    def observe(self, step: StepStats, drafted: bool | None = None) -> None:
        """Take in a step and decide about the next. ``drafted``: how it was made, if not the
        present way (a step may have been launched before the last decision)."""
        way = self.drafting if drafted is None else drafted
        other = not way
        taken = (step.accepted + 1, step.total_s)
        self._all[way].append(taken)
        self._seen[way].append(taken)
        if way != self.drafting or len(self._seen[way]) < self._FEWEST:
            return
        known = _rate(self._seen[other]) if self._seen[other] else 1.0 / self.plain_s
        if _rate(self._seen[way]) < known:
            self.drafting = other
            self._seen[other].clear()


def _rate(steps: Collection[tuple[int, float]]) -> float:
    """Tokens per second over (tokens, seconds) of steps."""
    return sum(tokens for tokens, _ in steps) / max(sum(seconds for _, seconds in steps), 1e-9)
