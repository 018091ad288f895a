import pickle
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from d3po_core import runs

TENSORS = {"lora.a": torch.arange(6.0).view(2, 3), "optimizer.a.step": torch.tensor(3.0)}
RECORD = {"step": 3, "settings": {"beta": 0.1}, "name": "Bär"}


@pytest.fixture
def folder(tmp_path):
    folder = runs.run_folder(tmp_path, "my taste")
    runs.save_run(folder, TENSORS, RECORD)
    return folder


def test_a_run_comes_back_as_it_was_saved(folder):
    tensors, record = runs.load_run(folder)
    assert tensors.keys() == TENSORS.keys() and all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert record == RECORD | {"format": runs.FORMAT}
    assert [path.name for path in folder.iterdir()] == [runs.STATE]


def test_a_run_that_does_not_exist_is_none_and_makes_no_folder(tmp_path):
    assert runs.load_run(tmp_path / "new") is None and runs.run_version(tmp_path / "new") == 0
    assert not (tmp_path / "new").exists()


def test_the_version_changes_with_the_run(folder):
    before = runs.run_version(folder)
    runs.save_run(folder, TENSORS, RECORD | {"step": 4})
    assert runs.run_version(folder) != before and runs.load_run(folder)[1]["step"] == 4


def test_a_write_that_fails_leaves_the_run_as_it_was_and_nothing_beside_it(folder):
    def half(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    before = (folder / runs.STATE).read_bytes()
    with pytest.raises(OSError, match="disk full"):
        runs.replace_whole(folder / runs.STATE, half)
    assert (folder / runs.STATE).read_bytes() == before and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", r"a\b", ".x", "x.", "x ", "a:b", "x\n", 101 * "x"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        runs.run_folder(tmp_path, name)


@pytest.mark.parametrize("name", ["x", "my taste", "v1.2_b-3", "x" * 100])
def test_a_plain_name_is_a_folder_below_the_root(tmp_path, name):
    assert runs.run_folder(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:-4]),
    lambda path: path.write_bytes(pickle.dumps(RECORD)),
    lambda path: save_file(load_file(path), path),
    lambda path: save_file(load_file(path), path, metadata={"d3po": "{not json"}),
    lambda path: save_file(load_file(path), path, metadata={"d3po": "[1]"}),
    lambda path: save_file(load_file(path), path, metadata={"d3po": '{"format": "d3po.run/99"}'}),
], ids=["empty", "truncated", "pickle", "no metadata", "bad json", "json list", "newer format"])
def test_a_damaged_run_is_an_error_that_names_the_file_and_leaves_it(folder, damage):
    path = folder / runs.STATE
    damage(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*left as it is"):
        runs.load_run(folder)
    assert path.read_bytes() == before
