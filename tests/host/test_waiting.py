"""Runs that wait inside the picker for picks, and runs that stop there."""

import asyncio
import json
import uuid

import aiohttp
import pytest

from tests.host.graphs import (
    answer,
    awaited,
    begin,
    cached_nodes,
    choosing,
    found,
    live,
    messages,
    node,
    page,
    says,
    until,
    watch,
)

WAITING = dict(when_missing="wait")


pytestmark = pytest.mark.usefixtures("nothing_is_left_waiting")


def pairs(entry):
    looks = found(entry, "look")
    return [sorted(map(tuple, look["pairs"])) for look in (looks if isinstance(looks, list) else [looks])]


def told_sets(entry):
    return [(each["set"], each["judged"]) for each in entry["outputs"]["judge"]["d3po"]]


class Judge:
    """An `on_message` that judges every set of a waiting picker the same way, once `when` was seen too."""

    def __init__(self, host, judgement, when=lambda message: True):
        self.host, self.judgement, self.when, self.seen, self.told = host, judgement, when, False, None

    def __call__(self, message):
        self.seen = self.seen or self.when(message)
        if message["type"] == "d3po.waiting":
            self.told = message["data"]
        if self.told and self.seen:
            answer(self.host, self.told, self.judgement)
            self.told = None


def data(seen, event):
    """What one message of a kind said."""
    (message,) = [message for message in seen if message["type"] == event]
    return message["data"]


# --- who could pick ---


@pytest.mark.parametrize(
    "client_id, extra_data",
    [
        (None, None),
        (None, page()),
        ("a-page-that-is-not-there", None),
        ("a-page-that-is-not-there", {"extra_pnginfo": {}}),
    ],
)
def test_a_run_that_no_browser_shows_does_not_wait(host, client_id, extra_data):
    graph = choosing(**WAITING)
    entry = host.wait(host.queue(graph, client_id, extra_data), 30)
    assert "judge" not in entry["outputs"]
    (error,) = messages(entry, "execution_error")
    ((name, _),) = told_sets(host.run(graph | {"judge": choosing()["judge"]}))
    assert error["node_id"] == "judge" and error["exception_message"].strip() == (
        'when_missing: it is set to "wait", but no browser shows this run, so nobody could pick. Run it from '
        f'ComfyUI\'s page, give the picks of set {name}, or choose "stop here"'
    )


def test_a_run_of_a_page_that_was_closed_waits(host):
    told = begin(host, choosing(**WAITING))
    answer(host, told, {"pairs": [[3, 0]]})
    assert pairs(host.wait(told["prompt_id"], 30)) == [[(3, 0)]]


def test_a_run_that_lacks_no_picks_needs_no_browser(host):
    seed = 301
    (name,) = [name for name, _ in told_sets(host.run(choosing(seed=seed)))]
    picks = json.dumps({"sets": {name: {"pairs": [[1, 0]]}}})
    assert pairs(host.run(choosing(picks, seed=seed, **WAITING))) == [[(1, 0)]]


# --- waiting and going on ---


def test_the_browser_is_told_and_its_picks_go_on_in_the_same_run(host):
    entry, seen = watch(host, choosing(**WAITING), Judge(host, {"ranking": [2, [0, 1], 3]}), timeout=30)
    waiting, closed = data(seen, "d3po.waiting"), data(seen, "d3po.closed")
    ((name, judged),) = told_sets(entry)
    assert judged and pairs(entry) == [[(0, 3), (1, 3), (2, 0), (2, 1), (2, 3)]]
    assert waiting == {
        "prompt_id": entry["prompt"][1],
        "node": "judge",
        "workflow": None,
        "waiting": True,
        "sets": [{"set": name, "candidates": 4, "images": entry["outputs"]["judge"]["images"], "text": ""}],
    }
    assert closed == {
        "prompt_id": entry["prompt"][1],
        "node": "judge",
        "workflow": None,
        "picks": {name: {"ranking": [2, [0, 1], 3]}},
    }
    order = [message["type"] for message in seen]
    assert order.index("d3po.waiting") < order.index("d3po.closed") < order.index("execution_success")


