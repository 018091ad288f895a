"""What posts answers to a waiting picker: whole ones, and nearly valid ones with at least one thing wrong."""

import copy
import http.client
import json
import random

ROUTES = ("/d3po/answer", "/api/d3po/answer")
JSON = "application/json"
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
