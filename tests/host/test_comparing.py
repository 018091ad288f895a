"""Pictures of two sides in pairs, and a blind session over them."""

import json

import numpy as np
import pytest
import scipy.stats

from tests.host.graphs import node, says


def two_sides(sets=6, candidates=1, size=32, seed=7):
    """A list of batches of stripes, and the same inverted."""
    return {
        "a": node("TestCandidates", seed=seed, candidates=candidates, sets=sets, size=size),
        "b": node("ImageInvert", image=["a", 1]),
    }


def compared(b=("b", 0), **sides):
    return two_sides(**sides) | {
        "compare": node("D3POCompare", images_a=["a", 1], images_b=list(b), name_a="base", name_b="LoRA"),
        "grid": node("PreviewImage", images=["compare", 0]),
    }


def session(picks=None, b=("b", 0), **sides):
    """A blind session; `picks` has what is said of pairs by their names."""
    graph = two_sides(**sides)
    graph["session"] = node(
        "D3POWinRate", images_a=["a", 1], images_b=list(b), picks=json.dumps({"sets": picks or {}}),
        name_a="base", name_b="LoRA")  # fmt: skip
    for slot, name in enumerate(("win_rate", "low", "high")):
        graph[name] = node("PreviewAny", source=["session", slot])
    return graph


def pixels(host, image):
    return np.asarray(host.image(image).convert("RGB")).astype(int)


def test_pairs_are_shown_in_order_and_stand_beside_each_other_in_the_grid(host):
    outputs = host.run(compared(sets=2, candidates=2))["outputs"]
    pairs = [[pixels(host, picture) for picture in pair] for pair in outputs["compare"]["compared"]]
    assert len(pairs) == 4 and outputs["compare"]["names"] == ["base", "LoRA"]
    assert all(np.abs(a + b - 255).max() <= 1 and np.abs(a - b).max() > 20 for a, b in pairs)
    (image,) = outputs["grid"]["images"]
    grid = pixels(host, image)
    assert grid.shape == (4 * 32 + 3 * 2, 64, 3)
    for row, (a, b) in enumerate(pairs):
        strip = grid[34 * row : 34 * row + 32]
        assert (strip[:, :32] == a).all() and (strip[:, 32:] == b).all()


def test_a_grid_of_many_is_about_as_wide_as_it_is_high(host):
    (image,) = host.run(compared(sets=7, candidates=1))["outputs"]["grid"]["images"]
    assert host.image(image).size == (2 * 64 + 2, 4 * 32 + 3 * 2)


def test_two_sides_that_do_not_match_are_told_apart(failure):
    graph = compared() | {"more": node("TestCandidates", seed=7, candidates=1, sets=5, size=32)}
    graph["compare"]["inputs"]["images_b"] = ["more", 1]
    says(failure(graph), "D3POCompare", "there are 6 pictures of the one side and 5 of the other")
    graph["more"]["inputs"] |= {"sets": 6, "size": 48}
    says(failure(graph), "D3POCompare", "pair 1 is of a picture of 32x32 and one of 48x48")


ANSWERS = {
    "b": {"pairs": [[1, 0]]},
    "a": {"pairs": [[0, 1]]},
    "tie": {"pairs": [], "ties": [[0, 1]]},
    "bad": {"pairs": [], "ties": [[0, 1]], "bad": [0, 1]},
    "skip": {"pairs": []},
}


def names(outputs):
    return [told["set"] for told in outputs["session"]["d3po"]]


def answered(names, said):
    return {name: ANSWERS[answer] for name, answer in zip(names, said)}


def test_a_session_stops_for_answers_and_then_gives_the_win_rate(host):
    outputs = host.run(session())["outputs"]
    asked = names(outputs)
    assert len(set(asked)) == 6 and "when all 6 pairs are judged" in outputs["session"]["text"][0]
    assert not {"win_rate", "low", "high"} & set(outputs)
    outputs = host.run(session(answered(asked, ["b", "b", "a"])))["outputs"]
    assert [told["judged"] for told in outputs["session"]["d3po"]] == [True] * 3 + [False] * 3
    assert "all 6 pairs" in outputs["session"]["text"][0] and "win_rate" not in outputs

    outputs = host.run(session(answered(asked, ["b", "b", "a", "tie", "bad", "skip"])))["outputs"]
    rate, low, high = (float(outputs[name]["text"][0]) for name in ("win_rate", "low", "high"))
    exact = scipy.stats.binomtest(3, 5).proportion_ci(method="wilson")
    assert rate == 0.6 and (low, high) == pytest.approx((exact.low, exact.high), abs=1e-6)
    (text,) = outputs["session"]["text"]
    assert text.startswith(
        "LoRA 2, base 1, no difference 2\nwin rate of LoRA: 60% of 5 answers (95% interval"
    )
    assert "ties count half" in text and "Not beyond chance" in text


def test_answers_stay_with_their_pictures_in_a_longer_session_that_ends_once_it_is_clear(host):
    """The more so as no other side's or seed's pictures take them."""
    first = names(host.run(session())["outputs"])
    longer = names(host.run(session(sets=12))["outputs"])
    assert longer[:6] == first and len(set(longer)) == 12
    outputs = host.run(session(answered(longer, "b" * 7), sets=12))["outputs"]
    assert "all 12 pairs" in outputs["session"]["text"][0] and "win_rate" not in outputs
    outputs = host.run(session(answered(longer, "b" * 8), sets=12))["outputs"]
    assert "Enough answers: you prefer LoRA" in outputs["session"]["text"][0]
    assert float(outputs["win_rate"]["text"][0]) == 1
    outputs = host.run(session(answered(longer, "a" * 8), sets=12))["outputs"]
    assert "Enough answers: you prefer base" in outputs["session"]["text"][0]
    other = host.run(session(answered(longer, "b" * 12), seed=8))["outputs"]
    assert not any(told["judged"] for told in other["session"]["d3po"])
    swapped = session(answered(longer, "b" * 12), sets=6)
    swapped["session"]["inputs"] |= {"images_a": ["b", 0], "images_b": ["a", 1]}
    assert not any(told["judged"] for told in host.run(swapped)["outputs"]["session"]["d3po"])


def test_files_do_not_tell_their_side(host, base):
    """Neither by the order in which they were written nor by their names."""
    outputs = host.run(session(sets=40, size=8, seed=9))["outputs"]
    pairs = [[image["filename"] for image in told["images"]] for told in outputs["session"]["d3po"]]
    when = {path.name: path.stat().st_mtime_ns for path in (base / "temp").glob("*.png")}
    for rank in (when.get, str):
        assert 5 < sum(rank(a) < rank(b) for a, b in pairs) < 35
    again = host.run(session({"x": ANSWERS["a"]}, sets=40, size=8, seed=9))["outputs"]["session"]["d3po"]
    assert [[image["filename"] for image in told["images"]] for told in again] == pairs


def test_pictures_that_are_the_same_are_not_asked_about(host):
    outputs = host.run(session(b=("a", 1)))["outputs"]
    assert outputs["session"]["d3po"] == [] and "Is the LoRA on the model" in outputs["session"]["text"][0]
    assert "win_rate" not in outputs


def test_a_value_that_is_no_picks_is_refused(failure):
    graph = session()
    graph["session"]["inputs"]["picks"] = "{"
    says(failure(graph), "D3POWinRate", "picks: this is not a picks value")
