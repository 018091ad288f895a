"""Judgements as they are said: their pairs, thumbs, scores and notes, and what is refused."""

import math

import pytest

from d3po_core.candidates.judgement import Judgement


@pytest.mark.parametrize(
    "judgement, pairs",
    [
        ({"pairs": [[0, 1], [2, 1]]}, {(0, 1), (2, 1)}),
        ({"pairs": [[0, 1], [0, 1]]}, {(0, 1)}),
        ({"ties": [[0, 1]]}, set()),
        ({"ranking": [2, [0, 1]]}, {(2, 0), (2, 1)}),
        ({"scores": [1, 3, 2]}, {(1, 0), (1, 2), (2, 0)}),
        ({"scores": [[1, 1], [2, 0], [0, 0]]}, {(0, 2), (1, 2)}),
        ({"pairs": []}, set()),
    ],
)
def test_each_kind_of_judgement(judgement, pairs):
    result = Judgement.parse(judgement, 3).pairs
    assert set(result) == pairs and len(result) == len(pairs)


@pytest.mark.parametrize(
    "judgement, pairs",
    [
        ({"pairs": [[1, 0]], "ties": [[0, 1]]}, {(1, 0)}),
        ({"pairs": [[1, 0]], "ranking": [0, 1, 2]}, {(1, 0), (0, 2), (1, 2)}),
        ({"pairs": [[1, 0]], "scores": [3, 2, 1]}, {(1, 0), (0, 2), (1, 2)}),
        ({"ties": [[1, 0]], "ranking": [0, 1, 2]}, {(0, 2), (1, 2)}),
        ({"ties": [[1, 0]], "scores": [3, 2, 1]}, {(0, 2), (1, 2)}),
        ({"ranking": [1, 0], "scores": [3, 2, 1]}, {(1, 0), (0, 2), (1, 2)}),
        ({"pairs": [[1, 0]], "good": [0], "bad": [1, 2]}, {(1, 0), (0, 2)}),
        ({"ties": [[1, 0]], "good": [0], "bad": [1, 2]}, {(0, 2)}),
        ({"ranking": [1, 0], "good": [0, 2], "bad": [1]}, {(1, 0), (2, 1)}),
        ({"scores": [1, 2, None], "good": [0, 2], "bad": [1]}, {(1, 0), (2, 1)}),
    ],
)
def test_pairs_go_before_ties_before_ranking_before_scores_before_thumbs(judgement, pairs):
    result = Judgement.parse(judgement, 3).pairs
    assert set(result) == pairs and len(result) == len(pairs)


@pytest.mark.parametrize(
    "judgement, message",
    [
        (None, "must be an object"),
        ([[0, 1]], "must be an object"),
        ({}, "must be an object"),
        ({"winner": 0}, "no field 'winner'"),
        ({"pairs": [[0, 3]]}, "no candidate 3: this set has 3, numbered 0 to 2"),
        ({"pairs": [[-1, 0]]}, "no candidate -1"),
        ({"pairs": [[0, True]]}, "no candidate True"),
        ({"pairs": [[0, 1.0]]}, "no candidate 1.0"),
        ({"pairs": [["0", "1"]]}, "no candidate '0'"),
        ({"pairs": [[0]]}, r"\[0\] is not a pair"),
        ({"pairs": [[0, 1, 2]]}, r"\[0, 1, 2\] is not a pair"),
        ({"pairs": [[1, 1]]}, r"\[1, 1\] is not a pair of two different"),
        ({"pairs": [0, 1]}, "cannot be read"),
        ({"pairs": None}, "cannot be read"),
        ({"pairs": [[0, 1], [1, 0]]}, "0 and 1|1 and 0"),
        ({"ties": [[0, 5]]}, "no candidate 5"),
        ({"ranking": [0, 7]}, "no candidate 7"),
        ({"ranking": [[0, 7]]}, "no candidate 7"),
        ({"ranking": [7]}, "no candidate 7"),
        ({"ranking": [0, 1, 0]}, "two different"),
        ({"ranking": 4}, "cannot be read"),
        ({"scores": [1, 2]}, "2 scores for 3 candidates"),
        ({"scores": [1, 2, math.nan]}, "not a finite number"),
        ({"scores": ["high", 1, 2]}, "cannot be read"),
        ({"scores": [[1, 2], [1], [2]]}, "cannot be read"),
        ({"scores": 3}, "cannot be read"),
    ],
)
def test_a_malformed_judgement_is_an_error_that_names_the_problem(judgement, message):
    with pytest.raises(ValueError, match=message):
        Judgement.parse(judgement, 3)


