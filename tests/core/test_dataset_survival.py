"""Writers of datasets that are killed and that meet."""

import contextlib
import os
import random
import signal
import sqlite3
import stat
import time
from datetime import datetime, timedelta

import pytest
import torch

from d3po_core.dataset import store as dataset_module
from d3po_core.dataset.index import BUSY
from d3po_core.dataset.store import Dataset, DatasetError
from tests.core.children import finish, start
from tests.core.datasets import (
    WINNER_0,
    integrity,
    judge,
    payload,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="a child that starts at once needs fork")


@pytest.fixture
def folder(tmp_path):
    with Dataset(tmp_path / "taste") as dataset:
        dataset.add_set("s", candidates=2)
    return tmp_path / "taste"


@pytest.fixture
def trajectory(toy):
    return toy.record(toy.Denoiser(toy.net()), seed=7)


def require_whole(folder):
    """Every set of the index loads, and it has no more files than these need: the ids."""
    with Dataset(folder) as dataset:
        rows = dataset.sets()
        for row in rows:
            if row.has_trajectory:
                assert dataset.trajectory(row.id).states[:].shape[1] == row.candidates
                assert (
                    len(dataset.images(row.id)) == row.candidates and dataset.conditioning(row.id) is not None
                )
        return [row.id for row in rows]


# --- killed ---


