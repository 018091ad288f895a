"""Several scores of a candidate, joined to pairs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from d3po_core.candidates.joining import LEXICAL, PARETO, SUM, joined, sums
from d3po_core.candidates.judgement import pairs_from_scores

FEW = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 3)), elements=st.integers(-3, 3))
JOININGS = [PARETO, SUM, LEXICAL]


def of(name, scores, least=None, weights=None):
    count = np.shape(scores)[1]
    return sorted(joined(name, scores, least or [0] * count, weights or [1] * count))


@given(FEW)
def test_without_a_least_difference_none_worse_is_pareto_dominance(scores):
    assert of(PARETO, scores) == sorted(pairs_from_scores(scores))


@given(FEW)
def test_the_first_that_differs_is_the_order_of_tuples(scores):
    rows = [tuple(row) for row in scores]
    expected = [(a, b) for a, one in enumerate(rows) for b, other in enumerate(rows) if one > other]
    assert of(LEXICAL, scores) == expected


@given(arrays(np.float64, 5, elements=st.floats(-5, 5)), st.sampled_from(JOININGS))
def test_one_score_alone_is_compared_in_the_same_way_by_all(scores, name):
    # differences that a division by the spread rounds away are none for the sum
    scores = scores.round(6)
    assert of(name, scores[:, None]) == sorted(pairs_from_scores(scores))


def test_a_sum_counts_standard_deviations_by_weight():
    scores = np.array([[0.0, 100.0], [1.0, 0.0], [2.0, 20.0]])
    z = (scores - scores.mean(0)) / scores.std(0)
    for weights in ([1, 1], [1, 3], [5, 1], [1, 0]):
        total = z @ weights
        assert of(SUM, scores, weights=weights) == sorted(pairs_from_scores(total))
        np.testing.assert_allclose(sums(scores, weights), total, atol=1e-12)
    assert of(SUM, scores * [1e3, 1e-3], weights=[1, 3]) == of(SUM, scores, weights=[1, 3])


@pytest.mark.parametrize("name", JOININGS)
def test_a_difference_of_the_least_or_less_is_none(name):
    scores = [[0.0, 0.0], [0.25, 1.0], [0.5, -2.0]]
    assert of(name, scores, [0.5, 3.0]) == []
    assert of(name, scores, [0.25, 3.0]) == [(2, 0)]


def test_a_small_difference_the_other_way_does_not_stop_agreement():
    scores = [[0.0, 0.1], [5.0, 0.0]]
    assert of(PARETO, scores) == [] and of(PARETO, scores, [0, 0.1]) == [(1, 0)]
    assert of(LEXICAL, scores[::-1], [10, 0]) == [(1, 0)], "the second decides where the first ties"


@pytest.mark.parametrize("name", JOININGS)
@pytest.mark.parametrize("gap", [math.nan, math.inf])
def test_who_lacks_a_score_is_compared_with_none(name, gap):
    scores = np.array([[0.0, 0.0], [9.0, gap], [1.0, 1.0]])
    assert of(name, scores) == [(2, 0)]
    total = sums(scores, [1, 1])
    assert np.isnan(total[1]) and total[2] == -total[0] == 2
    assert of(name, scores[1:2]) == [] and np.isnan(sums(scores[1:2], [1, 1])).all()


def test_equal_scores_make_no_pair_and_no_sum():
    scores = np.full((3, 2), 0.7)
    assert all(of(name, scores) == [] for name in JOININGS)
    assert sums(scores, [1, 2]) == pytest.approx([0, 0, 0], abs=1e-12)


@pytest.mark.parametrize("name", JOININGS)
def test_differences_whose_squares_are_0_still_count(name):
    scores = [[1e-200], [3e-200], [2e-200]]
    assert of(name, scores) == [(1, 0), (1, 2), (2, 0)]
    assert np.isfinite(sums(scores, [1])).all()
