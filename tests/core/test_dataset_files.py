"""Damaged, foreign, older, newer and tampered datasets, and tensors that stay on disk."""

import contextlib
import dataclasses
import json
import os
import random
import re
import sqlite3
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from d3po_core.candidates import trajectory as trajectory_module
from d3po_core.candidates.preferences import Preferences
from d3po_core.candidates.trajectory import LazyTensor, Trajectory
from d3po_core.dataset import index as dataset_index
from d3po_core.dataset.store import Dataset, DatasetError
from d3po_core.training.loop import Example, Settings, Trainer
from tests.core.said import judge

WINNER_0 = {"pairs": [[0, 1]]}


@pytest.fixture
def trajectory(toy):
    return toy.record(toy.Denoiser(toy.net()), seed=7)


@pytest.fixture
def folder(tmp_path, trajectory):
    with Dataset(tmp_path / "taste") as dataset:
        dataset.add_set(
            "set 7", trajectory=trajectory, images=torch.rand(3, 8, 8, 3), conditioning={"c": torch.rand(9)}
        )
        dataset.add_set("other", images=torch.rand(2, 8, 8, 3), conditioning={"c": torch.rand(9)})
        judge(dataset, "set 7", WINNER_0, "anna")
    return tmp_path / "taste"


def change(folder, *statements):
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite", isolation_level=None)) as index:
        for statement in statements:
            index.execute(*statement) if isinstance(statement, tuple) else index.execute(statement)


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- damage ---

READERS = {"sets": Dataset.trajectory, "images": Dataset.images, "conditioning": Dataset.conditioning}


def file_of_set_7(dataset, kind):
    file = {
        "sets": lambda: dataset._row("set 7")["trajectory"],
        "images": lambda: dataset._image_rows("set 7")[1][0],
        "conditioning": lambda: dataset._index.read(
            "SELECT file FROM conditioning WHERE hash = ?", [dataset._row("set 7")["conditioning"]]
        )[0][0],
    }[kind]()
    return dataset.folder / file


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b"x" * path.stat().st_size),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["empty", "cut short", "longer", "garbage", "zeros", "missing", "a folder"],
)
def test_a_damaged_file_is_an_error_that_names_it_and_its_set_and_spares_the_others(folder, kind, damage):
    with Dataset(folder) as dataset:
        path = file_of_set_7(dataset, kind)
        damage(path)
        with pytest.raises(DatasetError, match=f"^set 'set 7': {re.escape(str(path))} is missing or damaged"):
            READERS[kind](dataset, "set 7")
        assert dataset.images("other").shape == (2, 8, 8, 3) and dataset.conditioning("other")["c"].shape == (
            9,
        )
        assert dataset.pairs("set 7") == [(0, 1)] and dataset.statistics()["sets"] == 2
        assert dataset.delete("set 7") == 1 and len(dataset.sets()) == 1


@pytest.mark.parametrize("kind", READERS)
def test_bytes_changed_at_random_are_an_error_or_read_as_numbers_but_nothing_else(folder, kind):
    chance = random.Random(0)
    with Dataset(folder) as dataset:
        path = file_of_set_7(dataset, kind)
        whole, errors = path.read_bytes(), 0
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(chance.choice([1, 3, 30])):
                damaged[chance.randrange(min(len(whole), chance.choice([60, 10**6])))] = chance.randrange(256)
            path.write_bytes(damaged)
            try:
                READERS[kind](dataset, "set 7")
            except DatasetError as error:
                assert str(path) in str(error)
                errors += 1
        assert errors > 100
        path.write_bytes(whole)
        READERS[kind](dataset, "set 7")


def test_changed_conditioning_is_noticed(folder):
    with Dataset(folder) as dataset:
        path = file_of_set_7(dataset, "conditioning")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(DatasetError, match="content is not what was stored"):
            dataset.conditioning("set 7")


