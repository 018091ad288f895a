"""The picker's HTTP routes, in a host where a node waits."""

import copy
import gzip
import http.client
import json
import os
import random

import pytest

from tests.host.graphs import (
    answer,
    answer_body,
    begin,
    choosing,
    found,
    live,
    messages,
    node,
    page,
    until,
    watch,
)

ROUTES = ("/d3po/answer", "/api/d3po/answer")
JSON = "application/json"
MIB = 2**20
TROUBLE = ("Traceback", "Exception", "Error handling request")
PATHS = [
    "../../x",
    "/etc/passwd",
    "C:\\Windows\\x",
    "..\\..\\x",
    "a\0b",
    "\0",
    "",
    ".",
    "x" * 5000,
    "\ud800",
    "__proto__",
    "%2e%2e%2fx",
    "~/.ssh",
    "file:///etc/passwd",
]
NO_TEXT = [None, True, 0, 1.5, [], {}, ["a"], {"a": "b"}]
NO_LIST = [None, True, False, 0, 7, 1.5, "", "ab", "0123", {}, {"0": 1, "1": 2, "2": 3, "3": 4}]
NO_CANDIDATE = [
    None,
    True,
    False,
    -1,
    4,
    5,
    10**9,
    10**400,
    -(10**30),
    0.0,
    1.0,
    0.5,
    "0",
    "",
    {},
    {"0": 0},
    [[0]],
    *PATHS,
]
NO_SCORE = [True, False, "1", "high", "Infinity", "nan", "", {}, [], [1, 2], [[1]], 10**400, *PATHS]
NO_PAIR = [*NO_LIST, [], [0], [0, 1, 2], [1, 1], [[0, 1]]]
NO_JUDGEMENT = [None, True, False, 0, 1.5, "", "picks", "{}", [], {}, [[0, 1]], {"winner": 0}, {"": []}]
RANKINGS = [[0, 0], [0, 1, 0], [0, [1, 0]], [[2, 2]], [[[0]]], [0, 1, 2, 3, 4], [0, 1, 2, 3, 0]]
SCORES = [
    [1],
    [1, 2, 3],
    [1, 2, 3, 4, 5],
    [None],
    [None] * 5,
    [[1], [1, 2], [1], [1]],
    [1, [1], 1, 1],
    [[], [], [], [[]]],
]
NOT_JSON = [
    b"",
    b" ",
    b"{",
    b"}",
    b"nul",
    b"'a'",
    b"{]",
    b"{'prompt_id': 1}",
    b"\xef\xbb\xbf{}",
    b"\0",
    b'{"a":}',
    b"1 2",
]


pytestmark = pytest.mark.usefixtures("nothing_is_left_waiting")


@pytest.fixture
def waiting(host):
    """A node that waits for the picks of three sets of four candidates."""
    return begin(host, choosing(sets=3, when_missing="wait"))


class Client:
    """Posts bodies over one connection: (status, parsed body)."""

    def __init__(self, host):
        self.connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=60)

    def post(self, body, content_type=JSON, path=ROUTES[0], method="POST", **headers):
        headers |= {"Content-Type": content_type} if content_type else {}
        self.connection.request(method, path, body, headers)
        reply = self.connection.getresponse()
        text = reply.read()
        return reply.status, json.loads(text) if reply.headers.get_content_type() == JSON else text


@pytest.fixture
def client(host):
    client = Client(host)
    yield client
    client.connection.close()


def valid(told):
    """A body with every field of a judgement in it."""
    first, second, third = (each["set"] for each in told["sets"])
    return {"prompt_id": told["prompt_id"], "node": told["node"], "picks": {
        first: {"pairs": [[0, 1], [2, 3]], "ties": [[0, 2]], "bad": [1, 3], "log": {"pairs": [[0, 1, 1]]}},
        second: {"ranking": [2, [0, 1], 3], "open": False},
        third: {"scores": [0.5, None, 3, 1]},
    }}  # fmt: skip


EXPECTED = [{(0, 1), (2, 3)}, {(2, 0), (2, 1), (2, 3), (0, 3), (1, 3)}, {(2, 0), (2, 3), (3, 0)}]


