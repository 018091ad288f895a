"""Judging in the browser: by mouse, by keyboard, every mode, undo."""

import json
import math

import pytest

from d3po_core.candidates.judgement import Judgement


def only(values):
    (value,) = values
    return value


def by_number(left, right):
    return "1" if left > right else "2"


def pairs(picker, candidates):
    return sorted(Judgement.parse(only(picker.value.values()), candidates).pairs)


@pytest.mark.frontend
def test_a_session_by_mouse_only(picker, renderer):
    picker = picker(renderer=renderer, candidates=4)
    picker.run()
    wanted = {}
    for act in ("pane", "pane", "left", "tie", "skip", "bad"):
        left, right = picker.question()
        if act == "pane":
            picker.click_pane(1)
            wanted[right, left] = True
        else:
            picker.click(act)
            wanted[left, right] = act
    assert picker.kind == "done" and "This set is judged" in picker.text
    assert pairs(picker, 4) == sorted(pair for pair, how in wanted.items() if how in (True, "left"))
    judgement = only(picker.value.values())
    ties = [set(pair) for pair, how in wanted.items() if how in ("tie", "bad")]
    assert sorted(map(sorted, judgement["ties"])) == sorted(map(sorted, ties))
    assert judgement["bad"] == sorted(only(pair for pair, how in wanted.items() if how == "bad"))
    assert "open" not in judgement


@pytest.mark.frontend
def test_a_session_by_keyboard_only(picker, renderer):
    picker = picker(renderer=renderer, candidates=4)
    picker.run()
    picker.focus()
    wanted = []
    for key in ("1", "2", "ArrowLeft", "ArrowRight", "3", "s"):
        left, right = picker.question()
        picker.press(key)
        if key in ("1", "ArrowLeft"):
            wanted.append((left, right))
        elif key in ("2", "ArrowRight"):
            wanted.append((right, left))
    assert picker.kind == "done" and pairs(picker, 4) == sorted(wanted)


@pytest.mark.parametrize("mode", ["pairs", "ranking", "best", "stars", "thumbs"])
def test_undo_goes_back_to_the_start_and_the_same_questions_come_again(picker, mode):
    picker = picker(candidates=4, mode=mode)
    picker.run()
    picker.focus()
    asked = []
    while picker.kind != "done":
        asked.append(picker.question())
        picker.press("2")
    finished = picker.value
    assert picker.part("undo").is_enabled()
    for before in reversed(asked):
        picker.press("u")
        assert picker.question() == before
    assert picker.value == {} and picker.part("undo").is_disabled()
    for before in asked:
        assert picker.question() == before
        picker.press("2")
    assert picker.value == finished


@pytest.mark.parametrize("candidates", [2, 4, 7])
def test_all_pairs_asks_for_every_pair_once(picker, candidates):
    picker = picker(candidates=candidates, mode="pairs")
    picker.run()
    picker.focus()
    asked = picker.answer_as(by_number)
    assert len({frozenset(pair) for pair in asked}) == len(asked) == candidates * (candidates - 1) // 2
    assert pairs(picker, candidates) == [(w, l) for w in range(candidates) for l in range(w)]


@pytest.mark.parametrize("candidates", [2, 4, 7])
def test_a_ranking_asks_few_questions_and_implies_the_rest(picker, candidates):
    picker = picker(candidates=candidates, mode="ranking")
    picker.run()
    picker.focus()
    asked = picker.answer_as(by_number)
    assert len(asked) <= math.ceil(candidates * math.log2(candidates))
    assert only(picker.value.values())["ranking"] == list(reversed(range(candidates)))
    assert pairs(picker, candidates) == [(w, l) for w in range(candidates) for l in range(w)]


@pytest.mark.parametrize("candidates", [2, 4, 7])
def test_best_of_n_makes_a_pair_with_every_other(picker, candidates):
    picker = picker(candidates=candidates, mode="best")
    picker.run()
    picker.focus()
    shown = picker.question()
    assert sorted(shown) == list(range(candidates))
    picker.press("2")
    assert pairs(picker, candidates) == [
        (shown[1], other) for other in range(candidates) if other != shown[1]
    ]


@pytest.mark.parametrize("candidates", [2, 4, 7])
def test_stars_make_a_pair_of_every_two_that_differ(picker, candidates):
    picker = picker(candidates=candidates, mode="stars")
    picker.run()
    picker.focus()
    stars = {}
    while picker.kind == "star":
        candidate = only(picker.question())
        stars[candidate] = 1 + candidate % 3
        picker.press(str(stars[candidate]))
    assert only(picker.value.values())["scores"] == [stars[i] for i in range(candidates)]
    assert pairs(picker, candidates) == sorted((a, b) for a in stars for b in stars if stars[a] > stars[b])