def test_the_trajectory_of_another_set_is_not_taken_for_this_one(folder, trajectory):
    other = dataclasses.replace(trajectory, set_id="set 8")
    with Dataset(folder) as dataset:
        dataset.add_set("set 8", trajectory=other)
        path = file_of_set_7(dataset, "sets")
        other.save(path)
        with pytest.raises(DatasetError, match="set 'set 7'.*of set 'set 8'"):
            dataset.trajectory("set 7")


# --- the index ---


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
        DatasetError, match=r"index.sqlite was written by a newer version .*format 7; this one knows 1"
    ):
        Dataset(folder)
    assert snapshot(folder) == before


def to_version_2(index):
    index.execute("ALTER TABLE sets ADD COLUMN stars INTEGER NOT NULL DEFAULT 3")


def to_version_3(index):
    index.execute("UPDATE sets SET stars = stars + 1")
    index.execute("CREATE TABLE more (a)")


def test_an_older_dataset_is_brought_up_to_date_step_by_step_once(folder, monkeypatch):
    assert [dataset_index.version_1] == dataset_index.MIGRATIONS
    monkeypatch.setattr(dataset_index, "MIGRATIONS", [dataset_index.version_1, to_version_2, to_version_3])
    for _ in range(2):
        with Dataset(folder) as dataset:
            assert [row[0] for row in dataset._index.read("SELECT stars FROM sets")] == [4, 4]
            assert dataset._index.read("PRAGMA user_version")[0][0] == 3
            assert len(dataset.trajectory("set 7").states[0]) == 3 and dataset.pairs("set 7") == [(0, 1)]
    with Dataset(folder / "new") as dataset:
        assert dataset._index.read("SELECT stars FROM sets") == []


def test_a_step_that_fails_leaves_the_older_dataset_as_it_was(folder, monkeypatch):
    def broken(index):
        to_version_3(index)
        index.execute("nonsense")

    before = snapshot(folder)
    with monkeypatch.context() as patch, pytest.raises(DatasetError, match="index.sqlite"):
        patch.setattr(dataset_index, "MIGRATIONS", [dataset_index.version_1, to_version_2, broken])
        Dataset(folder)
    assert snapshot(folder) == before
    Dataset(folder).close()


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


# --- inside the folder ---


@pytest.fixture
def secret(tmp_path, trajectory):
    """A trajectory and an image outside the dataset, of the kinds and sizes that are expected."""
    (tmp_path / "outside" / "ab").mkdir(parents=True)
    trajectory.save(tmp_path / "outside" / "ab" / "0.safetensors")
    return tmp_path / "outside" / "ab" / "0.safetensors"


def require_refused(folder, secret, column="trajectory"):
    content = secret.read_bytes()
    read = Dataset.trajectory if column == "trajectory" else Dataset.images
    with Dataset(folder) as dataset:
        with pytest.raises(DatasetError, match="none of this pack's|leads out of the dataset's folder"):
            read(dataset, "set 7")
        if column == "file":
            with pytest.raises(DatasetError):
                dataset.image_files("set 7")
        assert dataset.images("other") is not None
        dataset.delete("set 7")
    assert secret.read_bytes() == content


@pytest.mark.parametrize("table, column", [("sets", "trajectory"), ("images", "file")])
@pytest.mark.parametrize(
    "file",
    [
        "../outside/ab/0.safetensors",
        "sets/../../outside/ab/0.safetensors",
        "sets/ab/../../../outside/ab/0.safetensors",
        "{root}/outside/ab/0.safetensors",
        "sets\\..\\..\\outside\\ab\\0.safetensors",
        "C:/outside/ab/0.safetensors",
        "//server/share/0.safetensors",
        "sets/ab/0.safetensors\0",
        "sets/ab/0.safetensors\n",
        "sets/AB/0.safetensors",
        "index.sqlite",
        "sets/ab/0.sqlite",
        "",
    ],
)
def test_an_index_that_names_another_place_is_refused_for_reading_and_deleting(
    folder, secret, table, column, file
):
    where = "WHERE id = 'set 7'" if table == "sets" else "WHERE set_id = 'set 7' AND candidate = 0"
    change(folder, (f"UPDATE {table} SET {column} = ? {where}", [file.format(root=folder.parent)]))
    require_refused(folder, secret, column)


