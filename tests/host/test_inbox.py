"""What the pages are told to be missing picks, whatever else is in ComfyUI's history."""

import json
import urllib.request

import pytest

from tests.host.graphs import choosing

ODD_IDS = ["[1]", '{"a": 1}', "[[]]", "NaN", "Infinity", "9" * 400, "1", "true", "1.5", "null"]
ODD_OUTPUTS = [
    [1],
    ["told"],
    [None],
    [{}],
    [{"set": "s"}],
    [[]],
    [float("nan")],
    [{"set": 1, "judged": False}],
    [{"set": "s", "candidates": 1, "images": 1, "judged": False}],
    [{"set": "s", "candidates": 1, "images": [1], "judged": False}],
    [{"set": ["s"], "candidates": 1, "images": [{}], "judged": False}],
    [{"set": "s", "candidates": 10**5000, "images": [{}], "judged": False}],
    [{"set": "s", "candidates": 1, "images": [{"filename": float("nan")}], "judged": False}],
]


def pending(host):
    """GET /d3po/pending as a browser reads it, which knows no NaN."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    with urllib.request.urlopen(host.url + "/d3po/pending", timeout=30) as reply:
        return json.loads(reply.read(), parse_constant=refuse)


def queue_text(host, graph, extra_data):
    """Queue a prompt with JSON text as extra data, as it is: json.dumps writes less than Python reads."""
    body = json.dumps({"prompt": graph, "extra_data": "EXTRA"}).replace('"EXTRA"', extra_data)
    request = urllib.request.Request(
        host.url + "/prompt", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.loads(reply.read())["prompt_id"]


@pytest.mark.parametrize("text", ODD_IDS)
def test_a_workflow_id_that_is_no_text_spoils_nobodys_inbox(host, text):
    prompt_id = queue_text(
        host, choosing(), f'{{"extra_pnginfo": {{"workflow": {{"id": {text}, "nodes": []}}}}}}'
    )
    host.wait(prompt_id, 30)
    try:
        (told,) = [told for told in pending(host) if told["prompt_id"] == prompt_id]
        assert told["workflow"] is None and len(told["sets"]) == 1
    finally:
        host.post("/history", {"delete": [prompt_id]})


def test_a_workflow_id_of_half_a_character_is_told_as_it_is(host):
    prompt_id = queue_text(host, choosing(), r'{"extra_pnginfo": {"workflow": {"id": "\ud800"}}}')
    host.wait(prompt_id, 30)
    try:
        assert "\ud800" in [told["workflow"] for told in pending(host)]
    finally:
        host.post("/history", {"delete": [prompt_id]})


def test_a_run_with_an_odd_workflow_id_tells_browsers_what_is_json(host):
    prompt_id = queue_text(host, choosing(), '{"extra_pnginfo": {"workflow": {"id": NaN}}}')
    entry = host.wait(prompt_id, 30)
    try:
        assert [each["workflow"] for each in entry["outputs"]["judge"]["d3po"]] == [None]
    finally:
        host.post("/history", {"delete": [prompt_id]})


def history(routes):
    return routes.PromptServer.instance.prompt_queue.history


def run(outputs, extra={"extra_pnginfo": {"workflow": {"id": "w"}}}):
    return {"prompt": (0, "p", {}, extra, []), "outputs": outputs, "status": None}


def shown(name, judged=False):
    return {
        "set": name,
        "candidates": 1,
        "images": [{"filename": "a.png", "subfolder": "", "type": "temp"}],
        "judged": judged,
        "workflow": "w",
    }


@pytest.mark.parametrize("odd", ODD_OUTPUTS, ids=range(len(ODD_OUTPUTS)))
def test_what_another_node_shows_under_our_name_is_passed_over(routes, odd):
    history(routes).update(
        {"1": run({"a": {"d3po": odd}, "b": {"d3po": [shown("ours")]}}), "2": run({"a": {"d3po": odd}})}
    )
    found = routes.stopped()
    json.dumps(found, allow_nan=False)
    assert [(told["prompt_id"], told["node"], [each["set"] for each in told["sets"]]) for told in found] == [
        ("1", "b", ["ours"])
    ]


def test_each_set_is_told_of_the_newest_run_that_showed_it_and_only_while_it_has_no_picks(routes):
    history(routes).update(
        {
            "1": run({"a": {"d3po": [shown("s"), shown("t")]}, "b": {"d3po": [shown("s")]}}),
            "2": run({"a": {"d3po": [shown("t")]}}, {"extra_pnginfo": {"workflow": {"id": "another"}}}),
            "3": run({"a": {"d3po": [shown("s", judged=True), shown("u")]}}),
        }
    )
    assert [
        (told["prompt_id"], told["node"], told["workflow"], [each["set"] for each in told["sets"]])
        for told in routes.stopped()
    ] == [
        ("1", "a", "w", ["t"]),
        ("1", "b", "w", ["s"]),
        ("2", "a", "another", ["t"]),
        ("3", "a", "w", ["u"]),
    ]


def test_of_many_runs_the_newest_are_told(routes):
    history(routes).update({str(i): run({"a": {"d3po": [shown(f"s{i}")]}}) for i in range(250)})
    assert [told["prompt_id"] for told in routes.stopped()] == [str(i) for i in range(150, 250)]


def test_nothing_is_looked_at_while_the_queue_is_locked(routes):
    looked = []

    class Watched(dict):
        def _note(self):
            looked.append(routes.PromptServer.instance.prompt_queue.mutex.locked())

        def __getitem__(self, key):
            self._note()
            return super().__getitem__(key)

        def get(self, *given):
            self._note()
            return super().get(*given)

    history(routes)["1"] = Watched(run({"a": {"d3po": [shown("s")]}}))
    assert routes.stopped() and looked and not any(looked)
