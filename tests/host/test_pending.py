"""What a picker that lacks picks tells the page, and that nothing waits after any exit."""

import json

import pytest

from tests.host.answers import encode, valid
from tests.host.graphs import (
    answer,
    answer_body,
    begin,
    choosing,
    live,
    messages,
    node,
    page,
    until,
    watch,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left_waiting")


def stopped(host, prompt_id):
    """What is told of a run out of the history, or None."""
    return next((told for told in host.get("/d3po/pending") if told["prompt_id"] == prompt_id), None)


def views(host, told):
    """The bytes of every image of every set."""
    return [[host.image(image).tobytes() for image in each["images"]] for each in told["sets"]]


def test_a_waiting_node_is_told_with_its_sets_and_images(host):
    told = begin(host, choosing(sets=2, candidates=3, when_missing="wait"), **page("the-workflow"))
    assert told.keys() == {"prompt_id", "node", "workflow", "waiting", "sets"}
    assert (told["node"], told["workflow"], told["waiting"]) == ("judge", "the-workflow", True)
    assert [(each.keys(), each["candidates"]) for each in told["sets"]] == [
        ({"set", "candidates", "images", "text"}, 3)
    ] * 2
    images = views(host, told)
    assert [len(each) for each in images] == [3, 3] and len(set(sum(images, []))) == 6
    answer(host, told, {"ranking": [0, 1, 2]})
    host.wait(told["prompt_id"], 30)
    assert stopped(host, told["prompt_id"]) is None


def test_a_stopped_run_is_told_out_of_the_history(host):
    prompt_id = host.queue(choosing(sets=2, candidates=3), "a-page", page("the-workflow"))
    entry = host.wait(prompt_id, 30)
    told = stopped(host, prompt_id)
    assert (told["node"], told["workflow"], told["waiting"]) == ("judge", "the-workflow", False)
    assert told["sets"] == [
        {key: each[key] for key in ("set", "candidates", "images", "text")}
        for each in entry["outputs"]["judge"]["d3po"]
    ]
    assert [each["workflow"] for each in entry["outputs"]["judge"]["d3po"]] == ["the-workflow"] * 2
    assert len(set(sum(views(host, told), []))) == 6
    host.post("/history", {"delete": [prompt_id]})
    assert stopped(host, prompt_id) is None


def test_a_set_that_was_judged_is_not_told(host):
    graph = choosing(sets=2, seed=201)
    prompt_id = host.queue(graph)
    names = [each["set"] for each in host.wait(prompt_id, 30)["outputs"]["judge"]["d3po"]]
    assert [each["set"] for each in stopped(host, prompt_id)["sets"]] == names
    left = {1: [names[1]], 2: []}
    for judged in (1, 2):
        picks = json.dumps({"sets": {name: {"pairs": [[0, 1]]} for name in names[:judged]}})
        prompt_id = host.queue(choosing(picks, sets=2, seed=201))
        host.wait(prompt_id, 30)
        told = stopped(host, prompt_id)
        assert [each["set"] for each in (told or {"sets": []})["sets"]] == left[judged]


@pytest.mark.parametrize(
    "extra_data",
    [
        {"extra_pnginfo": {"workflow": "a text"}},
        {"extra_pnginfo": {"workflow": [1]}},
        {"extra_pnginfo": {"workflow": None}},
        {"extra_pnginfo": None},
        {"extra_pnginfo": {}},
        {"extra_pnginfo": "a text"},
        {"extra_pnginfo": [1]},
        {},
    ],
)
def test_whatever_other_programs_send_along_with_a_run_pending_answers(host, extra_data):
    graph = {
        "candidates": node("TestCandidates", seed=0, candidates=2, sets=1, size=64),
        "mask": node("ImageToMask", image=["candidates", 1], channel="red"),
        "show": node("MaskPreview", mask=["mask", 0]),
    }
    prompt_id = host.queue(graph, None, extra_data)
    host.wait(prompt_id, 30)
    try:
        assert stopped(host, prompt_id) is None
    finally:
        host.post("/history", {"delete": [prompt_id]})


# --- every exit ---


def test_nothing_waits_after_an_answer(host, waiting):
    answer(host, waiting, {"pairs": [[0, 1]]})
    host.wait(waiting["prompt_id"], 30)
    assert not live(host)


def test_nothing_waits_after_an_interrupt(host, client, waiting):
    host.interrupt()
    host.wait(waiting["prompt_id"], 30)
    assert not live(host) and stopped(host, waiting["prompt_id"]) is None
    assert client.post(encode(valid(waiting)))[0] == 404


def test_nothing_waits_after_the_time_limit(host, client):
    prompt_id = host.queue(choosing(when_missing="wait", time_limit=0.01), "a-page", page())
    host.wait(prompt_id, 30)
    told = stopped(host, prompt_id)
    assert not live(host) and told["waiting"] is False
    assert client.post(encode(answer_body(told, {"pairs": []})))[0] == 404


def test_nothing_waits_after_an_error_elsewhere_in_the_graph(host):
    graph = choosing(when_missing="wait")
    graph |= {
        "one": node("ImageFromBatch", image=["candidates", 1], batch_index=0, length=1),
        "broken": node("D3POPairPreference", trajectory=["candidates", 0], images=["one", 0], picks=""),
    }
    entry, seen = watch(host, graph)
    assert "d3po.waiting" in [message["type"] for message in seen]
    assert messages(entry, "execution_error")[0]["node_id"] == "broken"
    until(lambda: not live(host), 5)
