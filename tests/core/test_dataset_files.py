"""Damaged files of datasets, and files that lie elsewhere."""

import dataclasses
import os
import random
import re

import pytest
import torch

from d3po_core.dataset.store import Dataset, DatasetError
from tests.core.datasets import (
    change,
    file_of_set_7,
    snapshot,
    taste,
)


@pytest.fixture
def trajectory(toy):
    return toy.record(toy.Denoiser(toy.net()), seed=7)


@pytest.fixture
def folder(tmp_path, trajectory):
    return taste(tmp_path / "taste", trajectory)


# --- damage ---


READERS = {"sets": Dataset.trajectory, "images": Dataset.images, "conditioning": Dataset.conditioning}


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


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])]
)
def test_conditioning_that_is_not_whole_is_noticed_without_reading_it(folder, damage):
    with Dataset(folder) as dataset:
        path = file_of_set_7(dataset, "conditioning")
        dataset.require_conditioning("set 7")
        damage(path)
        with pytest.raises(DatasetError, match="delete the file, and what needs it is left out"):
            dataset.require_conditioning("set 7")
        dataset.require_conditioning("other")


def test_the_trajectory_of_another_set_is_not_taken_for_this_one(folder, trajectory):
    other = dataclasses.replace(trajectory, set_id="set 8")
    with Dataset(folder) as dataset:
        dataset.add_set("set 8", trajectory=other)
        path = file_of_set_7(dataset, "sets")
        other.save(path)
        with pytest.raises(DatasetError, match="set 'set 7'.*of set 'set 8'"):
            dataset.trajectory("set 7")


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