@pytest.mark.parametrize("hand", ["mouse", "keyboard"])
def test_thumbs_say_of_each_candidate_whether_it_is_good(picker, renderer, hand):
    picker = picker(renderer=renderer, candidates=7, mode="thumbs")
    picker.run()
    picker.focus()
    ways = [
        ("skip", "s"),
        ("up", "1"),
        ("down", "2"),
        ("up", "ArrowUp"),
        ("down", "ArrowDown"),
        ("up", "1"),
        ("up", "1"),
    ]
    said = {}
    for number, (act, key) in enumerate(ways, 1):
        candidate = only(picker.question())
        assert f"Question {number} of 7" in picker.text
        picker.click(act) if hand == "mouse" else picker.press(key)
        said[candidate] = {"up": True, "down": False, "skip": None}[act]
        judgement = only(picker.value.values())
        assert judgement.get("open", False) is (number < 7)
        assert Judgement.parse(judgement, 7).liked == (
            tuple(said.get(i) for i in range(7)) if number > 1 else ()
        )
    assert picker.kind == "done" and sorted(said) == list(range(7))
    good, bad = ([i for i in range(7) if said[i] is thumb] for thumb in (True, False))
    assert (judgement["good"], judgement["bad"]) == (good, bad) and set(judgement) == {"good", "bad", "log"}
    assert pairs(picker, 7) == [(g, b) for g in good for b in bad]


def test_a_set_of_which_all_is_good_or_all_is_bad_is_judged_without_a_pair(picker):
    picker = picker(candidates=3, sets=2, mode="thumbs")
    picker.run()
    picker.focus()
    for key in ("1", "1", "1", "2", "2", "2"):
        picker.question()
        picker.press(key)
    judged = [Judgement.parse(said, 3) for said in picker.value.values()]
    assert sorted(judgement.liked for judgement in judged) == [(False,) * 3, (True,) * 3]
    assert not any("open" in judgement.as_json or judgement.pairs for judgement in judged)
    assert "This set is judged" in picker.text


def test_a_thumb_can_be_turned_and_thumbs_of_another_hand_are_shown(picker):
    picker = picker(candidates=3, mode="thumbs")
    picker.run()
    picker.js(
        "(node, text) => { node.widgets[0].value = text }",
        json.dumps({"sets": {only(picker.sets)["set"]: {"good": [2], "bad": [0, 1]}}}),
    )
    picker.until(lambda: picker.kind == "done")
    picker.drawn()
    badges = picker.root.locator(".d3po-badge").evaluate_all(
        "(all) => all.map((e) => e.firstChild.className)"
    )
    assert picker.shown()[0] == 2 and ["up" in badge for badge in badges] == [True, False, False]
    picker.focus()
    picker.press("[")
    candidate = only(picker.question())
    now = "up" if candidate == 2 else "down"
    assert f"answered: thumb {now}" in picker.text
    assert picker.part(now).get_attribute("aria-pressed") == "true"
    assert picker.root.locator(f".d3po-pane .d3po-thumb-{now}").count() == 1
    picker.press({"up": "ArrowDown", "down": "ArrowUp"}[now])
    assert Judgement.parse(only(picker.value.values()), 3).liked[candidate] is (now == "down")


def test_a_click_on_a_candidate_that_stands_alone_is_no_answer(picker):
    for mode in ("stars", "thumbs"):
        one = picker(candidates=2, mode=mode)
        one.run()
        one.question()
        one.click_pane(0)
        assert one.value == {}


def test_a_ranking_with_ties_and_skips_implies_only_what_was_said(picker):
    picker = picker(candidates=4, mode="ranking")
    picker.run()
    picker.focus()
    said = {}

    def prefer(left, right):
        key = "s" if {left, right} == {0, 1} else "3" if {left, right} == {2, 3} else by_number(left, right)
        said[left, right] = key
        return key

    picker.answer_as(prefer)
    judgement = only(picker.value.values())
    made = pairs(picker, 4)
    assert all(w > l for w, l in made) and (1, 0) not in made and (3, 2) not in made
    direct = {(l, r) if key == "1" else (r, l) for (l, r), key in said.items() if key in "12"}
    assert direct <= set(made) and "open" not in judgement


def test_going_back_changes_an_answer_and_a_ranking_stays_without_contradiction(picker):
    picker = picker(candidates=7, mode="ranking")
    picker.run()
    picker.focus()
    picker.answer_as(by_number)
    for _ in range(3):
        picker.press("[", "[", "[")
        left, right = picker.question()
        picker.press(by_number(right, left))
        picker.answer_as(by_number)
    assert sorted(only(picker.value.values())["ranking"]) == list(range(7))


def test_sides_are_shuffled_and_the_true_order_is_stored(picker):
    picker = picker(candidates=7)
    picker.run()
    picker.focus()
    asked = picker.answer_as(lambda left, right: "1")
    assert {left < right for left, right in asked} == {True, False}
    assert 5 <= sum(left < right for left, right in asked) <= 16
    assert pairs(picker, 7) == sorted(asked)


def test_another_seed_shows_other_sides_and_the_same_seed_the_same(picker):
    orders = []
    for seed in (0, 0, 1):
        one = picker(candidates=7, seed=0)
        one.js("(node, seed) => { node.properties.seed = seed; node.d3po.view.reset() }", seed)
        one.run()
        one.focus()
        orders.append(one.answer_as(by_number))
    assert orders[0] == orders[1] != orders[2]


def test_any_question_can_be_gone_to_and_answered_again(picker):
    picker = picker(candidates=4)
    picker.run()
    picker.focus()
    asked = picker.answer_as(lambda left, right: "1")
    assert "look again" in picker.text
    picker.part("slider").fill("2")
    assert picker.question() == list(asked[2])
    assert picker.root.locator(".d3po-pane").nth(0).get_attribute("aria-pressed") == "true"
    picker.focus()
    picker.press("2")
    left, right = asked[2]
    assert (right, left) in pairs(picker, 4) and (left, right) not in pairs(picker, 4)
    assert picker.question() == list(asked[3])
