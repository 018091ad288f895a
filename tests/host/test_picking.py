"""The picker through the API: which picks count for which candidates."""

import json

import pytest

from tests.host.graphs import choosing, found, picked, probe, says, train_nodes, with_prompts


def shown(host, graph):
    """What the picker tells of its sets."""
    told = host.run(graph)["outputs"]["judge"]["d3po"]
    return [{key: each[key] for key in ("set", "candidates", "judged", "text")} for each in told]


@pytest.mark.parametrize(
    "judgement, pairs",
    [
        ({"pairs": [[2, 0]]}, [[2, 0]]),
        ({"ranking": [1, [0, 2]]}, [[1, 0], [1, 2]]),
        ({"scores": [0.1, 0.5, 0.1]}, [[1, 0], [1, 2]]),
        ({"ranking": [0, 1, 2], "ties": [[0, 1]]}, [[0, 2], [1, 2]]),
    ],
)
def test_picks_become_the_pairs_that_they_imply(host, judgement, pairs):
    name = shown(host, picked(seed=51, candidates=3))[0]["set"]
    graph = picked(json.dumps({"version": 1, "sets": {name: judgement}}), seed=51, candidates=3)
    look = found(host.run(graph | {"look": probe("Preferences", "judge")}), "look")
    assert sorted(look["pairs"]) == pairs and look["set_id"] == name and look["source"] == "picks"


@pytest.mark.parametrize(
    "judgement, pairs, scores, liked",
    [
        ({"good": [2], "bad": [0, 1]}, [[2, 0], [2, 1]], [], [False, False, True]),
        ({"good": [0, 1, 2], "bad": []}, [], [], [True] * 3),
        ({"pairs": [[1, 0]], "ties": [[0, 2]], "bad": [0, 2]}, [[1, 0]], [], [False, None, False]),
        ({"scores": [4, None, 2]}, [[0, 2]], [4, None, 2], []),
        ({"scores": [[4, 1], [3, 0], [5, 0]]}, [[0, 1], [2, 1]], [], []),
    ],
)
def test_scores_and_thumbs_are_handed_on_with_the_pairs(host, judgement, pairs, scores, liked):
    graph = choosing(candidates=3, seed=56)
    name = shown(host, graph)[0]["set"]
    graph = choosing(json.dumps({"sets": {name: judgement}}), candidates=3, seed=56)
    look = found(host.run(graph), "look")
    assert (sorted(look["pairs"]), look["scores"], look["liked"]) == (pairs, scores, liked)


def test_picks_of_one_set_are_never_used_for_another(host):
    (one,), (other,) = shown(host, picked(seed=52)), shown(host, picked(seed=53))
    picks = json.dumps({"sets": {one["set"]: {"pairs": [[0, 1]]}}})
    assert one["set"] != other["set"]
    assert shown(host, picked(picks, seed=53)) == [other]
    assert shown(host, picked(picks, seed=52)) == [one | {"judged": True}]


def test_nothing_trains_until_every_set_of_a_list_is_judged(host):
    def graph(picks):
        graph = with_prompts(picked(picks), ["a cat", "a dog"])
        return graph | {**train_nodes(), "losses": probe("LossMap", "train", 2)}

    told = shown(host, graph(""))
    sets = [set_["set"] for set_ in told]
    assert len(set(sets)) == 2 and {set_["text"] for set_ in told} == {"a cat", "a dog"}
    half = host.run(graph(json.dumps({"sets": {sets[0]: {"pairs": [[0, 1]]}}})))
    assert [told["judged"] for told in half["outputs"]["judge"]["d3po"]] == [True, False]
    assert not {"train", "losses"} & set(half["outputs"])
    whole = host.run(graph(json.dumps({"sets": {name: {"pairs": [[0, 1]]} for name in sets}})))
    assert len(found(whole, "losses")["loss"]) == 2


@pytest.mark.parametrize(
    "judgement", [{"ranking": [2, 1, 0]}, {"good": [2], "bad": [0]}, {"good": [2]}, {"bad": [0, 1]}]
)
def test_the_preferred_and_the_rejected_image_are_handed_on(host, judgement):
    (told,) = shown(host, picked(seed=54, candidates=3))
    graph = picked(json.dumps({"sets": {told["set"]: judgement}}), seed=54, candidates=3)
    for name, slot in (("preferred", 1), ("rejected", 2)):
        graph[name] = {"class_type": "PreviewImage", "inputs": {"images": ["judge", slot]}}
    outputs = host.run(graph)["outputs"]
    candidates = [host.image(image).tobytes() for image in outputs["judge"]["images"]]
    assert host.image(outputs["preferred"]["images"][0]).tobytes() == candidates[2]
    assert host.image(outputs["rejected"]["images"][0]).tobytes() == candidates[0]


@pytest.mark.parametrize("picks", ["[" * 100_000, '{"sets": ' * 100_000, "[]", "{", '{"sets": []}'])
def test_what_is_no_picks_value_is_refused(failure, picks):
    says(
        failure(choosing(picks)),
        "D3POPairPreference",
        "picks: this is not a picks value",
        "empty it to start again",
    )


@pytest.mark.parametrize("log", ['{"pairs": [[0, 1, 1e999]]}', "[" * 500 + "]" * 500, '"\\ud800"'])
def test_picks_that_could_not_be_written_down_again_are_refused(host, failure, log):
    name = shown(host, choosing(seed=57))[0]["set"]
    picks = '{"sets": {"%s": {"pairs": [[0, 1]], "log": %s}}}' % (name, log)
    says(failure(choosing(picks, seed=57)), "D3POPairPreference", f"picks: set {name}: the log ")


def names_of(entry):
    return [[image["filename"] for image in each["images"]] for each in entry["outputs"]["judge"]["d3po"]]


def test_the_previews_of_images_that_are_as_they_were_are_not_made_again(host, base):
    first = host.run(choosing(sets=2, seed=58))
    picks = json.dumps({"sets": {first["outputs"]["judge"]["d3po"][0]["set"]: {"pairs": [[0, 1]]}}})
    assert names_of(host.run(choosing(picks, sets=2, seed=58))) == names_of(first)
    (base / "temp" / names_of(first)[1][2]).unlink()
    again = host.run(choosing(picks + " ", sets=2, seed=58))
    assert names_of(again)[0] == names_of(first)[0] and not {*names_of(again)[1]} & {*names_of(first)[1]}
    assert all(host.image(image).size == (64, 64) for image in again["outputs"]["judge"]["images"])


def test_other_images_of_the_same_set_have_previews_of_their_own(host):
    graph = choosing(seed=59)
    first = host.run(graph)
    graph["invert"] = {"class_type": "ImageInvert", "inputs": {"image": ["candidates", 1]}}
    graph["judge"]["inputs"]["images"] = ["invert", 0]
    other = host.run(graph)
    assert shown(host, graph)[0]["set"] == first["outputs"]["judge"]["d3po"][0]["set"]
    assert (
        host.image(other["outputs"]["judge"]["images"][0]).tobytes()
        != host.image(first["outputs"]["judge"]["images"][0]).tobytes()
    )