def encode(value):
    return json.dumps(value).encode()


class Spoiler:
    """Makes bodies that are nearly valid, each with at least one thing wrong."""

    def __init__(self, told, seed=0):
        self.valid, self.told, self.draw = valid(told), told, random.Random(seed)
        self.ways = [getattr(self, name) for name in dir(self) if name.startswith("with_")]

    def body(self):
        """Bytes of a body that must be refused."""
        made = self.draw.choice(self.ways)(copy.deepcopy(self.valid))
        if isinstance(made, bytes):
            return made
        return json.dumps(made, ensure_ascii=self.draw.random() < 0.9).encode("utf-8", "surrogatepass")

    def pick(self, values):
        return copy.deepcopy(self.draw.choice(values))

    def replaced(self, body, values, *path):
        place = body
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = self.pick(values)
        return body

    def judgement(self, index):
        return self.told["sets"][index]["set"]

    def with_noise(self, body):
        return self.draw.choice([self.draw.randbytes(self.draw.randrange(1, 400)), self.pick(NOT_JSON)])

    def with_its_end_cut_off(self, body):
        text = encode(body)
        return text[: self.draw.randrange(len(text))]

    def with_bytes_that_are_not_text(self, body):
        text = encode(body)
        at = text.index(b'"') + 1
        return (
            text[:at]
            + self.draw.choice([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80"])
            + text[at:]
        )

    def with_another_encoding(self, body):
        return json.dumps(body).encode(self.draw.choice(["utf-16", "utf-32", "utf-16-le"]))

    def with_more_behind(self, body):
        return encode(body) + self.draw.choice([b"x", b"{}", b",", encode(body), b"\0"])

    def with_deep_nesting(self, body):
        depth = self.draw.choice([200, 1_100, 100_000])
        deep = self.draw.choice([("[", "]"), ('{"a":', "}")])
        nest = deep[0] * depth + self.draw.choice(["", "1" + deep[1] * depth])
        where = self.draw.choice(["alone", "picks", "log"])
        if where == "alone":
            return nest.encode()
        if where == "picks":
            body["picks"] = "DEEP"
        else:
            body["picks"][self.judgement(0)]["log"] = "DEEP"
        return encode(body).replace(b'"DEEP"', nest.encode())

    def with_a_constant_that_json_has_not(self, body):
        self.replaced(
            body,
            ["ODD"],
            *self.draw.choice(
                [
                    ("picks", self.judgement(2), "scores", 1),
                    ("picks", self.judgement(0), "log"),
                    ("node",),
                    ("picks", self.judgement(0), "pairs", 0, 1),
                ]
            ),
        )
        return encode(body).replace(b'"ODD"', self.draw.choice([b"NaN", b"Infinity", b"-Infinity"]))

    def with_a_number_too_large(self, body):
        self.replaced(
            body,
            ["ODD"],
            "picks",
            *self.draw.choice([(self.judgement(2), "scores", 1), (self.judgement(0), "log", "pairs", 0, 2)]),
        )
        return encode(body).replace(b'"ODD"', self.draw.choice([b"1e999", b"-1e400", b"9" * 5000]))

    def with_half_a_character(self, body):
        return self.replaced(
            body, ["\ud800", "a\udfff", {"\ud83d": 1}], "picks", self.judgement(0), "log", "pairs", 0, 2
        )

    def with_a_wrong_id(self, body):
        which = self.draw.choice(["prompt_id", "node"])
        near = body[which]
        return self.replaced(
            body, [*NO_TEXT, *PATHS, near + "\0", near.upper() + "x", near[:-1], f" {near}"], which
        )

    def with_a_field_missing(self, body):
        del body[self.draw.choice(list(body))]
        return body

    def with_a_field_too_many(self, body):
        name = self.draw.choice(["Picks", "picks ", "set", "path", "client_id", *PATHS])
        return body | {name: self.pick(NO_TEXT)}

    def with_a_field_twice(self, body):
        name = self.draw.choice(list(body))
        return encode(body)[:-1] + f", {json.dumps(name)}: {json.dumps(self.pick(NO_TEXT))}}}".encode()

    def with_something_else_than_an_object(self, body):
        return self.pick([[body], None, True, 1, "text", json.dumps(body), [], [[]], {}])

    def with_something_else_than_picks(self, body):
        return self.replaced(body, [*NO_TEXT, "x", list(body["picks"]), json.dumps(body["picks"])], "picks")

    def with_a_set_missing(self, body):
        del body["picks"][self.draw.choice(list(body["picks"]))]
        return body

    def with_a_set_too_many(self, body):
        name = self.draw.choice([*PATHS, "0" * 16, self.judgement(0).upper() + "x"])
        body["picks"][name] = {"pairs": [[0, 1]]}
        return body

    def with_a_set_under_another_name(self, body):
        name = self.judgement(self.draw.randrange(3))
        body["picks"][self.draw.choice([*PATHS, name + " ", name[:-1]])] = body["picks"].pop(name)
        return body

    def with_something_else_than_a_judgement(self, body):
        return self.replaced(body, NO_JUDGEMENT, "picks", self.judgement(self.draw.randrange(3)))

    def with_an_unknown_kind_of_judgement(self, body):
        field = self.draw.choice([*PATHS, "pair", "Pairs", "winner"])
        return self.replaced(body, [[], 1, {}], "picks", self.judgement(self.draw.randrange(3)), field)

    def with_an_unfinished_set(self, body):
        name = self.judgement(self.draw.randrange(3))
        return self.replaced(body, [True, 1, "yes", [0], {"a": 1}], "picks", name, "open")

    def with_something_else_than_a_list(self, body):
        index, field = self.draw.choice(
            [(0, "pairs"), (0, "ties"), (0, "bad"), (1, "ranking"), (2, "scores")]
        )
        return self.replaced(body, NO_LIST, "picks", self.judgement(index), field)

    def with_something_else_than_a_pair(self, body):
        return self.replaced(
            body, NO_PAIR, "picks", self.judgement(0), *self.draw.choice([("pairs", 1), ("ties", 0)])
        )

    def with_something_else_than_a_candidate(self, body):
        places = [
            (0, "pairs", 0, 0),
            (0, "pairs", 1, 1),
            (0, "ties", 0, 1),
            (0, "bad", 1),
            (1, "ranking", 0),
            (1, "ranking", 1, 1),
        ]
        index, *path = self.draw.choice(places)
        return self.replaced(body, NO_CANDIDATE, "picks", self.judgement(index), *path)

    def with_a_pair_judged_both_ways(self, body):
        body["picks"][self.judgement(0)]["pairs"].append([1, 0])
        return body

    def with_an_impossible_ranking(self, body):
        return self.replaced(body, RANKINGS, "picks", self.judgement(1), "ranking")

    def with_something_else_than_a_score(self, body):
        return self.replaced(
            body, NO_SCORE, "picks", self.judgement(2), "scores", self.draw.choice([0, 2, 3])
        )

    def with_a_wrong_number_of_scores(self, body):
        return self.replaced(body, SCORES, "picks", self.judgement(2), "scores")


def files(base):
    """Every file below the base folder with its size, but for those that the host itself keeps."""
    return {
        path: os.path.getsize(path)
        for folder, _, names in os.walk(base)
        for path in (os.path.join(folder, name) for name in names)
        if not os.path.basename(path).startswith(("host.log", "comfyui.db"))
    }


def test_malformed_answers_are_refused_and_change_nothing(host, client, waiting):
    spoiler, before, began = Spoiler(waiting), files(host.base), len(host.log())
    for number in range(3000):
        body = spoiler.body()
        status, reply = client.post(body, path=ROUTES[number % 2])
        assert 400 <= status < 500 and reply["error"], (number, status, body[:500])
    assert files(host.base) == before
    assert not [word for word in TROUBLE if word in host.log()[began:]]
    assert live(host) == {waiting["prompt_id"]: waiting}
    assert client.post(encode(valid(waiting))) == (200, {"answered": True})
    looks = found(host.wait(waiting["prompt_id"], 30), "look")
    assert [{tuple(pair) for pair in look["pairs"]} for look in looks] == EXPECTED


def test_every_way_to_spoil_an_answer_is_refused_for_its_own_reason(client, waiting):
    spoiler, reasons = Spoiler(waiting), {}
    for way in spoiler.ways:
        spoiler.ways = [way]
        reasons[way.__name__] = client.post(spoiler.body())[1]["error"]
    assert "not JSON" in reasons["with_noise"] and "not JSON" in reasons["with_deep_nesting"]
    assert "and nothing else" in reasons["with_a_field_missing"]
    assert "picks must be of the sets" in reasons["with_a_set_missing"]
    assert "is not finished" in reasons["with_an_unfinished_set"]
    assert "each picked over the other" in reasons["with_a_pair_judged_both_ways"]
    assert client.post(encode(valid(waiting)))[0] == 200


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json-patch+json",
        "text/json",
        "",
        None,
        "json",
        "/",
        "*/*",
    ],
)
def test_what_a_web_form_can_send_is_no_answer(host, client, waiting, content_type):
    assert client.post(encode(valid(waiting)), content_type)[0] == 415
    assert live(host)
    assert client.post(encode(valid(waiting)), "application/json; charset=utf-8")[0] == 200


