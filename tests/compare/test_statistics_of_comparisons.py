"""Intervals, Welch's test and rank correlation, beside SciPy's."""

import math

import pytest
import torch

from supernet.compare import half_interval, kendall_tau, welch
from supernet.errors import TrainingError

stats = pytest.importorskip("scipy.stats", reason="SciPy is what these are held to")


def drawn(seed, count, spread=1.0):
    return (spread * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).tolist()


@pytest.mark.parametrize("count", [2, 3, 5, 40])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_interval_of_a_mean_is_students(count, confidence):
    values = drawn(count, count)
    low, high = stats.t.interval(confidence, count - 1, loc=0, scale=stats.sem(values))
    assert half_interval(values, confidence) == pytest.approx((high - low) / 2, rel=1e-9)


@pytest.mark.parametrize(("counts", "spread"), [((3, 3), 1.0), ((2, 7), 5.0), ((3, 3), 1e-3), ((50, 400), 0.3)])
def test_the_difference_of_two_means_is_welchs(counts, spread):
    one, other = drawn(1, counts[0]), [x + 1 for x in drawn(2, counts[1], spread)]
    known = stats.ttest_ind(one, other, equal_var=False)
    found = welch(one, other)
    assert found.p_value == pytest.approx(known.pvalue, rel=1e-6, abs=1e-10)
    interval = known.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_one_value_alone_has_no_interval():
    assert math.isnan(half_interval([1.0]))
    assert math.isnan(welch([1.0], [2.0, 3.0]).p_value)
    assert welch([1.0], [2.0, 4.0]).mean == -2.0


def test_numbers_that_do_not_vary_differ_surely_or_not_at_all():
    assert welch([2.0, 2.0], [1.0, 1.0]) == (1.0, 1.0, 1.0, 0.0)
    assert welch([1.0, 1.0], [1.0, 1.0]) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_kendalls_tau_b(ties):
    one, other = drawn(3, 30), [x + y for x, y in zip(drawn(3, 30), drawn(4, 30), strict=True)]
    if ties:
        one, other = [round(x) for x in one], [round(x) for x in other]
    assert kendall_tau(one, other) == pytest.approx(stats.kendalltau(one, other).statistic)


def test_a_constant_has_no_rank_correlation_and_different_lengths_are_refused():
    assert math.isnan(kendall_tau([1, 1], [1, 2]))
    with pytest.raises(TrainingError, match="not of 1 and 2"):
        kendall_tau([1], [1, 2])
