"""The sidebar's routes about datasets, in a running host."""

from urllib.parse import urlencode

import pytest

from d3po_core.candidates.judgement import Judgement
from tests.host.answers import PATHS, encode
from tests.host.graphs import keeping, node, unique

JUDGE, WITHDRAW = "/d3po/datasets/judge", "/d3po/datasets/withdraw"


def candidates(dataset, sets, seed=0):
    """Sets without a model go into a dataset."""
    return {
        "candidates": node("TestCandidates", seed=seed, candidates=3, sets=sets, size=64),
        "save": keeping(dataset),
    }


@pytest.fixture
def ask(client):
    """(status, answer) of a GET request."""
    return lambda path, **query: client.post(b"", None, f"/d3po/{path}?{urlencode(query)}", "GET")


@pytest.fixture
def say(client):
    return lambda path, **body: client.post(encode(body), path=path)


@pytest.fixture
def kept(host, dataset):
    """A dataset of three sets."""
    host.run(candidates(dataset, 3, seed=11))
    return dataset


def test_what_is_said_is_in_the_dataset_and_what_is_taken_back_is_withdrawn(host, kept, ask, say):
    page = lambda which, order="oldest": ask(
        "datasets/sets", dataset=kept, annotator="ann", filter=which, order=order
    )[1]
    first, second, third = (told["set"] for told in page("unjudged")["sets"])
    judgement = {"pairs": [[2, 0], [2, 1]], "log": {"pairs": [[0, 2, "<"]]}}
    answer = dict(dataset=kept, set=first, annotator=" ann ", mode="pairs", judgement=judgement)
    for _ in range(2):  # a page that heard no answer asks again
        assert say(JUDGE, **answer) == (200, {"kept": True})
    with kept.open() as store:
        (entry,) = store.judgements(first)
        assert (entry.annotator, entry.tool) == ("ann", "sidebar, pairs")
        assert entry.judgement.as_json == judgement
        store.judge(first, Judgement.parse({"good": [0], "bad": [1]}, 3), "ben")
    assert [told["set"] for told in page("unjudged")["sets"]] == [second, third]
    (told,) = page("judged")["sets"]
    assert [(said["annotator"], said["judgement"]) for said in told["said"]] == [
        ("ann", judgement),
        ("ben", {"good": [0], "bad": [1]}),
    ]
    assert say(WITHDRAW, dataset=kept, set=first, annotator="ann") == (200, {"kept": True})
    assert page("unjudged", "newest")["total"] == 3 and page("judged", "newest")["total"] == 0
    with kept.open() as store:
        assert [entry.judgement is None for entry in store.judgements(first)] == [False, False, True]
    image = told["images"][1]
    assert image["type"] == "output" and len(told["images"]) == told["candidates"] == 3
    assert host.get(f"/view?{urlencode(image)}") is not None


def test_the_list_says_what_there_is_and_what_is_damaged(base, kept, ask, say):
    root = base / "output" / "d3po" / "datasets"
    broken = root / unique("broken")
    for folder in (broken, root / "none of öurs"):
        folder.mkdir()
        (folder / "index.sqlite").write_bytes(b"no index at all" * 100)
    status, told = ask("datasets", annotator="ann")
    datasets = {dataset["name"]: dataset for dataset in told}
    assert status == 200 and datasets[kept]["sets"] == datasets[kept]["unjudged"] == 3
    assert len(datasets[kept]["images"]) == 3 and datasets[kept]["newest"]
    assert "is not the index of a dataset" in datasets[broken.name]["problem"]
    assert "cannot name a folder" in datasets["none of öurs"]["problem"]
    times = [dataset.get("newest") or "" for dataset in told]
    assert times == sorted(times, reverse=True)
    assert ask("datasets/sets", dataset=broken.name, annotator="ann")[0] == 500


def test_what_makes_no_sense_is_refused_and_changes_nothing(kept, ask, say):
    (first, *_) = ask("datasets/sets", dataset=kept, annotator="ann")[1]["sets"]
    body = dict(dataset=kept, set=first["set"], annotator="ann", mode="pairs", judgement={"pairs": [[0, 1]]})
    nonsense = [None, 7, [], {}, True]
    spoiled = [
        *({"dataset": name} for name in [*PATHS, *nonsense, unique("nowhere")]),
        *({"set": name} for name in [*PATHS, *nonsense]),
        *({"annotator": name} for name in ["", " ", "\ud800", "x" * 201, *nonsense]),
        *({"mode": mode} for mode in ["", "picks", *nonsense]),
        *({"judgement": said} for said in [{}, {"pairs": [[0, 3]]}, {"open": True, "pairs": []}, *nonsense]),
        {"more": 1},
    ]
    for change in spoiled:
        status, reply = say(JUDGE, **body | change)
        assert 400 <= status < 500 and reply["error"], (change, status, reply)
    for query in [*({"dataset": name} for name in ["../..", "", unique("nowhere")]), {"page": "-1"}]:
        assert 400 <= ask("datasets/sets", **{"dataset": kept, "annotator": "ann"} | query)[0] < 500
    assert ask("datasets/sets", dataset=kept, annotator="ann", filter="none")[0] == 400
    assert ask("datasets")[0] == 400
    assert ask("datasets/sets", dataset=kept, annotator="ann", page=10**8)[1]["sets"] == []
    with kept.open() as store:
        assert store.judgements(first["set"]) == []


def test_a_set_whose_pictures_are_gone_is_still_listed(kept, ask):
    with kept.open() as store:
        (gone, *_) = store.sets()
        store.image_files(gone.id)[1].unlink()
    sets = ask("datasets/sets", dataset=kept, annotator="ann", order="oldest")[1]["sets"]
    assert {told["set"]: len(told["images"]) for told in sets}[gone.id] == 0
    assert sorted(len(told["images"]) for told in sets) == [0, 3, 3]