@pytest.mark.parametrize(
    "unfinished", [None, {"open": True}, {"pairs": [[0, 1]], "open": True}, {"pairs": 7, "open": 1}]
)
def test_what_was_not_said_or_is_still_open_is_no_finished_judgement_whatever_it_is(unfinished):
    assert Judgement.parse_finished(unfinished, 3) is None


@pytest.mark.parametrize("said", [{"pairs": [[0, 1]], "open": False}, {"pairs": []}, {"bad": [0, 1]}])
def test_what_is_not_open_is_finished(said):
    assert Judgement.parse_finished(said, 3) == Judgement.parse(said, 3)
    assert Judgement.parse(said, 3).is_finished and not Judgement.parse(said | {"open": True}, 3).is_finished


@pytest.mark.parametrize("malformed", [{}, [], "picks", 0])
def test_what_is_no_judgement_is_not_taken_for_an_unfinished_one(malformed):
    with pytest.raises(ValueError, match="must be an object"):
        Judgement.parse_finished(malformed, 3)


def test_a_judgement_keeps_what_was_said_as_it_was_said():
    said = {"log": {"z": 1, "a": [2]}, "ranking": [2, [0, 1]], "bad": [0], "pairs": []}
    assert Judgement.parse(said, 3).as_json is said
    assert list(said) == ["log", "ranking", "bad", "pairs"] and said["ranking"] == [2, [0, 1]]


def test_a_judgement_of_pairs_says_just_these():
    judgement = Judgement.of_pairs([(2, 0), (1, 0)], 3)
    assert (judgement.pairs, judgement.as_json) == (((2, 0), (1, 0)), {"pairs": [[2, 0], [1, 0]]})
    with pytest.raises(ValueError, match="no candidate 3"):
        Judgement.of_pairs([(3, 0)], 3)


@pytest.mark.parametrize(
    "judgement, pairs",
    [
        ({"bad": [0, 1, 2]}, set()),
        ({"pairs": [[1, 0]], "bad": [0]}, {(1, 0)}),
        ({"pairs": [[1, 0]], "log": {"pairs": [[0, 1, 1]], "mode": None}}, {(1, 0)}),
        ({"pairs": [[1, 0]], "open": True}, {(1, 0)}),
        ({"log": {}}, set()),
    ],
)
def test_bad_candidates_and_the_judges_notes_make_no_pair(judgement, pairs):
    assert set(Judgement.parse(judgement, 3).pairs) == pairs


@pytest.mark.parametrize(
    "scores, pairs",
    [
        ([None, 2, None, 5], {(3, 1)}),
        ([None, None, None, None], set()),
        ([1, None, 3, 2], {(2, 0), (2, 3), (3, 0)}),
        ([[1, 1], None, [0, 0], [2, 0]], {(0, 2), (3, 2)}),
        ([], set()),
    ],
)
def test_a_candidate_without_a_score_is_in_no_pair(scores, pairs):
    assert set(Judgement.parse({"scores": scores}, 4).pairs) == pairs


@pytest.mark.parametrize(
    "judgement, message",
    [
        ({"bad": [3]}, "no candidate 3"),
        ({"bad": [True]}, "no candidate True"),
        ({"bad": [[0]]}, "no candidate"),
        ({"bad": 0}, "cannot be read"),
        ({"scores": [None, None]}, "2 scores for 3 candidates"),
        ({"scores": [None, 1, math.inf]}, "not a finite number"),
        ({"scores": [1, 2, 10**400]}, "cannot be read"),
        ({"scores": [None, 1, [1]]}, "cannot be read"),
        ({"good": [3]}, "no candidate 3"),
        ({"good": [1.0], "bad": []}, "no candidate 1.0"),
        ({"good": [[0]], "bad": [[0]]}, "no candidate"),
        ({"good": None}, "cannot be read"),
        ({"good": [0, 2, 1], "bad": [2]}, "candidate 2 is called both good and bad"),
    ],
)
def test_a_malformed_field_that_makes_no_pair_is_an_error_too(judgement, message):
    with pytest.raises(ValueError, match=message):
        Judgement.parse(judgement, 3)


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "log, message",
    [
        ({"pairs": [[0, 1, math.inf]]}, "not a finite number"),
        ([{"a": [math.nan]}], "not a finite number"),
        (-math.inf, "not a finite number"),
        (nested(101), "nested more than 100 deep"),
        (nested(100_000), "nested more than 100 deep"),
        ({"a": "x\ud800"}, "no whole text"),
        ({"\udfff": 1}, "no whole text"),
        (["x"] * 3 + ["\ud83d"], "no whole text"),
    ],
    ids=range(8),
)
def test_notes_that_could_not_be_written_down_again_are_refused(log, message):
    with pytest.raises(ValueError, match=f"log.*{message}"):
        Judgement.parse({"pairs": [[0, 1]], "log": log}, 3)