@pytest.mark.parametrize("place", ["log", "behind", "alone"])
def test_a_body_over_one_mebibyte_is_refused(host, client, waiting, place):
    body = valid(waiting)
    if place == "log":
        body["picks"][waiting["sets"][0]["set"]]["log"] = "x" * MIB
    text = {"log": encode(body), "behind": encode(body) + b" " * MIB, "alone": b"x" * 5 * MIB}[place]
    assert client.post(text)[0] == 413
    assert client.post(gzip.compress(text), **{"Content-Encoding": "gzip"})[0] == 413
    assert live(host)
    assert client.post(encode(valid(waiting)).ljust(MIB))[0] == 200


@pytest.mark.parametrize(
    "judgement",
    [
        {"ranking": [0] * 3000},
        {"ranking": [[]] * 20_000 + [4]},
        {"scores": [1] * 2000},
        {"scores": [None] * 50_000},
        {"pairs": [[0, 1]] * 40_000 + [[1, 0]]},
    ],
)
def test_a_long_judgement_is_refused_before_it_keeps_the_server_busy(host, client, waiting, judgement):
    client.connection.timeout = 3
    assert client.post(encode(answer_body(waiting, judgement)))[0] == 400
    answer(host, waiting, {"pairs": []})


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_cannot_be_unpacked_is_refused(host, waiting, encoding):
    began = len(host.log())
    status, _ = Client(host).post(b"this is not packed", **{"Content-Encoding": encoding})
    assert 400 <= status < 500
    assert "Error handling request" not in host.log()[began:]
    answer(host, waiting, {"pairs": []})


@pytest.mark.parametrize(
    "route, methods",
    [
        ("/d3po/answer", ["GET", "PUT", "DELETE", "PATCH"]),
        ("/d3po/pending", ["POST", "PUT", "DELETE", "PATCH"]),
    ],
)
def test_other_methods_are_refused(client, route, methods):
    for method in methods:
        for path in (route, f"/api{route}"):
            assert client.post(b"{}", path=path, method=method)[0] in (404, 405)


def test_the_same_answer_twice_is_one_answer(host, client, waiting):
    body = encode(valid(waiting))
    assert client.post(body)[0] == 200
    assert client.post(body)[0] in (200, 404)
    looks = found(host.wait(waiting["prompt_id"], 30), "look")
    assert [{tuple(pair) for pair in look["pairs"]} for look in looks] == EXPECTED
    assert client.post(body)[0] == 404


def test_an_answer_to_nobody_is_not_found(client):
    body = {"prompt_id": "a", "node": "b", "picks": {}}
    status, reply = client.post(encode(body))
    assert status == 404 and "nothing waits there" in reply["error"]


# --- what lacks picks ---


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
        ({"set", "candidates", "images"}, 3)
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
        {key: each[key] for key in ("set", "candidates", "images")}
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