def test_every_browser_is_told_with_the_workflows_id(host):
    async def listen():
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{host.url}/ws?clientId=another-page") as socket:
                told = await asyncio.to_thread(begin, host, choosing(**WAITING), **page("the-workflow"))
                await asyncio.to_thread(answer, host, told, {"pairs": []})
                async with asyncio.timeout(30):
                    seen = []
                    async for frame in socket:
                        message = json.loads(frame.data)
                        if message["type"].startswith("d3po."):
                            seen.append(
                                (message["type"], message["data"]["prompt_id"], message["data"]["workflow"])
                            )
                        if message["type"] == "d3po.closed":
                            return told["prompt_id"], seen

    prompt_id, seen = awaited(listen())
    assert seen == [("d3po.waiting", prompt_id, "the-workflow"), ("d3po.closed", prompt_id, "the-workflow")]
    host.wait(prompt_id, 30)


def test_only_the_sets_that_lack_picks_are_asked_for(host):
    names = [name for name, _ in told_sets(host.run(choosing(sets=3, seed=302)))]
    picks = json.dumps({"sets": {names[1]: {"pairs": [[3, 2]]}}})
    told = begin(host, choosing(picks, sets=3, seed=302, **WAITING))
    assert [each["set"] for each in told["sets"]] == [names[0], names[2]]
    answer(host, told, {"pairs": [[0, 1]]})
    entry = host.wait(told["prompt_id"], 30)
    assert pairs(entry) == [[(0, 1)], [(3, 2)], [(0, 1)]]
    assert told_sets(entry) == [(name, True) for name in names]


def test_other_branches_run_while_a_picker_waits(host):
    graph = choosing(**WAITING)
    graph |= {
        "inverted": node("ImageInvert", image=["candidates", 1]),
        "show": node("PreviewImage", images=["inverted", 0]),
    }
    shown = lambda message: message["type"] == "executed" and message["data"]["node"] == "show"
    entry, seen = watch(host, graph, Judge(host, {"pairs": [[0, 1]]}, when=shown), timeout=30)
    order = [("show" if shown(message) else message["type"]) for message in seen]
    assert order.index("d3po.waiting") < order.index("show") < order.index("d3po.closed")
    assert pairs(entry) == [[(0, 1)]]


def test_two_waiting_runs_are_answered_one_after_the_other(host):
    later = choosing(**WAITING)
    first = begin(host, choosing(**WAITING))
    prompt_id = host.queue(later, uuid.uuid4().hex, page())
    assert list(live(host)) == [first["prompt_id"]]
    answer(host, first, {"pairs": [[0, 1]]})
    second = until(lambda: live(host).get(prompt_id))
    assert pairs(host.wait(first["prompt_id"], 30)) == [[(0, 1)]] and list(live(host)) == [prompt_id]
    answer(host, second, {"pairs": [[1, 0]]})
    assert pairs(host.wait(prompt_id, 30)) == [[(1, 0)]]


def test_two_pickers_of_one_run_wait_side_by_side(host):
    graph = choosing(**WAITING)
    other = choosing(**WAITING)
    graph |= {
        "candidates 2": other["candidates"],
        "judge 2": other["judge"]
        | {
            "inputs": other["judge"]["inputs"]
            | {"trajectory": ["candidates 2", 0], "images": ["candidates 2", 1]}
        },
    }
    prompt_id = host.queue(graph, uuid.uuid4().hex, page())

    def both():
        told = [each for each in host.get("/d3po/pending") if each["waiting"]]
        return told if len(told) == 2 else None

    for told in until(both):
        answer(host, told, {"pairs": [[0, 1]] if told["node"] == "judge" else [[1, 0]]})
    entry = host.wait(prompt_id, 30)
    assert pairs(entry) == [[(0, 1)]] and entry["outputs"]["judge 2"]["d3po"][0]["judged"]


def test_a_picker_that_waited_leaves_another_with_equal_picks_in_the_cache(host):
    graph, other = choosing(**WAITING), choosing()
    graph |= {
        "candidates 2": other["candidates"],
        "judge 2": other["judge"]
        | {
            "inputs": other["judge"]["inputs"]
            | {"trajectory": ["candidates 2", 0], "images": ["candidates 2", 1]}
        },
    }
    for run in range(2):
        told = begin(host, graph)
        answer(host, told, {"pairs": [[0, 1]]})
        entry = host.wait(told["prompt_id"], 30)
        assert ("judge 2" in cached_nodes(entry)) == (run == 1) and "judge" not in cached_nodes(entry)


# --- ends without an answer ---


