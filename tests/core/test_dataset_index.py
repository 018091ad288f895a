"""Indices of datasets that are damaged, foreign, older or newer."""

import re

import pytest

from d3po_core.candidates.judgement import Judgement
from d3po_core.dataset import index as dataset_index
from d3po_core.dataset.store import Dataset, DatasetError
from tests.core.datasets import change, snapshot, taste


@pytest.fixture
def trajectory(toy):
    return toy.record(toy.Denoiser(toy.net()), seed=7)


@pytest.fixture
def folder(tmp_path, trajectory):
    return taste(tmp_path / "taste", trajectory)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"not a database at all" * 100, "not the index of a dataset"),
        (b"SQLite format 3\0" + b"\x10\x00" + b"x" * 5000, "not the index of a dataset"),
        (lambda whole: whole[: len(whole) // 2], "not the index of a dataset"),
        (lambda whole: whole[:4096], "not the index of a dataset"),
        (lambda whole: whole[:700], "not the index of a dataset"),
        (lambda whole: whole[:50], "not the index of a dataset"),
        (b"", "is empty or missing, though"),
        (None, "is empty or missing, though"),
    ],
    ids=["text", "a header", "half", "one page", "part of a page", "part of a header", "empty", "missing"],
)
def test_an_index_that_is_not_whole_is_an_error_that_names_it_and_leaves_all_as_it_is(
    folder, content, message
):
    index = folder / "index.sqlite"
    if content is None:
        index.unlink()
    else:
        index.write_bytes(content(index.read_bytes()) if callable(content) else content)
    before = snapshot(folder)
    with pytest.raises(DatasetError, match=f"{re.escape(str(index))}.*{message}"):
        Dataset(folder)
    after = snapshot(folder)
    assert after.pop(index) == before.pop(index, b"") and after == before


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_the_database_of_another_program_is_left_as_it_is(tmp_path, journal):
    change(
        tmp_path, f"PRAGMA journal_mode = {journal}", "CREATE TABLE sets (id TEXT)", "PRAGMA user_version = 1"
    )
    before = snapshot(tmp_path)
    with pytest.raises(DatasetError, match="index.sqlite is the database of another program"):
        Dataset(tmp_path)
    change(tmp_path, "PRAGMA application_id = 1")
    with pytest.raises(DatasetError, match="index.sqlite is the database of another program"):
        Dataset(tmp_path)
    change(tmp_path, "PRAGMA application_id = 0")
    assert snapshot(tmp_path).keys() == before.keys()


def test_a_newer_dataset_is_left_as_it_is(folder):
    change(folder, "PRAGMA user_version = 7")
    before = snapshot(folder)
    with pytest.raises(
        DatasetError, match=r"index.sqlite was written by a newer version .*format 7; this one knows 2"
    ):
        Dataset(folder)
    assert snapshot(folder) == before


def with_stars(index):
    index.execute("ALTER TABLE sets ADD COLUMN stars INTEGER NOT NULL DEFAULT 3")


def with_more_stars(index):
    index.execute("UPDATE sets SET stars = stars + 1")
    index.execute("CREATE TABLE more (a)")


def test_an_older_dataset_is_brought_up_to_date_step_by_step_once(folder, monkeypatch):
    assert [dataset_index.version_1, dataset_index.version_2] == dataset_index.MIGRATIONS
    further = [*dataset_index.MIGRATIONS, with_stars, with_more_stars]
    monkeypatch.setattr(dataset_index, "MIGRATIONS", further)
    for _ in range(2):
        with Dataset(folder) as dataset:
            assert [row[0] for row in dataset._index.read("SELECT stars FROM sets")] == [4, 4]
            assert dataset._index.read("PRAGMA user_version")[0][0] == 4
            assert len(dataset.trajectory("set 7").states[0]) == 3 and dataset.pairs("set 7") == [(0, 1)]
    with Dataset(folder / "new") as dataset:
        assert dataset._index.read("SELECT stars FROM sets") == []


def test_a_step_that_fails_leaves_the_older_dataset_as_it_was(folder, monkeypatch):
    def broken(index):
        with_more_stars(index)
        index.execute("nonsense")

    before = snapshot(folder)
    with monkeypatch.context() as patch, pytest.raises(DatasetError, match="index.sqlite"):
        patch.setattr(dataset_index, "MIGRATIONS", [*dataset_index.MIGRATIONS, with_stars, broken])
        Dataset(folder)
    assert snapshot(folder) == before
    Dataset(folder).close()


SAID = [
    ("a", "ann", {"ranking": [0, 1]}),
    ("a", "ann", {"ranking": [1, 0]}),
    ("a", "ben", {"ranking": [0, 1]}),
    ("a", "ben", {"ranking": [1, 0], "open": True}),
    ("b", "ann", {"ranking": [0, 1]}),
    ("b", "ann", None),
    ("b", "ben", {"good": [0], "bad": [1]}),
    ("c", "ann", None),
    ("c", "ann", {"ties": [[0, 1]]}),
]


def say(dataset, said):
    for name, who, what in said:
        dataset.judge(name, what and Judgement.parse(what, 2), who)


def newest_finished(dataset):
    """By the definition: of an annotator's judgements of a set the newest, if it is finished."""
    newest = {
        (row[1], row[2]): row for row in dataset._index.read("SELECT * FROM judgements ORDER BY number")
    }
    return sorted(row["number"] for row in newest.values() if row["finished"])


def counting(dataset):
    return [row[0] for row in dataset._index.read("SELECT number FROM counting ORDER BY number")]


def test_the_judgements_that_count_are_the_newest_ones_in_an_older_dataset_too(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_index, "MIGRATIONS", [dataset_index.version_1])
        with Dataset(tmp_path) as older:
            for name in "abc":
                older.add_set(name, candidates=2)
            say(older, SAID)
            assert counting(older) == newest_finished(older) == [2, 7, 9]
    with Dataset(tmp_path) as dataset:
        assert counting(dataset) == [2, 7, 9]
        say(dataset, [("a", "ann", None), ("a", "ben", {"ranking": [1, 0]}), ("c", "eve", {"good": [0, 1]})])
        assert counting(dataset) == newest_finished(dataset) == [7, 9, 11, 12]
        assert dataset.pairs("a") == [(1, 0)]
        found = dataset.statistics()
        assert (found["judged"], found["judgements"], found["thumbs"]) == (3, 4, {"up": 3, "down": 1})


def test_a_dataset_that_must_exist_is_not_made(tmp_path):
    with pytest.raises(DatasetError, match="no dataset in this folder"):
        Dataset(tmp_path / "new", create=False)
    assert not (tmp_path / "new").exists()


def test_a_writer_killed_while_making_a_dataset_leaves_a_file_that_can_become_one(tmp_path):
    (tmp_path / "index.sqlite").touch()
    with Dataset(tmp_path) as dataset:
        assert dataset.add_set("s", candidates=2)


def test_the_index_says_whose_it_is(folder):
    assert (folder / "index.sqlite").read_bytes()[68:72] == b"D3PO"
