"""The picker's HTTP routes, in a host where a node waits."""

import gzip
import os

import pytest

from tests.host.answers import EXPECTED, ROUTES, Client, Spoiler, encode, valid
from tests.host.graphs import (
    answer,
    answer_body,
    found,
    live,
)

MIB = 2**20
TROUBLE = ("Traceback", "Exception", "Error handling request")


pytestmark = pytest.mark.usefixtures("nothing_is_left_waiting")


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
        ("/d3po/undo", ["GET", "PUT", "DELETE", "PATCH"]),
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


@pytest.mark.parametrize(
    "body, status, told",
    [
        (b"", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'{"run": NaN}', 400, "not JSON"),
        (b'["taste"]', 400, "not a JSON object"),
        (b'{"run": ["taste"]}', 400, "which is text, and nothing else"),
        (b'{"run": "taste", "steps": 1}', 400, "which is text, and nothing else"),
        (b'{"run": "../taste"}', 404, "cannot name a folder"),
        (b'{"run": "\\ud800"}', 404, "cannot name a folder"),
        (b'{"run": "no such run"}', 404, "there is no run"),
        (b'{"run": "taste"}'.ljust(MIB + 1), 413, "longer than"),
    ],
)
def test_what_asks_for_no_round_to_be_taken_back_is_refused(host, client, body, status, told):
    before, began = files(host.base), len(host.log())
    answered, reply = client.post(body, path="/d3po/undo")
    assert answered == status and told in reply["error"]
    assert files(host.base) == before and not [word for word in TROUBLE if word in host.log()[began:]]
    assert client.post(body, "text/plain", path="/d3po/undo")[0] == 415
