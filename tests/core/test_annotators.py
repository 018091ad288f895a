"""Several annotators' judgements of the same candidates, in a dataset."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3po_core.dataset.annotators import join_liked
from d3po_core.dataset.store import Dataset
from tests.core.datasets import judge


@pytest.fixture
def dataset(tmp_path):
    with Dataset(tmp_path / "taste") as dataset:
        yield dataset


def test_annotators_are_joined_as_asked(dataset):
    dataset.add_set("s", candidates=4)
    judge(dataset, "s", {"pairs": [[0, 1], [2, 3], [0, 2]]}, "anna")
    judge(dataset, "s", {"pairs": [[0, 1], [3, 2]], "ties": [[0, 2]]}, "ben")
    judge(dataset, "s", {"pairs": [[1, 0], [3, 2]]}, "cleo")
    assert dataset.pairs("s") == [(0, 1), (0, 2), (1, 0), (2, 3), (3, 2)]
    assert dataset.pairs("s", joining="majority") == [(0, 1), (0, 2), (3, 2)]
    assert dataset.pairs("s", joining="unanimous") == [(0, 2)]
    assert dataset.pairs("s", ["anna", "cleo"], "majority") == [(0, 2)]
    assert dataset.pairs("s", ["ben", "cleo"], "unanimous") == [(3, 2)]
    assert dataset.pairs("s", "anna") == [(0, 1), (0, 2), (2, 3)]
    assert dataset.pairs("s", ["nobody"]) == [] and dataset.pairs("s", []) == []
    with pytest.raises(ValueError, match="no joining 'mean'"):
        dataset.pairs("s", joining="mean")


@pytest.mark.parametrize(
    "joining, liked",
    [
        ("all", (True, False, None, None, True)),
        ("majority", (True, False, None, None, True)),
        ("unanimous", (True, None, None, None, True)),
    ],
)
def test_thumbs_are_joined_as_asked(dataset, joining, liked):
    dataset.add_set("s", candidates=5)
    judge(dataset, "s", {"good": [0, 1, 2], "bad": []}, "anna")
    judge(dataset, "s", {"good": [0], "bad": [1, 2]}, "ben")
    judge(dataset, "s", {"good": [4], "bad": [1]}, "cleo")
    judge(dataset, "s", {"pairs": [[3, 0]]}, "dora")
    judge(dataset, "s", {"good": [3], "open": True}, "emil")
    assert dataset.liked("s", joining=joining) == liked
    assert dataset.liked("s", "anna", joining) == (True, True, True, None, None)
    assert dataset.liked("s", ["dora", "emil"], joining) == () == dataset.liked("s", [], joining)


thumb = st.sampled_from([True, False, None])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(lambda n: st.lists(st.one_of(st.just(()), st.tuples(*[thumb] * n)), max_size=5))
)
def test_a_joined_thumb_is_the_sign_of_the_votes_or_what_nobody_contradicts(judged):
    votes = np.array(
        [[{True: 1, False: -1, None: 0}[liked] for liked in thumbs] for thumbs in judged if thumbs]
    )
    sign = {1: True, -1: False, 0: None}
    by_majority = tuple(sign[int(s)] for s in np.sign(votes.sum(0))) if len(votes) else ()
    contradicted = (votes.max(0) > 0) & (votes.min(0) < 0) if len(votes) else ()
    assert join_liked(judged) == join_liked(judged, "majority") == by_majority
    assert join_liked(judged, "unanimous") == tuple(
        None if split else sign[int(s)]
        for split, s in zip(contradicted, np.sign(votes.sum(0)) if len(votes) else ())
    )
    with pytest.raises(ValueError, match="no joining 'mean'"):
        join_liked(judged, "mean")


def test_scores_are_those_of_the_one_annotator_who_counts(dataset):
    dataset.add_set("s", candidates=3)
    assert dataset.scores("s") == ()
    judge(dataset, "s", {"scores": [5, None, 1]}, "anna")
    assert dataset.scores("s") == (5, None, 1) and dataset.scores("s", ["ben"]) == ()
    judge(dataset, "s", {"scores": [1, 2, 3]}, "ben")
    assert dataset.scores("s") == () and dataset.scores("s", "ben") == (1, 2, 3)


@pytest.mark.parametrize(
    "judgement, ties",
    [
        (None, 0),
        ({"pairs": [[0, 1]]}, 0),
        ({"ties": [[0, 1], [1, 0]]}, 1),
        ({"ranking": [[0, 1, 2], 3]}, 3),
        ({"scores": [1, 1, None, None]}, 1),
        ({"scores": [1, 1, 1, 2], "pairs": [[0, 1]]}, 2),
        ({"ties": [[0, 1]], "ranking": [0, [1, 2]]}, 2),
        ({"bad": [0, 1]}, 0),
        ({"scores": [[1, 2], [1, 2], [0, 3], [3, 0]]}, 1),
    ],
)
def test_ties_are_the_pairs_that_a_judgement_calls_equal(dataset, judgement, ties):
    dataset.add_set("s", candidates=4)
    judge(dataset, "s", judgement, "anna")
    assert dataset.statistics()["ties"] == ties


def test_thumbs_are_counted_by_what_each_annotator_said_last(dataset):
    for name in "ab":
        dataset.add_set(name, candidates=4)
    judge(dataset, "a", {"good": [0, 1, 2, 3]}, "anna")
    judge(dataset, "a", {"good": [1, 1], "bad": [0, 2]}, "anna")
    judge(dataset, "a", {"pairs": [[0, 1]], "ties": [[2, 3]], "bad": [2, 3]}, "ben")
    judge(dataset, "b", {"good": [0], "open": True}, "ben")
    judge(dataset, "b", {"pairs": [[0, 1]], "log": {"good": "bad"}}, "anna")
    assert dataset.statistics()["thumbs"] == {"up": 1, "down": 4}


def test_agreement_is_the_share_of_annotator_pairs_that_agree(dataset):
    for name in "ab":
        dataset.add_set(name, candidates=4)
    judge(dataset, "a", {"pairs": [[0, 1], [2, 3]]}, "anna")
    judge(dataset, "a", {"pairs": [[0, 1]], "ties": [[2, 3]]}, "ben")
    assert dataset.statistics()["agreement"] == 1.0, "a tie neither agrees nor disagrees"
    judge(dataset, "a", {"pairs": [[1, 0]]}, "cleo")
    judge(dataset, "b", {"pairs": [[0, 1]]}, "anna")
    assert dataset.statistics()["agreement"] == 1 / 3, "anna and ben, anna and cleo, ben and cleo"
    judge(dataset, "b", {"pairs": [[0, 1]]}, "cleo")
    assert dataset.statistics()["agreement"] == 2 / 4