@pytest.mark.parametrize("by_id", [False, True])
def test_an_interrupt_ends_a_waiting_run_and_the_next_one_runs(host, by_id):
    told = begin(host, choosing(**WAITING))
    following = host.queue(choosing())
    host.post("/interrupt", {"prompt_id": told["prompt_id"]} if by_id else {})
    entry = host.wait(told["prompt_id"], 30)
    assert not live(host)
    assert (
        messages(entry, "execution_interrupted")[0]["node_id"] == "judge" and "look" not in entry["outputs"]
    )
    assert host.wait(following, 5)["status"]["status_str"] == "success"


def test_an_interrupt_of_another_run_leaves_a_waiting_one_alone(host):
    told = begin(host, choosing(**WAITING))
    following = host.queue(choosing())
    host.post("/interrupt", {"prompt_id": following})
    answer(host, told, {"pairs": [[0, 1]]})
    assert pairs(host.wait(told["prompt_id"], 30)) == [[(0, 1)]]
    host.wait(following, 30)


def test_the_run_stops_here_after_the_time_limit(host):
    entry, seen = watch(host, choosing(time_limit=0.02, **WAITING), timeout=30)
    assert data(seen, "d3po.closed")["picks"] == {}
    ((_, judged),) = told_sets(entry)
    assert entry["status"]["status_str"] == "success" and not judged and "look" not in entry["outputs"]
    assert len(entry["outputs"]["judge"]["images"]) == 4 and not messages(entry, "execution_error")
    (start,), (end,) = messages(entry, "execution_start"), messages(entry, "execution_success")
    assert 1.2 <= (end["timestamp"] - start["timestamp"]) / 1000 < 10


def test_an_answer_within_the_time_limit_counts(host):
    told = begin(host, choosing(time_limit=5.0, **WAITING))
    answer(host, told, {"pairs": [[2, 1]]})
    assert pairs(host.wait(told["prompt_id"], 30)) == [[(2, 1)]]


# --- stopping ---


def test_a_run_that_stops_shows_its_candidates_and_goes_on_from_the_cache(host):
    stopped = host.run(choosing(seed=303))
    ((name, judged),) = told_sets(stopped)
    assert not judged and "look" not in stopped["outputs"] and not messages(stopped, "execution_error")
    again = host.run(choosing(json.dumps({"sets": {name: {"pairs": [[1, 3]]}}}), seed=303))
    assert "candidates" in cached_nodes(again) and "judge" not in cached_nodes(again)
    assert pairs(again) == [[(1, 3)]] and told_sets(again) == [(name, True)]


@pytest.mark.parametrize("judgement", [{"pairs": [[0, 1]], "open": True}, {"open": True, "log": {}}, None])
def test_unfinished_picks_count_as_missing(host, judgement):
    ((name, _),) = told_sets(host.run(choosing(seed=304)))
    picks = json.dumps({"sets": {name: judgement}})
    entry = host.run(choosing(picks, seed=304))
    assert told_sets(entry) == [(name, False)] and "look" not in entry["outputs"]
    told = begin(host, choosing(picks, seed=304, **WAITING))
    assert [each["set"] for each in told["sets"]] == [name]
    answer(host, told, {"pairs": [[1, 0]]})
    assert pairs(host.wait(told["prompt_id"], 30)) == [[(1, 0)]]


@pytest.mark.parametrize(
    "judgement, expected",
    [
        ({"pairs": [[0, 1]], "bad": [2, 3]}, [(0, 1)]),
        ({"bad": [0, 1, 2, 3]}, []),
        ({"pairs": [[0, 1]], "log": {"pairs": [[1, 0, 1]], "anything": None}}, [(0, 1)]),
        ({"pairs": [[0, 1]], "open": False}, [(0, 1)]),
        ({"scores": [None, 2, None, 5]}, [(3, 1)]),
        ({"scores": [None, None, None, None]}, []),
    ],
)
def test_what_makes_no_pair_is_accepted(host, judgement, expected):
    ((name, _),) = told_sets(host.run(choosing(seed=305)))
    entry = host.run(choosing(json.dumps({"sets": {name: judgement}}), seed=305))
    assert told_sets(entry) == [(name, True)] and pairs(entry) == [expected]


def test_lists_of_different_lengths_are_refused(failure):
    graph = choosing(sets=2) | {"one": node("TestCandidates", seed=1, candidates=4, sets=1, size=64)}
    graph["judge"]["inputs"]["images"] = ["one", 1]
    says(
        failure(graph),
        "D3POPairPreference",
        "images: there are 1 batches of images for 2 sets of candidates",
        "VAE Decode",
    )
