"""Datasets as a whole: which sets they find, what they count, what is left after deleting, many at once."""

import threading
from datetime import timedelta, timezone

import pytest
import torch

from d3po_core.dataset.sets import share
from d3po_core.dataset.store import Dataset, DatasetError
from tests.core.datasets import NOON, TIE, TREE, WINNER_0, add_row, equal, files_of, ids, judge


@pytest.fixture
def dataset(tmp_path):
    with Dataset(tmp_path / "taste") as dataset:
        yield dataset


@pytest.fixture
def trajectory(toy):
    return toy.record(toy.Denoiser(toy.net()), seed=7)


# --- queries ---


def test_sets_are_found_by_who_judged_them(dataset):
    for name in "abcd":
        dataset.add_set(name, candidates=2)
    judge(dataset, "a", WINNER_0, "anna")
    judge(dataset, "b", TIE, "anna")
    judge(dataset, "b", WINNER_0, "ben")
    judge(dataset, "c", WINNER_0, "ben")
    judge(dataset, "c", None, "ben")
    assert ids(dataset.sets()) == list("abcd")
    assert ids(dataset.sets(judged=True)) == ["a", "b"] and ids(dataset.sets(judged=False)) == ["c", "d"]
    assert (
        ids(dataset.sets(annotator="anna")) == ids(dataset.sets(judged=True, annotator="anna")) == ["a", "b"]
    )
    assert ids(dataset.sets(judged=False, annotator="ben")) == ["a", "c", "d"]
    assert ids(dataset.sets(judged=False, annotator="ben", limit=1)) == ["a"] and dataset.sets(limit=0) == []


def test_sets_are_found_by_time_and_model_oldest_first(dataset):
    for day, name in ((2, "a"), (0, "c"), (1, "b")):
        dataset.add_set(name, candidates=2, created=NOON + timedelta(days=day), model="sd" if day else "xl")
    assert ids(dataset.sets()) == ["c", "b", "a"]
    assert ids(dataset.sets(since=NOON + timedelta(days=1))) == ["b", "a"]
    assert ids(dataset.sets(until=NOON + timedelta(days=1))) == ["c"]
    elsewhere = (NOON + timedelta(days=1)).astimezone(timezone(timedelta(hours=-9)))
    assert ids(dataset.sets(since=elsewhere, until=elsewhere + timedelta(seconds=1))) == ["b"]
    assert ids(dataset.sets(model="sd")) == ["b", "a"] and dataset.sets(model="") == []


def test_the_split_depends_on_the_id_alone_and_stays_when_sets_are_added(dataset):
    names = [f"set {i}" for i in range(400)]
    dataset._index.write(lambda index: [add_row(index, name) for name in names])
    held = set(ids(dataset.sets(split="held_out")))
    assert held == {name for name in names if share(name) < 0.1} and 20 < len(held) < 60
    assert held | set(ids(dataset.sets(split="train"))) == set(names)
    assert held < set(ids(dataset.sets(split="held_out", held_out=0.3)))
    assert dataset.sets(split="held_out", held_out=0.0) == [] == dataset.sets(split="train", held_out=1.0)
    dataset._index.write(lambda index: [add_row(index, f"more {i}") for i in range(400)])
    assert {name for name in ids(dataset.sets(split="held_out")) if name.startswith("set")} == held
    assert share("set 7") == 0.01951711888153551, "a split that moves mixes held-out sets into the training"
    with pytest.raises(ValueError, match="no split 'test'"):
        dataset.sets(split="test")


# --- the whole ---


def test_statistics_of_an_empty_dataset_are_zeros(dataset):
    figures = dataset.statistics()
    assert figures["bytes"].pop("index") > 0
    assert figures == {
        "sets": 0,
        "judged": 0,
        "unjudged": 0,
        "judgements": 0,
        "annotators": {},
        "pairs": 0,
        "ties": 0,
        "thumbs": {"up": 0, "down": 0},
        "models": {},
        "split": {"train": 0, "held_out": 0},
        "bytes": {"sets": 0, "images": 0, "conditioning": 0},
        "agreement": None,
        "oldest": None,
        "newest": None,
    }