def link(path, target):
    try:
        os.symlink(target, path, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("links cannot be made here")


def test_a_link_in_the_place_of_a_file_is_refused(folder, secret):
    with Dataset(folder) as dataset:
        path = file_of_set_7(dataset, "sets")
    path.unlink()
    link(path, secret)
    require_refused(folder, secret)


def test_a_link_in_the_place_of_a_folder_is_refused_for_all_that_is_done_to_files(folder, secret, trajectory):
    with Dataset(folder) as dataset:
        path = file_of_set_7(dataset, "sets")
    outside = secret.parents[1] / path.parent.name
    path.parent.rename(outside)
    path.parent.parent.rmdir()
    link(path.parent.parent, secret.parents[1])
    before = snapshot(secret.parents[1])
    with Dataset(folder) as dataset:
        with pytest.raises(DatasetError, match="leads out of the dataset's folder"):
            dataset.trajectory("set 7")
        with pytest.raises(DatasetError, match="leads out of the dataset's folder"):
            dataset.add_set("set 8", trajectory=dataclasses.replace(trajectory, set_id="set 8"))
        with pytest.raises(DatasetError, match="leads out of the dataset's folder"):
            dataset.tidy(older_than=-60)
        dataset.delete("set 7")
    assert snapshot(secret.parents[1]) == before and len(list(secret.parents[1].iterdir())) == 2


def test_an_index_that_is_a_link_is_refused_and_a_folder_that_is_one_is_not(folder, tmp_path):
    (tmp_path / "linked").mkdir()
    link(tmp_path / "linked" / "index.sqlite", folder / "index.sqlite")
    with pytest.raises(DatasetError, match="leads out"):
        Dataset(tmp_path / "linked")
    link(tmp_path / "shortcut", folder)
    with Dataset(tmp_path / "shortcut") as dataset:
        assert len(dataset.trajectory("set 7").states[0]) == 3 and dataset.add_set(
            "s", images=torch.rand(2, 4, 4, 3)
        )


def test_a_dataset_can_be_moved_and_opened_by_a_relative_path(folder, tmp_path, monkeypatch):
    folder.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    with Dataset("moved") as dataset:
        monkeypatch.chdir("/")
        assert len(dataset.trajectory("set 7").states[0]) == 3 and dataset.images("set 7") is not None


def test_others_may_read_the_files_as_far_as_they_may_read_any(folder, tmp_path):
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in snapshot(folder) if path.suffix != ".sqlite"} == {
        (tmp_path / "plain").stat().st_mode
    }


# --- tensors on disk ---


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        3,
        slice(None),
        slice(1, 3),
        slice(-2, None),
        slice(None, None, 2),
        slice(3, 1),
        (0, slice(None, 1)),
        (slice(None), 1),
        (slice(1, None), slice(0, 2), 0),
        (1, 2, 0, 1, 1),
    ],
    ids=repr,
)
def test_a_lazy_tensor_is_indexed_as_the_tensor_it_stands_for(trajectory, tmp_path, index):
    trajectory.save(tmp_path / "t.safetensors")
    lazy, tensor = Trajectory.open(tmp_path / "t.safetensors").states, trajectory.states
    assert (lazy.shape, lazy.dtype, len(lazy), lazy.ndim) == (
        tensor.shape,
        tensor.dtype,
        len(tensor),
        tensor.ndim,
    )
    part = lazy[index]
    assert torch.equal(part, tensor[index]) and part.shape == tensor[index].shape
    assert part.untyped_storage().nbytes() == part.nbytes, "it holds the file"
    with pytest.raises(IndexError):
        lazy[99]


