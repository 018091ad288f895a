"""Pairs of scores and of rankings, and pairs that go round in a circle."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3po_core.candidates.judgement import cycle_in, dominates, pairs_from_ranking, pairs_from_scores


def test_scores_make_a_pair_of_every_two_that_differ():
    assert set(pairs_from_scores([3, 1, 2])) == {(0, 1), (0, 2), (2, 1)}


def test_equal_scores_make_no_pair():
    assert pairs_from_scores([2.0, 2.0]) == []
    assert set(pairs_from_scores([1, 5, 1])) == {(1, 0), (1, 2)}


def test_several_objectives_make_a_pair_only_where_one_candidate_dominates():
    scores = np.array([[3, 3], [1, 1], [5, 0], [3, 1]])
    assert set(pairs_from_scores(scores)) == {(0, 1), (0, 3), (3, 1)}
    assert pairs_from_scores([[1, 2], [2, 1]]) == [] and pairs_from_scores([[1, 2], [1, 2]]) == []


def test_dominates_needs_no_worse_in_all_and_better_in_one():
    assert dominates([1, 2], [1, 1]) and dominates(2, 1)
    assert not dominates([1, 2], [1, 2]) and not dominates([2, 1], [1, 2]) and not dominates(1, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39, -1e308])
def test_a_score_that_is_not_finite_in_float32_is_an_error(bad):
    with pytest.raises(ValueError, match="not a finite number"):
        pairs_from_scores([1.0, bad])
    with pytest.raises(ValueError, match="not a finite number"):
        pairs_from_scores([[1.0, 2.0], [bad, 0.0]])


def strictly_better(a, b):
    a, b = (x if isinstance(x, list) else [x] for x in (a, b))
    return not any(x < y for x, y in zip(a, b)) and a != b


number = st.integers(-3, 3).map(lambda n: n / 2)


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.lists(number, max_size=7),
        st.integers(1, 3).flatmap(lambda k: st.lists(st.lists(number, min_size=k, max_size=k), max_size=7)),
    )
)
def test_pairs_from_scores_are_the_strict_order_of_the_scores(scores):
    pairs = pairs_from_scores(scores)
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == {
        (a, b)
        for a in range(len(scores))
        for b in range(len(scores))
        if strictly_better(scores[a], scores[b])
    }
    assert not {(b, a) for a, b in pairs} & set(pairs)
    assert {(a, d) for a, b in pairs for c, d in pairs if b == c} <= set(pairs)


def test_a_ranking_makes_all_pairs_best_first():
    assert pairs_from_ranking([2, 0, 1]) == [(2, 0), (2, 1), (0, 1)]


def test_candidates_that_tie_in_a_ranking_make_no_pair_among_themselves():
    assert set(pairs_from_ranking([[3, 1], 0, [2, 4]])) == {
        (3, 0),
        (1, 0),
        (3, 2),
        (3, 4),
        (1, 2),
        (1, 4),
        (0, 2),
        (0, 4),
    }
    assert pairs_from_ranking([[0, 1, 2]]) == [] == pairs_from_ranking([])


# --- picks that go round in a circle ---


@pytest.mark.parametrize("pairs", [[], [(0, 1)], [(0, 1), (1, 2), (0, 2)], [(2, 0), (2, 1), (1, 3), (0, 3)]])
def test_pairs_that_have_an_order_hold_no_cycle(pairs):
    assert cycle_in(pairs) == []


@pytest.mark.parametrize(
    "pairs, cycle",
    [
        ([(0, 1), (1, 2), (2, 0)], [0, 1, 2]),
        ([(2, 0), (1, 2), (0, 1), (0, 3)], [0, 1, 2]),
        ([(3, 1), (1, 3), (0, 1)], [1, 3]),
    ],
)
def test_a_cycle_begins_with_its_first_candidate_and_each_is_picked_over_the_next(pairs, cycle):
    assert cycle_in(pairs) == cycle


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda pair: pair[0] != pair[1]), max_size=10
    )
)
def test_a_cycle_is_made_of_the_pairs_and_there_is_none_where_each_can_be_put_in_a_row(pairs):
    cycle = cycle_in(pairs)
    assert all(pair in pairs for pair in zip(cycle, cycle[1:] + cycle[:1]))
    left = set(pairs)  # take away who is not beaten by anyone, until nobody is left
    while free := {w for w, _ in left} - {l for _, l in left}:
        left = {pair for pair in left if pair[0] not in free}
    assert bool(cycle) == bool(left)