def test_statistics_add_up(dataset, trajectory):
    dataset.add_set(
        "set 7",
        trajectory=trajectory,
        images=torch.rand(3, 4, 4, 3),
        conditioning=TREE,
        created=NOON,
        model_name="dreams",
    )
    for i in range(9):
        dataset.add_set(f"s{i}", candidates=3, model="xl", created=NOON + timedelta(days=i))
    judge(dataset, "set 7", {"ranking": [0, [1, 2]]}, "anna")
    judge(dataset, "set 7", {"pairs": [[0, 1]], "scores": [1.0, 2.0, 1.0]}, "ben")
    judge(dataset, "s1", {"pairs": [[0, 1]]}, "ben")
    judge(dataset, "s1", {"ties": [[0, 1], [1, 0], [1, 2]], "ranking": [2, 1]}, "ben")
    judge(dataset, "s2", {"pairs": [[0, 1]]}, "ben")
    judge(dataset, "s2", None, "ben")
    figures = dataset.statistics(held_out=0.5)
    assert (figures["sets"], figures["judged"], figures["unjudged"], figures["judgements"]) == (10, 2, 8, 3)
    assert figures["annotators"] == {"anna": 1, "ben": 2}
    assert (figures["pairs"], figures["ties"]) == (2 + 2, 1 + 1 + 2)
    assert figures["agreement"] == 1.0
    assert figures["models"] == {"net": {"name": "dreams", "sets": 1}, "xl": {"name": "", "sets": 9}}
    assert figures["split"]["held_out"] == len(dataset.sets(split="held_out", held_out=0.5))
    assert sum(figures["split"].values()) == 10
    for kind in ("sets", "images", "conditioning"):
        assert figures["bytes"][kind] == sum(path.stat().st_size for path in files_of(dataset, kind)) > 0
    assert figures["bytes"]["index"] == (dataset.folder / "index.sqlite").stat().st_size
    assert (figures["oldest"], figures["newest"]) == (
        NOON.isoformat(timespec="microseconds"),
        (NOON + timedelta(days=8)).isoformat(timespec="microseconds"),
    )


def test_ten_thousand_sets_are_counted_and_listed_without_a_look_at_their_files(dataset):
    def fill(index):
        for i in range(10_000):
            name = f"set {i}"
            add_row(index, name, trajectory=f"sets/00/{i:08x}.safetensors", trajectory_bytes=1000)
            index.executemany(
                "INSERT INTO images VALUES (?, ?, ?, 10)",
                [(name, k, f"images/00/{i:08x}-{k}.png") for k in range(4)],
            )
            for annotator in ("anna", "ben")[: i % 3]:
                index.execute(
                    "INSERT INTO judgements "
                    "(set_id, annotator, judgement, finished, pairs, strict, ties, time, tool) "
                    "VALUES (?, ?, '{}', 1, '[[0, 1], [2, 1], [3, 1]]', 3, 0, '', '')",
                    [name, annotator],
                )

    dataset._index.write(fill)
    dataset.close()
    assert not any((dataset.folder / kind).exists() for kind in ("sets", "images", "conditioning"))
    with Dataset(dataset.folder) as again:
        figures = again.statistics()
        assert (figures["sets"], figures["judged"], figures["pairs"], figures["agreement"]) == (
            10_000,
            6666,
            29_997,
            1,
        )
        assert figures["bytes"]["sets"] == 10_000_000 and figures["bytes"]["images"] == 400_000
        rows = again.sets(judged=False, annotator="ben", split="train")
        assert 5000 < len(rows) < 6667 and rows[0].has_images and rows[0].has_trajectory
        assert again.pairs("set 2") == [(0, 1), (2, 1), (3, 1)]
        with pytest.raises(DatasetError, match="missing or damaged"):
            again.trajectory("set 2")


def test_deleting_removes_rows_and_files_but_not_what_others_need(dataset, trajectory):
    dataset.add_set("set 7", trajectory=trajectory, images=torch.rand(3, 4, 4, 3), conditioning=TREE)
    dataset.add_set("b", images=torch.rand(2, 4, 4, 3), conditioning=TREE)
    dataset.add_set("c", candidates=2, conditioning={"x": torch.ones(2)})
    judge(dataset, "set 7", WINNER_0, "anna")
    judge(dataset, "b", WINNER_0, "anna")
    assert dataset.delete(["set 7", "c", "unknown"]) == 2
    assert ids(dataset.sets()) == ["b"] and not files_of(dataset, "sets")
    assert len(files_of(dataset, "images")) == 2 and len(files_of(dataset, "conditioning")) == 1
    assert equal(dataset.conditioning("b"), TREE) and dataset.statistics()["judgements"] == 1
    assert dataset.add_set("set 7", trajectory=trajectory) and dataset.judgements("set 7") == []
    assert dataset.delete("b") == 1 and not files_of(dataset, "conditioning")


def test_many_threads_may_share_a_dataset(dataset):
    for i in range(4):
        dataset.add_set(f"s{i}", candidates=2)
    errors = []

    def work(i):
        try:
            for _ in range(5):
                judge(dataset, f"s{i}", WINNER_0, "anna")
                assert dataset.pairs(f"s{i}") == [(0, 1)] and len(dataset.sets()) >= 4
                dataset.add_set(f"more {i}", images=torch.rand(2, 4, 4, 3))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(dataset.sets()) == 8
    assert all(len(dataset.judgements(f"s{i}")) == 5 for i in range(4))


def test_a_dataset_that_was_closed_says_so(dataset):
    dataset.close()
    with pytest.raises(DatasetError, match="index.sqlite.*closed"):
        dataset.sets()