def test_a_lazy_tensor_goes_where_a_tensor_goes(trajectory, tmp_path):
    trajectory.save(tmp_path / "t.safetensors")
    lazy, tensor = Trajectory.open(tmp_path / "t.safetensors").denoised, trajectory.denoised
    assert torch.equal(torch.stack([lazy, lazy]), torch.stack([tensor, tensor]))
    assert torch.equal(tensor - lazy, torch.zeros_like(tensor)) and torch.equal(
        torch.stack(list(lazy)), tensor
    )
    (tmp_path / "t.safetensors").unlink()
    zeros = torch.zeros_like(lazy)
    assert torch.equal(zeros, torch.zeros_like(tensor)) and zeros.dtype == tensor.dtype
    assert torch.zeros_like(lazy, dtype=torch.float64, device="meta").dtype == torch.float64


def test_an_opened_trajectory_reads_its_latents_when_they_are_asked_for(trajectory, tmp_path):
    path = tmp_path / "t.safetensors"
    trajectory.save(path)
    opened = Trajectory.open(path, conditioning="x")
    assert opened.candidates == 3 and opened.actions == trajectory.actions and opened.conditioning == "x"
    dataclasses.replace(trajectory, states=trajectory.states + 1).save(path)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is damaged: step 2 of states"):
        opened.states[2]
    path.unlink()
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*states cannot be read"):
        opened.states[0]


def test_an_opened_trajectory_can_be_saved_again(trajectory, tmp_path):
    trajectory.save(tmp_path / "a.safetensors")
    Trajectory.open(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_shapes_that_do_not_fit_are_an_error_on_opening(trajectory, tmp_path):
    header = {
        "d3po": json.dumps(
            {
                "format": trajectory_module.FORMAT,
                "kernel": {"name": "ancestral", "eta": 1},
                "set_id": "",
                "model": "",
                "policy": "",
                "settings": {},
            }
        )
    }
    for states in (torch.ones(2, 1, 2, 2, 2), torch.ones(())):
        save_file(
            {"states": states, "denoised": torch.ones(2, 1, 2, 2, 2), "sigmas": torch.ones(3)},
            tmp_path / "t.safetensors",
            metadata=header,
        )
        with pytest.raises(ValueError, match="t.safetensors is not a trajectory file"):
            Trajectory.open(tmp_path / "t.safetensors")


def test_a_trajectory_is_written_from_where_it_lies_in_memory(trajectory, folder, monkeypatch):
    given, real = {}, trajectory_module.save_file
    monkeypatch.setattr(
        trajectory_module,
        "save_file",
        lambda tensors, *more, **named: (
            given.update({name: tensor.data_ptr() for name, tensor in tensors.items()}),
            real(tensors, *more, **named),
        ),
    )
    with Dataset(folder) as dataset:
        dataset.add_set("set 8", trajectory=dataclasses.replace(trajectory, set_id="set 8"))
    assert given == {name: getattr(trajectory, name).data_ptr() for name in ("states", "denoised", "sigmas")}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_trajectories_and_what_was_read_of_them_keep_no_file_open(folder):
    with Dataset(folder) as dataset:
        path = os.path.realpath(file_of_set_7(dataset, "sets"))
        held = [
            (opened, opened.states[0], opened.denoised[0, :1])
            for opened in (dataset.trajectory("set 7") for _ in range(50))
        ]
        assert path not in Path("/proc/self/maps").read_text() and len(held) == 50
        assert path not in [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]


@pytest.mark.parametrize("reference", ["base", None], ids=["recorded reference", "computed reference"])
def test_training_on_latents_on_disk_is_training_on_latents_in_memory(setup, toy, tmp_path, reference):
    weights = []
    for on_disk in (False, True):
        denoise, adapter = setup(seed=1)
        examples = toy.examples(denoise)
        if on_disk:
            with Dataset(tmp_path / "taste") as dataset:
                for i, example in enumerate(examples):
                    dataset.add_set(example.trajectory.set_id, trajectory=example.trajectory)
                    opened = dataset.trajectory(example.trajectory.set_id)
                    assert isinstance(opened.states, LazyTensor) and isinstance(opened.denoised, LazyTensor)
                    examples[i] = Example(Preferences(opened, example.preferences.pairs), denoise)
        Trainer(adapter, Settings(learning_rate=1e-2, epochs=3), reference).fit(examples)
        weights.append(adapter.weights())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