@pytest.mark.parametrize(
    "log", [None, {}, [], "words", 7, 10**400, {"a": [[1.5, None], {"b": True}]}, nested(99), "\U0001f408"]
)
def test_any_other_notes_are_the_judges_own(log):
    assert Judgement.parse({"pairs": [[0, 1]], "log": log}, 3).pairs == ((0, 1),)


@pytest.mark.parametrize("field", ["pairs", "ties", "ranking", "scores", "good", "bad"])
@pytest.mark.parametrize("value", ["", "012", {}, {"0": 1, "1": 2, "2": 3}])
def test_text_and_objects_are_not_taken_for_lists(field, value):
    with pytest.raises(ValueError, match="cannot be read"):
        Judgement.parse({field: value}, 3)


@pytest.mark.parametrize("score", ["1", "inf", True])
def test_only_numbers_are_scores(score):
    with pytest.raises(ValueError, match="cannot be read"):
        Judgement.parse({"scores": [0.5, 1, score]}, 3)
    with pytest.raises(ValueError, match="cannot be read"):
        Judgement.parse({"scores": [[0.5, 1], [1, 2], [1, score]]}, 3)


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    "judgement",
    [
        {"ranking": [0] * 10_000},
        {"ranking": [[]] * 100_000 + [3]},
        {"scores": [1] * 10_000},
        {"good": [0] * 100_000, "bad": [1] * 100_000 + [3]},
    ],
)
def test_a_judgement_far_too_long_is_refused_at_once(judgement):
    with pytest.raises(ValueError):
        Judgement.parse(judgement, 3)


# --- thumbs ---


@pytest.mark.parametrize(
    "judgement, pairs, liked",
    [
        ({"good": [2, 0], "bad": [1]}, {(2, 1), (0, 1)}, (True, False, True, None)),
        ({"good": [3, 3], "bad": [0, 0]}, {(3, 0)}, (False, None, None, True)),
        ({"good": [0, 1, 2, 3], "bad": []}, set(), (True, True, True, True)),
        ({"bad": [1, 3]}, set(), (None, False, None, False)),
        ({"ranking": [[0, 1, 2, 3]], "bad": [0, 1, 2, 3]}, set(), (False,) * 4),
        ({"pairs": [[2, 0]], "ties": [[0, 1]], "bad": [0, 1]}, {(2, 0)}, (False, False, None, None)),
        ({"good": [], "bad": []}, set(), ()),
        ({"pairs": [[0, 1]]}, {(0, 1)}, ()),
    ],
)
def test_each_good_candidate_is_preferred_to_each_bad_one_and_all_have_labels(judgement, pairs, liked):
    made = Judgement.parse(judgement, 4)
    assert set(made.pairs) == pairs and len(made.pairs) == len(pairs)
    assert made.liked == liked


@pytest.mark.parametrize(
    "judgement, candidates, scores",
    [
        ({"scores": [5, None, 2.5]}, 3, (5, None, 2.5)),
        ({"scores": [None, None]}, 2, ()),
        ({"scores": []}, 2, ()),
        ({"scores": [[1, 2], [2, 1]]}, 2, ()),
        ({"pairs": [[0, 1]]}, 2, ()),
    ],
)
def test_scores_are_plain_numbers_or_none_at_all(judgement, candidates, scores):
    assert Judgement.parse(judgement, candidates).scores == scores