@needs_fork
def test_every_acknowledged_judgement_survives_fifty_kills(folder):
    chance, acknowledged = random.Random(0), []

    def judge_on(tell):
        with Dataset(folder) as dataset:
            for i in range(1000):
                judge(dataset, "s", WINNER_0 | {"log": {"i": len(acknowledged) + i}}, "anna")
                tell(b"%d\n" % (len(acknowledged) + i))

    for _ in range(50):
        pid, pipe = start(judge_on)
        first = pipe.readline()
        time.sleep(chance.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        status, told = finish(pid, pipe)
        assert os.WTERMSIG(status) == signal.SIGKILL, told
        acknowledged += (first + told).split(b"\n")[:-1]
        assert integrity(folder) == [("ok",)]
    with Dataset(folder) as dataset:
        kept = {entry.judgement.as_json["log"]["i"] for entry in dataset.judgements("s")}
    assert len(acknowledged) >= 50 and {int(number) for number in acknowledged} <= kept


@needs_fork
def test_every_set_in_the_index_loads_whole_after_twenty_kills(folder, trajectory):
    chance, acknowledged = random.Random(0), set()

    def add_on(tell):
        with Dataset(folder) as dataset:
            for i in range(1000):
                name = f"{os.getpid()} {i}"
                trajectory.set_id = name
                dataset.add_set(
                    name,
                    trajectory=trajectory,
                    images=torch.rand(3, 16, 16, 3),
                    conditioning={"c": torch.rand(9)},
                )
                tell(f"{name}\n".encode())

    for _ in range(20):
        pid, pipe = start(add_on)
        first = pipe.readline()
        time.sleep(chance.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        _, told = finish(pid, pipe)
        acknowledged |= {name.decode() for name in (first + told).split(b"\n")[:-1]}
    assert integrity(folder) == [("ok",)]
    assert len(acknowledged) >= 20 and acknowledged <= set(require_whole(folder))


@needs_fork
def test_a_writer_killed_at_any_of_its_stages_leaves_a_whole_set_or_none(folder, trajectory):
    trajectory.settings, seen = {}, set()
    for stage in range(100):

        def add(tell):
            stages = iter(range(stage))
            for name in ("fsync", "replace", "open"):  # around each of these a file is in another state

                def at(*given, real=getattr(os, name), **options):
                    if next(stages, None) is None:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*given, **options)

                setattr(os, name, at)
            with Dataset(folder) as dataset:
                dataset.add_set(
                    "set 7", trajectory=trajectory, images=torch.rand(3, 4, 4, 3), conditioning=[1]
                )

        status, told = finish(*start(add))
        there = require_whole(folder)
        seen.add(len(there))
        if status == 0:
            break
        assert os.WIFSIGNALED(status), told
        with Dataset(folder) as dataset:
            dataset.delete("set 7")
    assert status == 0 and stage > 10 and "set 7" in there
    with Dataset(folder) as dataset:
        assert payload(folder) > 5 and dataset.tidy(older_than=-60) > 0
        assert payload(folder) == 5 and dataset.tidy(older_than=-60) == 0
    assert require_whole(folder) == there


def test_leftovers_are_removed_only_if_they_are_old_and_ours(folder):
    with Dataset(folder) as dataset:
        dataset.add_set("t", images=torch.rand(2, 4, 4, 3))
        near = dataset.image_files("t")[0].parent
        old = [near / f"{64 * 'a'}.png.12.partial", near / ".tmpXyZ123", near / "abc-0123.png"]
        kept = [near / "holiday.png", near / "notes.txt", near.parent / ".tmpXyZ123", near / "abc-4567.png"]
        for path in old + kept:
            path.write_bytes(b"x")
        for path in [*old, *kept[:-1], *dataset.image_files("t")]:
            os.utime(path, (time.time() - 90_000,) * 2)
        assert dataset.tidy() == 3
        assert not any(path.exists() for path in old) and all(path.exists() for path in kept)
        assert dataset.images("t").shape == (2, 4, 4, 3)


def test_who_opens_a_dataset_to_write_tidies_it_once_a_day(folder, monkeypatch):
    day = 90_000
    with Dataset(folder) as dataset:
        dataset.add_set(
            "t", images=torch.rand(2, 4, 4, 3), created=datetime.now() - timedelta(seconds=2 * day)
        )
        near = dataset.image_files("t")[0].parent

        def leave(name, age):
            (near / name).write_bytes(b"x")
            os.utime(near / name, (time.time() - age,) * 2)

        dataset.delete("s")
        leave(".tmpXyZ123", 3 * day), leave("abc-0123.png", 3 * day), leave("abc-4567.png", day)
        dataset.tidy_daily()
        assert sorted(path.name for path in near.iterdir() if path not in dataset.image_files("t")) == [
            "abc-4567.png"
        ], "a file that is newer than the index's newest set stays"
        dataset.add_set("u", candidates=2, created=datetime.now() - timedelta(seconds=60))
        leave(".tmpXyZ123", 3 * day)
        dataset.tidy_daily()
        assert (near / ".tmpXyZ123").exists(), "once a day"
        monkeypatch.setattr(dataset_module, "_tidied", {})
        dataset.tidy_daily()
        assert sorted(near.iterdir()) == sorted(dataset.image_files("t")) and dataset.images("t").shape == (
            2,
            4,
            4,
            3,
        )


def test_what_cannot_be_tidied_is_in_nobodys_way(folder, monkeypatch):
    monkeypatch.setattr(dataset_module, "_tidied", {})
    monkeypatch.setattr(Dataset, "tidy", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with Dataset(folder) as dataset:
        dataset.tidy_daily()
        judge(dataset, "s", WINNER_0, "anna")


def test_a_power_cut_finds_files_and_names_on_disk_before_the_index_names_them(folder, monkeypatch):
    order = []

    def noted(name, what):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given: (order.append(what(*given)), real(*given))[1])

    noted("fsync", lambda fd: "folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
    noted("replace", lambda *_: "replace")
    with Dataset(folder) as dataset:
        dataset._index._connection.set_trace_callback(lambda query: order.append(query.split()[0]))
        dataset.add_set("t", images=torch.rand(1, 4, 4, 3))
        folders = ["folder", "folder"] if hasattr(os, "O_DIRECTORY") else []
        written = [step for step in order if step not in ("SELECT", "BEGIN", "COMMIT")]
        assert written == [*folders, "file", "replace", *folders[:1], "INSERT", "INSERT"]
        assert order.index("replace") < order.index("INSERT") < len(order) - order[::-1].index("COMMIT")


def test_the_index_is_written_so_that_a_power_cut_keeps_what_was_committed(folder):
    with Dataset(folder) as dataset:
        settings = {
            name: dataset._index.read(f"PRAGMA {name}")[0][0]
            for name in ("synchronous", "journal_mode", "busy_timeout")
        }
    assert settings == {"synchronous": 3, "journal_mode": "delete", "busy_timeout": 30_000} and BUSY == 30


def test_an_index_that_another_program_set_to_wal_is_set_back(folder):
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite")) as index:
        assert index.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    with Dataset(folder) as dataset:
        assert dataset._index.read("PRAGMA journal_mode")[0][0] == "delete"


# --- at once ---


@needs_fork
def test_two_processes_that_judge_at_once_lose_nothing(folder):
    def judge_as(annotator):
        def work(tell):
            with Dataset(folder) as dataset:
                for i in range(200):
                    judge(dataset, "s", WINNER_0 | {"log": {"i": i}}, annotator)

        return work

    for status, told in [finish(*child) for child in [start(judge_as("anna")), start(judge_as("ben"))]]:
        assert status == 0, told
    with Dataset(folder) as dataset:
        history = [
            (entry.annotator, entry.judgement.as_json["log"]["i"]) for entry in dataset.judgements("s")
        ]
    assert len(history) == 400 and set(history) == {(name, i) for name in ("anna", "ben") for i in range(200)}
    assert [i for name, i in history if name == "anna"] == list(range(200))


@needs_fork
def test_processes_that_make_a_dataset_and_add_the_same_sets_at_once_agree(tmp_path, trajectory):
    def add(tell):
        with Dataset(tmp_path / "new") as dataset:
            for i in range(10):
                trajectory.set_id = f"s{i}"
                if dataset.add_set(
                    f"s{i}", trajectory=trajectory, images=torch.rand(3, 4, 4, 3), conditioning=[i]
                ):
                    tell(b"%d\n" % i)
                dataset.delete(f"other {i}")

    results = [finish(*child) for child in [start(add) for _ in range(3)]]
    assert [status for status, _ in results] == [0, 0, 0], results
    assert sorted(b"".join(told for _, told in results).split()) == [b"%d" % i for i in range(10)]
    assert require_whole(tmp_path / "new") and payload(tmp_path / "new") == 10 * 5


def test_a_writer_waits_for_another_and_then_says_who_is_in_its_way(folder, monkeypatch):
    monkeypatch.setattr("d3po_core.dataset.index.BUSY", 0.1)
    with Dataset(folder) as dataset, contextlib.closing(sqlite3.connect(folder / "index.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(DatasetError, match="index.sqlite is held by another program.*close that program"):
            judge(dataset, "s", WINNER_0, "anna")
        assert time.monotonic() - began > 0.25
        other.rollback()
        judge(dataset, "s", WINNER_0, "anna")
        assert len(dataset.judgements("s")) == 1
