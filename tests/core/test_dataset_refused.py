"""Writers of datasets that have no room and that may not write."""

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from d3po_core import files
from d3po_core.dataset import files as dataset_files
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


# --- no room ---


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        not sys.platform.startswith("linux")
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True
        ).returncode
    ):
        pytest.skip("a small disk cannot be made here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk):
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def test_a_full_disk_stops_a_set_as_a_whole_and_leaves_the_others(small_disk):
    with Dataset(small_disk / "taste") as dataset:
        with pytest.raises(DatasetError, match=r"(png|safetensors|sqlite): the disk is full. .* make room"):
            for i in range(100):
                dataset.add_set(f"s{i}", images=torch.rand(2, 64, 64, 3), conditioning=[torch.rand(900)])
        assert len(dataset.sets()) == i and payload(small_disk / "taste") == 3 * i > 0
        assert all(len(dataset.images(row.id)) == 2 for row in dataset.sets())
        dataset.delete("s0")
        assert (
            dataset.add_set("again", images=torch.rand(1, 64, 64, 3)) and dataset.images("again") is not None
        )
    assert integrity(small_disk / "taste") == [("ok",)]


def test_a_full_disk_stops_a_judgement_and_the_earlier_ones_stay(small_disk):
    with Dataset(small_disk / "taste") as dataset:
        dataset.add_set("s", candidates=2)
        judge(dataset, "s", WINNER_0, "anna")
        fill(small_disk)
        with pytest.raises(DatasetError, match="index.sqlite: the disk is full"):
            judge(dataset, "s", {"pairs": [[1, 0]]}, "anna")
        assert dataset.pairs("s") == [(0, 1)]
        (small_disk / "filler").unlink()
        judge(dataset, "s", {"pairs": [[1, 0]]}, "anna")
        assert dataset.pairs("s") == [(1, 0)]


def test_a_new_dataset_on_a_full_disk_is_an_error_that_says_so(small_disk):
    fill(small_disk)
    with pytest.raises(DatasetError, match="the disk is full|could not be read or written"):
        Dataset(small_disk / "taste")
    (small_disk / "filler").unlink()
    Dataset(small_disk / "taste").close()


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (
            OSError(errno.EROFS, "Read-only file system"),
            "cannot be opened or written.*allow this program to write",
        ),
        (OSError(errno.EIO, "Input/output error"), "could not be read or written.*see whether its disk"),
    ],
)
def test_a_file_that_cannot_be_written_stops_the_set_as_a_whole(folder, monkeypatch, error, words):
    def fail(*_, **options):
        raise error

    with Dataset(folder) as dataset:
        dataset.add_set("t", images=torch.rand(2, 4, 4, 3))
        before = payload(folder)
        with monkeypatch.context() as patch, pytest.raises(DatasetError, match=f"{folder}.*{words}"):
            patch.setattr(dataset_files.Image.Image, "save", fail)
            dataset.add_set("u", images=torch.rand(2, 4, 4, 3))
        with monkeypatch.context() as patch, pytest.raises(DatasetError, match=f"{folder}.*{words}"):
            patch.setattr(files.os, "replace", fail)
            dataset.add_set("u", candidates=2, conditioning=[1])
        assert not dataset.find("u") and payload(folder) == before and dataset.images("t") is not None
        assert dataset.add_set("u", images=torch.rand(2, 4, 4, 3))


def test_an_index_that_may_not_grow_is_a_full_disk_and_removes_the_files_of_the_set(folder):
    with Dataset(folder) as dataset:
        dataset._index.read("PRAGMA max_page_count = 1")
        with pytest.raises(DatasetError, match="index.sqlite: the disk is full"):
            for i in range(200):
                dataset.add_set(f"t{i}", images=torch.rand(1, 4, 4, 3), prompt="x" * 500)
        assert payload(folder) == i == len(dataset.sets()) - 1


# --- not allowed ---


@needs_fork
def test_a_folder_that_may_not_be_written_can_be_read_and_says_what_to_do(trajectory):
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)
        folder = Path(parent) / "taste"
        with Dataset(folder) as dataset:
            dataset.add_set("set 7", trajectory=trajectory, images=torch.rand(3, 4, 4, 3), conditioning=[1])
            judge(dataset, "set 7", WINNER_0, "anna")
        everything = [folder, *folder.rglob("*")]
        for path in everything:
            os.chmod(path, 0o555 if path.is_dir() else 0o444)
        before = {path: path.is_file() and path.read_bytes() for path in everything}

        def look(tell):
            if os.getuid() == 0:
                os.setuid(65534)  # nothing is forbidden to root
            with Dataset(folder) as dataset:
                assert dataset.pairs("set 7") == [(0, 1)] and len(dataset.images("set 7")) == 3
                assert len(dataset.trajectory("set 7").states[0]) == 3 and dataset.statistics()["sets"] == 1
                for write in (
                    lambda: judge(dataset, "set 7", WINNER_0, "anna"),
                    lambda: dataset.delete("set 7"),
                    lambda: dataset.add_set("t", candidates=2),
                    lambda: dataset.add_set("t", images=torch.rand(2, 4, 4, 3)),
                    lambda: Dataset(folder / "inside"),
                ):
                    with pytest.raises(
                        DatasetError, match=f"{folder}.* cannot be .*allow this program to write"
                    ):
                        write()
                assert len(dataset.judgements("set 7")) == 1
            tell(b"done")

        status, told = finish(*start(look))
        assert (status, told) == (0, b"done")
        for path in everything:
            if path.is_dir():
                os.chmod(path, 0o755)
        assert before == {path: path.is_file() and path.read_bytes() for path in [folder, *folder.rglob("*")]}
