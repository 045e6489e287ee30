"""Statistics against tables, cases worked by hand, and a simulation of their coverage."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.bench.schema import Interval
from specx.bench.statistics import (
    expanded_tail,
    geometric_interval,
    ratio_of_sums_interval,
    spread,
    t_quantile_975,
)

RATIO = st.floats(0.01, 100.0)
DOCUMENTS = st.lists(st.lists(RATIO, min_size=1, max_size=4), min_size=2, max_size=7)
few = settings(max_examples=40)


@pytest.mark.parametrize(
    ("df", "expected"),
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (9, 2.262),
        (29, 2.045),
        (30, 2.042),
        (120, 1.980),
        (1000, 1.962),
        (10**9, 1.960),
    ],
)
def test_t_quantiles_are_those_of_the_table(df, expected):
    assert t_quantile_975(df) == pytest.approx(expected, abs=0.0006)


def test_t_quantiles_with_a_closed_form():
    # df 1 is Cauchy: tan(0.475 π). df 2: P(|T| < t) = t / √(t² + 2) = 0.95, solved for t.
    assert t_quantile_975(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)
    assert t_quantile_975(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-12)


def test_t_quantiles_fall_towards_the_normal_one():
    quantiles = [t_quantile_975(df) for df in range(1, 300)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert quantiles[-1] > NormalDist().inv_cdf(0.975)


def test_the_expanded_tail_of_five_and_of_many():
    # √(5/4) · t(0.975, 4) = 1.118034 · 2.776445 = 3.104160; Φ(−3.104160) = 0.00095410
    assert expanded_tail(5) == pytest.approx(0.00095410, rel=1e-4)
    assert expanded_tail(100_000) == pytest.approx(0.025, rel=1e-3)
    # x = √2 · tan(0.475 π) = 17.9693, so far out that φ(x) / x · (1 − 1/x²) is exact to 0.01 %
    assert expanded_tail(2) == pytest.approx(1.6952e-72, rel=1e-3)


def test_a_spread_worked_by_hand():
    # mean 20 / 5 = 4; squares 9 + 4 + 1 + 0 + 36 = 50, 50 / 4 = 12.5; distances from the median 3:
    # 2 1 0 1 7, their median 1; only 7 · 0.6745 = 4.72 is above 3.5
    found = spread([1.0, 2.0, 3.0, 4.0, 10.0])
    assert found is not None
    assert (found.median, found.mean, found.low, found.high) == (3.0, 4.0, 1.0, 10.0)
    assert found.sd == pytest.approx(math.sqrt(12.5))
    assert found.outliers == 1


def test_a_spread_of_one_and_of_none():
    found = spread([2.5])
    assert found is not None
    assert (found.median, found.mean, found.sd, found.low, found.high) == (2.5, 2.5, None, 2.5, 2.5)
    assert spread([]) is None


def test_outliers_need_five_values_and_a_spread():
    assert spread([1.0, 1.1, 0.9, 50.0]).outliers == 0  # four values
    assert spread([1.0, 1.0, 1.0, 1.0, 50.0]).outliers == 0  # MAD 0
    assert spread([1.0, 1.1, 0.9, 1.0, 50.0, 70.0]).outliers == 2


def test_two_documents_give_their_own_range():
    # ratios 1 and 4: mean log = (0 + ln 4) / 2 = ln 2. Redrawn means: 0, ln 2, ln 4. The tail for
    # n = 2 is Φ(−√2 · 12.706) = 10⁻⁷², so the bounds are the extremes.
    found = geometric_interval([[1.0], [4.0]])
    assert found.value == pytest.approx(2.0)
    assert (found.low, found.high, found.n) == (pytest.approx(1.0), pytest.approx(4.0), 2)


def test_five_documents_worked_by_hand():
    # Logs 0 1 2 3 4. Of 5⁵ = 3125 equally likely draws 1 has sum 0 and 5 have sum 1:
    # P(sum = 0) = 0.00032 < tail 0.00095 < P(sum ≤ 1) = 0.00192, so the bound is mean 1/5; the
    # other one is 4 − 1/5 by symmetry. An ordinary percentile (0.025) would be at sum 4:
    # P(sum ≤ 3) = (1 + 5 + 15 + 35) / 3125 = 0.0179 < 0.025 < P(sum ≤ 4) = 0.0403.
    found = geometric_interval([[math.exp(log)] for log in range(5)])
    assert found.value == pytest.approx(math.exp(2))
    assert found.low == pytest.approx(math.exp(0.2))
    assert found.high == pytest.approx(math.exp(3.8))


def test_repetitions_count_by_their_median():
    assert geometric_interval([[1.0, 100.0, 2.0]]).value == pytest.approx(2.0)
    # The middle of an even number is taken of the logarithms: √(2 · 8) = 4.
    assert geometric_interval([[8.0, 1.0, 2.0, 9.0]]).value == pytest.approx(4.0)


def test_one_document_has_no_bounds_however_often_it_is_repeated():
    found = geometric_interval([[3.0]])
    assert (found.value, found.low, found.high, found.n) == (pytest.approx(3.0), None, None, 1)
    found = geometric_interval([[3.0, 2.0, 4.0]])
    assert (found.value, found.low, found.high, found.n) == (pytest.approx(3.0), None, None, 1)


def test_equal_documents_give_a_point():
    assert geometric_interval([[2.0], [2.0], [2.0]]).low == pytest.approx(2.0, rel=1e-15)
    assert geometric_interval([[2.0], [2.0], [2.0]]).high == pytest.approx(2.0, rel=1e-15)


def test_noise_between_repetitions_widens_the_interval():
    steady = geometric_interval([[2.0] * 3, [2.0] * 3, [2.0] * 3])
    noisy = geometric_interval([[1.0, 2.0, 4.0]] * 3)
    assert noisy.value == pytest.approx(steady.value)
    assert noisy.low < 0.99 * steady.low
    assert noisy.high > 1.01 * steady.high


def test_skewed_repetitions_do_not_push_the_value_out():
    # Redrawn medians of (0, 0, 1) are 1 in 7 of 27 draws, so their mean is far above the median.
    found = geometric_interval([[1.0, 1.0, math.e]] * 50)
    assert found.low <= found.value == 1.0 <= found.high


@pytest.mark.parametrize("ratios", [[], [[]], [[1.0], []], [[0.0]], [[-1.0]], [[math.inf]]])
def test_what_has_no_logarithm_is_refused(ratios):
    with pytest.raises(ValueError, match="ratio"):
        geometric_interval(ratios)


def test_not_a_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        geometric_interval([[math.nan]])


@given(DOCUMENTS)
@few
def test_the_interval_holds_its_value_and_stays_inside_the_data(documents):
    found = geometric_interval(documents)
    ratios = [ratio for repetitions in documents for ratio in repetitions]
    assert found.low <= found.value <= found.high
    assert min(ratios) * (1 - 1e-12) <= found.low
    assert found.high <= max(ratios) * (1 + 1e-12)
    assert found.n == len(documents)


@given(DOCUMENTS, st.floats(0.1, 10.0))
@few
def test_another_unit_scales_the_interval(documents, unit):
    found = geometric_interval(documents)
    scaled = geometric_interval([[unit * ratio for ratio in reps] for reps in documents])
    assert scaled.value == pytest.approx(unit * found.value, rel=1e-9)
    assert scaled.low == pytest.approx(unit * found.low, rel=1e-9)
    assert scaled.high == pytest.approx(unit * found.high, rel=1e-9)


@given(DOCUMENTS, st.randoms(use_true_random=False))
@few
def test_the_order_of_documents_and_repetitions_is_nothing(documents, random):
    found = geometric_interval(documents)
    shuffled = [random.sample(repetitions, len(repetitions)) for repetitions in documents]
    random.shuffle(shuffled)
    assert geometric_interval(shuffled) == found


@given(DOCUMENTS)
@few
def test_the_inverse_ratio_has_the_inverse_value(documents):
    found = geometric_interval(documents)
    inverse = geometric_interval([[1 / ratio for ratio in reps] for reps in documents])
    assert inverse.value == pytest.approx(1 / found.value, rel=1e-9)


def test_many_repetitions_are_drawn_in_blocks():
    documents = [[1.0 + 0.001 * place for place in range(150)]] * 12
    found = geometric_interval(documents)
    assert found.low < found.value < found.high


def coverage(documents, experiments, interval_of):
    """Share of experiments whose interval holds the true mean, 0 in logarithms."""
    rng = np.random.default_rng(7)
    hits = 0
    for logs in rng.normal(0.0, 0.2, (experiments, documents)):
        low, high = interval_of(logs)
        hits += low <= 0.0 <= high
    return hits / experiments


def expanded(logs):
    found = geometric_interval([[math.exp(log)] for log in logs])
    return math.log(found.low), math.log(found.high)


def ordinary(logs):
    draws = np.random.default_rng(8).choice(logs, (2000, len(logs))).mean(axis=1)
    return np.quantile(draws, [0.025, 0.975])


def test_five_documents_are_covered_where_ordinary_percentiles_are_not():
    ours, theirs = coverage(5, 400, expanded), coverage(5, 400, ordinary)
    assert 0.88 <= ours <= 0.99
    assert theirs < 0.88
    assert ours > theirs + 0.05


def test_three_documents_can_promise_no_more_than_their_range():
    # All three on one side of the truth: 2 · (1/2)³ = 25 % of all cases.
    assert coverage(3, 400, expanded) == pytest.approx(0.75, abs=0.06)


def test_sums_worked_by_hand():
    # (8 + 1) / (2 + 4) = 1.5; redrawn: first twice 16 / 4 = 4, second twice 2 / 8 = 0.25
    assert ratio_of_sums_interval([(8, 2), (1, 4)]) == Interval(value=1.5, low=0.25, high=4.0, n=2)


def test_sums_over_one_document_none_and_one_without_steps():
    assert ratio_of_sums_interval([(6, 4)]) == Interval(value=1.5, low=None, high=None, n=1)
    assert ratio_of_sums_interval([(6, 4), (0, 0)]) == Interval(value=1.5, low=None, high=None, n=1)
    assert ratio_of_sums_interval([(0, 0)]) is None
    assert ratio_of_sums_interval([]) is None


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 100)), min_size=2, max_size=8),
    st.randoms(use_true_random=False),
)
@few
def test_sums_stay_inside_the_documents_in_any_order(pairs, random):
    found = ratio_of_sums_interval(pairs)
    each = [top / bottom for top, bottom in pairs]
    assert found.low <= found.value <= found.high
    assert min(each) * (1 - 1e-12) <= found.low
    assert found.high <= max(each) * (1 + 1e-12)
    assert ratio_of_sums_interval(random.sample(pairs, len(pairs))) == found
