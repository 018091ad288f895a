"""How often something is seen on two sides: the paired difference's interval against exact chances."""

import math

import numpy as np
import pytest
import scipy.stats

from d3po_core.training.rates import PairedRates

N = 24


@pytest.fixture(scope="module")
def tables():
    """Every table of N pairs, [tables, 4], with its interval of the difference, [tables] each."""
    cells = [
        (both, first, second, N - both - first - second)
        for both in range(N + 1)
        for first in range(N + 1 - both)
        for second in range(N + 1 - both - first)
    ]
    _, low, high = zip(*(PairedRates(*cell).difference for cell in cells))
    return np.array(cells), np.array(low), np.array(high)


@pytest.mark.parametrize(
    "chances",
    [
        (0.02, 0.28, 0.02, 0.68),
        (0.2, 0.1, 0.1, 0.6),
        (0.05, 0.05, 0.05, 0.85),
        (0.0, 0.1, 0.02, 0.88),
        (0.4, 0.3, 0.05, 0.25),
        (0.05, 0.4, 0.4, 0.15),
    ],
)
def test_the_differences_interval_holds_the_true_one_in_95_of_100_sessions(tables, chances):
    """Exactly: by the chance of every table that there can be."""
    cells, low, high = tables
    chance = scipy.stats.multinomial(N, chances).pmf(cells)
    truth = chances[2] - chances[1]
    assert chance.sum() == pytest.approx(1)
    assert 0.93 < chance[(low <= truth) & (truth <= high)].sum() < 0.997


def test_with_many_pairs_it_is_the_interval_by_the_standard_error():
    rates = PairedRates(200_000, 150_000, 50_000, 600_000)
    n, gone, new = rates.pairs, 150_000, 50_000
    error = math.sqrt(gone + new - (gone - new) ** 2 / n) / n
    d, low, high = rates.difference
    assert d == pytest.approx(-0.1)
    assert (low - d, high - d) == pytest.approx((-1.959964 * error, 1.959964 * error), rel=2e-3)


def test_each_sides_rate_is_counted_and_has_wilsons_interval():
    first, second = np.array([1, 1, 1, 0, 0, 0, 0], bool), np.array([1, 0, 0, 1, 0, 0, 0], bool)
    rates = PairedRates.of(first, second)
    assert rates == PairedRates(both=1, only_first=2, only_second=1, neither=3)
    assert rates.counts == (3, 2) and rates.pairs == 7
    for count, share, interval in zip(rates.counts, rates.shares, rates.intervals):
        exact = scipy.stats.binomtest(count, 7).proportion_ci(method="wilson")
        assert share == count / 7 and interval == pytest.approx((exact.low, exact.high), abs=1e-6)


@pytest.mark.parametrize("cells", [(5, 1, 2, 8), (1, 6, 5, 3), (3, 3, 3, 4)])
def test_the_sides_correlation_is_pearsons_less_its_continuity(cells):
    kinds = np.repeat([(1, 1), (1, 0), (0, 1), (0, 0)], cells, axis=0)
    pearson, variances = np.corrcoef(kinds.T)[0, 1], kinds.var(0)
    less = min(max(pearson, 0), 1 / (2 * sum(cells) * np.sqrt(variances.prod())))
    assert PairedRates(*cells).correlation == pytest.approx(pearson - less)


@pytest.mark.parametrize("cells", [(0, 0, 0, 5), (5, 0, 0, 0), (0, 5, 0, 0), (0, 0, 5, 0), (0, 1, 0, 0)])
def test_where_a_side_shows_it_always_or_never_there_is_an_interval_too(cells):
    d, low, high = PairedRates(*cells).difference
    assert -1 <= low <= d <= high <= 1 and low < high
