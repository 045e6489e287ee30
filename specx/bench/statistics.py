"""Statistics of few, noisy runs: spread, outliers, and intervals that stay honest for small n.

The unit of every interval is the document: repetitions of one document say how noisy the machine
is, not how the next document will behave. Intervals are bootstrap percentiles with the *expanded*
tails of Hesterberg, "What Teachers Should Know About the Bootstrap" (2015), as ordinary ones of
five documents are too narrow by a factor of about 1.6. No bootstrap leaves the range of its data:
bounds of n documents hold the truth at most in 1 − 2^(1−n) of all cases, 75 % of three, 94 % of
five. All draws come from a fixed seed: equal numbers give equal intervals.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from statistics import fmean, median, stdev

import numpy as np
from numpy.typing import NDArray

from specx.bench.schema import Interval, Spread

RESAMPLES = 10_000
SEED = 20_260
OUTLIER_SCORE = 3.5  # modified z-score of Iglewicz and Hoaglin
_MAD_OF_NORMAL = 0.6745  # median absolute deviation of a normal variable, in standard deviations
_CELLS = 2_000_000  # numbers drawn at a time, to bound memory
_MOST_DF = 10_000  # beyond it the t quantile changes by less than 0.0003

Floats = NDArray[np.float64]


def spread(values: Sequence[float]) -> Spread | None:
    """Median, mean, standard deviation, extremes and outliers; None of no values."""
    if not values:
        return None
    return Spread(
        median=median(values),
        mean=fmean(values),
        sd=stdev(values) if len(values) > 1 else None,
        low=min(values),
        high=max(values),
        outliers=outliers(values),
    )


def outliers(values: Sequence[float]) -> int:
    """How many values have a modified z-score above 3.5; 0 below five values or without spread."""
    if len(values) < 5:
        return 0
    middle = median(values)
    distances = [abs(value - middle) for value in values]
    mad = median(distances)
    if mad == 0:
        return 0
    return sum(_MAD_OF_NORMAL * distance / mad > OUTLIER_SCORE for distance in distances)


def geometric_interval(ratios: Sequence[Sequence[float]]) -> Interval:
    """Geometric mean of ratios over documents (outer); repetitions (inner) by their median.

    The bootstrap draws documents, and inside each drawn document its repetitions. The median is
    taken of logarithms, so that A over B is the inverse of B over A also for an even number of
    repetitions. Raises ``ValueError`` for no documents, an empty one, or a ratio that is not
    positive and finite.
    """
    if not ratios or not all(ratios):
        raise ValueError("an interval needs at least one document, and each at least one ratio")
    if not all(0 < ratio < math.inf for repetitions in ratios for ratio in repetitions):
        raise ValueError("ratios must be positive and finite")
    # Sorted, so that the draws do not depend on the order in which documents were measured.
    logs = sorted(sorted(math.log(ratio) for ratio in repetitions) for repetitions in ratios)
    centre = fmean(median(repetitions) for repetitions in logs)
    if len(logs) == 1:
        return Interval(value=math.exp(centre), low=None, high=None, n=1)
    low, high = _percentiles(_resampled_means(logs), centre, len(logs))
    return Interval(value=math.exp(centre), low=math.exp(low), high=math.exp(high), n=len(logs))


def ratio_of_sums_interval(pairs: Sequence[tuple[float, float]]) -> Interval | None:
    """Σ numerators / Σ denominators over documents, each a pair; for accepted tokens over steps.

    A document with denominator 0 says nothing and is left out; None when no other is there.
    """
    usable = sorted(pair for pair in pairs if pair[1] > 0)
    if not usable:
        return None
    value = math.fsum(top for top, _ in usable) / math.fsum(bottom for _, bottom in usable)
    if len(usable) == 1:
        return Interval(value=value, low=None, high=None, n=1)
    tops, bottoms = np.array(usable, dtype=np.float64).T
    rng = np.random.default_rng(SEED)
    drawn = (rng.integers(0, len(usable), (rows, len(usable))) for rows in _blocks(len(usable)))
    found = np.concatenate([tops[draw].sum(axis=1) / bottoms[draw].sum(axis=1) for draw in drawn])
    low, high = _percentiles(found, value, len(usable))
    return Interval(value=value, low=low, high=high, n=len(usable))


def expanded_tail(n: int) -> float:
    """Tail probability that replaces 0.025 for ``n`` ≥ 2 values: Φ(−√(n/(n−1)) · t(0.975, n−1))."""
    return normal_cdf(-math.sqrt(n / (n - 1)) * t_quantile_975(n - 1))


def normal_cdf(x: float) -> float:
    """Φ(x), accurate far into the lower tail."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


@lru_cache(maxsize=256)
def t_quantile_975(df: int) -> float:
    """The 97.5 % point of Student's t with ``df`` ≥ 1 degrees of freedom."""
    df = min(df, _MOST_DF)
    nodes, weights = np.polynomial.legendre.leggauss(200)

    def area(angle: float) -> float:
        """Of cos^(df−1) from 0: the density in θ = atan(t/√df), whose range is finite."""
        return angle * float(weights @ np.cos((nodes + 1) * angle / 2) ** (df - 1))

    low, high = 0.0, math.pi / 2
    wanted = 0.95 * area(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if area(middle) < wanted else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _percentiles(found: Floats, value: float, n: int) -> tuple[float, float]:
    tail = expanded_tail(n)
    low, high = np.quantile(found, [tail, 1 - tail])
    # Medians of redrawn repetitions lean towards the longer side of a skewed document, and sums
    # round; neither may push the estimate out of its own interval.
    return min(float(low), value), max(float(high), value)


def _resampled_means(logs: Sequence[Sequence[float]]) -> Floats:
    """Means over redrawn documents of the medians of their redrawn repetitions."""
    count, most = len(logs), max(len(repetitions) for repetitions in logs)
    sizes = np.array([len(repetitions) for repetitions in logs])
    table = np.array([[*reps, *[math.inf] * (most - len(reps))] for reps in logs])
    rng = np.random.default_rng(SEED)
    means = []
    for rows in _blocks(count * most):
        documents = rng.integers(0, count, (rows, count))
        if most == 1:
            means.append(table[documents, 0].mean(axis=1))
            continue
        size = sizes[documents]
        picked = (rng.random((rows, count, most)) * size[..., None]).astype(np.intp)
        drawn = table[documents[..., None], picked]
        drawn[np.arange(most) >= size[..., None]] = math.inf  # after a shorter document's end
        drawn.sort(axis=2)
        middles = [
            np.take_along_axis(drawn, index[..., None], axis=2)[..., 0]
            for index in ((size - 1) // 2, size // 2)
        ]
        means.append(((middles[0] + middles[1]) / 2).mean(axis=1))
    return np.concatenate(means)


def _blocks(width: int) -> Iterator[int]:
    """``RESAMPLES`` in blocks of as many rows of ``width`` numbers as fit into memory at once."""
    step = max(1, _CELLS // width)
    for start in range(0, RESAMPLES, step):
        yield min(step, RESAMPLES - start)
