"""Statistics of few, noisy runs: spread, outliers, and intervals that stay honest for small n.

The unit of every interval is the document: repetitions say how noisy the machine is, not how the
next document will behave. Intervals are bootstrap percentiles with the *expanded* tails of
Hesterberg, "What Teachers Should Know About the Bootstrap" (2015), as ordinary ones of five
documents are too narrow by a factor of about 1.6. No bootstrap leaves the range of its data: bounds
of n documents hold the truth at most in 1 − 2^(1−n) of all cases, 75 % of three, 94 % of five.
All draws come from a fixed seed: equal numbers give equal intervals.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import fmean, median, stdev

import numpy as np
from numpy.typing import NDArray

from specx.bench.schema import Interval, Spread

RESAMPLES = 10_000
_MAD_OF_NORMAL = 0.6745  # median absolute deviation of a normal variable, in standard deviations
_CELLS = 2_000_000  # numbers drawn at a time, to bound memory

Floats = NDArray[np.float64]
Draws = NDArray[np.int64]  # numbers of documents: (draws, documents)


def spread(values: Sequence[float]) -> Spread | None:
    """Median, mean, standard deviation, extremes and outliers; None of no values. Outliers have a
    modified z-score (Iglewicz and Hoaglin) above 3.5, of five values or more."""
    if not values:
        return None
    middle = median(values)
    distances = [abs(value - middle) for value in values]
    far = 3.5 / _MAD_OF_NORMAL * median(distances)
    return Spread(
        median=middle,
        mean=fmean(values),
        sd=stdev(values) if len(values) > 1 else None,
        low=min(values),
        high=max(values),
        outliers=sum(each > far > 0 for each in distances) if len(values) >= 5 else 0,
    )


def geometric_interval(ratios: Sequence[Sequence[float]]) -> Interval:
    """Geometric mean of ratios over documents (outer); repetitions (inner) by their median. The
    bootstrap draws documents, and inside each drawn document its repetitions. The median is taken
    of logarithms, so that A over B is the inverse of B over A also for an even number of
    repetitions. Raises ``ValueError`` for nothing, and for what is not positive and finite."""
    if not ratios or not all(ratios):
        raise ValueError("an interval needs at least one document, and each at least one ratio")
    if not all(0 < ratio < math.inf for repetitions in ratios for ratio in repetitions):
        raise ValueError("ratios must be positive and finite")
    # Sorted, so that the draws do not depend on the order in which documents were measured.
    logs = sorted(sorted(math.log(ratio) for ratio in repetitions) for repetitions in ratios)
    sizes = np.array([len(repetitions) for repetitions in logs])
    most = int(sizes.max())
    table = np.array([[*reps, *[math.nan] * (most - len(reps))] for reps in logs])

    def means_of_medians(documents: Draws, rng: np.random.Generator) -> Floats:
        size = sizes[documents][..., None]
        picked = (rng.random((*documents.shape, most)) * size).astype(np.intp)
        drawn = table[documents[..., None], picked]
        drawn[np.arange(most) >= size] = math.nan  # after a shorter document's end
        return np.asarray(np.nanmedian(drawn, axis=2).mean(axis=1))

    centre = fmean(median(repetitions) for repetitions in logs)
    return _interval(centre, len(logs), len(logs) * most, means_of_medians, math.exp)


def ratio_of_sums_interval(pairs: Sequence[tuple[float, float]]) -> Interval | None:
    """Σ numerators / Σ denominators over documents, each a pair; for accepted tokens over steps. A
    document with denominator 0 says nothing and is left out; None when no other is there."""
    usable = sorted(pair for pair in pairs if pair[1] > 0)
    if not usable:
        return None
    tops, bottoms = np.array(usable, dtype=np.float64).T
    value = math.fsum(tops) / math.fsum(bottoms)

    def ratios(documents: Draws, rng: np.random.Generator) -> Floats:
        return np.asarray(tops[documents].sum(axis=1) / bottoms[documents].sum(axis=1))

    return _interval(value, len(usable), len(usable), ratios)


def _interval(
    value: float,
    n: int,
    width: int,
    redrawn: Callable[[Draws, np.random.Generator], Floats],
    scale: Callable[[float], float] = float,
) -> Interval:
    """Of ``n`` documents; a draw needs ``width`` numbers, and ``scale`` is applied last."""
    if n == 1:
        return Interval(value=scale(value), low=None, high=None, n=1)
    rng = np.random.default_rng(20_260)
    step = max(1, _CELLS // width)
    blocks = (min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step))
    found = np.concatenate([redrawn(rng.integers(0, n, (rows, n)), rng) for rows in blocks])
    tail = expanded_tail(n)
    low, high = map(float, np.quantile(found, [tail, 1 - tail]))
    # Medians of redrawn repetitions lean towards the longer side of a skewed document, and sums
    # round; neither may push the estimate out of its own interval.
    low, high = min(low, value), max(high, value)
    return Interval(value=scale(value), low=scale(low), high=scale(high), n=n)


def expanded_tail(n: int) -> float:
    """Tail probability that replaces 0.025 for ``n`` ≥ 2 values: Φ(−√(n/(n−1)) · t(0.975, n−1))."""
    return 0.5 * math.erfc(math.sqrt(n / (n - 1) / 2) * t_quantile_975(n - 1))


@lru_cache(maxsize=256)
def t_quantile_975(df: int) -> float:
    """The 97.5 % point of Student's t with ``df`` ≥ 1 degrees of freedom."""
    df = min(df, 10_000)  # beyond it the quantile changes by less than 0.0003
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
