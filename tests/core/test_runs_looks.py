"""What pictures become is kept with a run's states: saved, branched, taken back, deleted."""

from pathlib import Path

import pytest
import torch

from d3po_core.runs import looks, store
from d3po_core.runs.files import leftovers
from d3po_core.runs.looks import Look
from d3po_core.runs.undo import undo_round
from tests.core.test_undo import record, tensors

BASE = b"base"


def look(step):
    return Look((BASE,), (b"after %d" % step,), ("a cat",))


def save(root, step, starts, keep=3, seen=True):
    return store.save_run(
        root / "run", tensors(step), record(step, starts), keep, look=look(step) if seen else None
    )


@pytest.fixture
def root(tmp_path):
    """A run of three rounds, of which the last was not looked at."""
    save(tmp_path, 2, [0])
    save(tmp_path, 5, [0, 2])
    save(tmp_path, 9, [0, 2, 5], seen=False)
    return tmp_path


def now(folder, checkpoint=store.LATEST):
    return looks.read_look(folder, store.load_run(folder, checkpoint)[1])


def pictures(folder):
    return {path.read_bytes() for path in folder.glob("pictures/*")}


def test_each_state_has_the_pictures_that_were_looked_at_then(root):
    run = root / "run"
    assert (now(run), now(run, 5), now(run, 2), now(run, "0")) == (None, look(5), look(2), None)
    assert pictures(run) == {BASE, b"after 2", b"after 5"}  # the base's once
    undo_round(root, "run")
    (told,) = store.list_runs(root)
    shown = [(run / "pictures" / name).read_bytes() for name in (*told.look["before"], *told.look["now"])]
    assert (shown, told.look["prompts"]) == ([BASE, b"after 5"], ["a cat"])
    assert told.size == sum(path.stat().st_size for path in run.rglob("*") if path.is_file())


def test_pictures_go_with_the_last_state_that_has_them(root):
    run = root / "run"
    (run / "pictures" / "mine.png").write_bytes(b"a person's")
    (run / "pictures" / "0123.png.ab.partial").write_bytes(b"killed")
    save(root, 12, [0, 2, 5, 9], keep=2)
    assert pictures(run) == {BASE, b"after 12", b"a person's"}
    assert store.delete(root, "run") == ["pictures"], "what is not the run's own stays"
    assert pictures(run) == {b"a person's"}


def test_a_branch_has_the_pictures_of_its_state_and_a_state_of_a_conflict_has_its_own(root):
    store.branch(root, "run", "new", 5)
    assert now(root / "new") == look(5) and pictures(root / "new") == {BASE, b"after 5"}
    assert store.delete(root, "run") == [] and now(root / "new") == look(5)
    other = record(7, [0]) | {"rounds": [{"start": 0, "key": "another", "sets": []}]}
    saved = store.save_run(root / "new", tensors(7), other, look=look(7))
    assert saved.run == "new branch 2" and now(root / "new branch 2") == look(7)


def test_a_look_changes_nothing_of_what_a_state_is(root):
    head = store.head(root / "run")
    store.save_run(root / "run", tensors(9), record(9, [0, 2, 5]), look=look(9))
    assert now(root / "run") == look(9) and store.head(root / "run") == head


@pytest.mark.parametrize("name", ["../run.safetensors", "0123456789abcdef.png"])
def test_pictures_that_are_gone_or_lie_elsewhere_are_none(tmp_path, name):
    said = record(2, [0]) | {"look": {"before": [name], "now": [name], "prompts": [""]}}
    store.save_run(tmp_path / "run", {"lora.a": torch.ones(2)}, said)
    assert store.list_runs(tmp_path)[0].look is None and now(tmp_path / "run") is None
    assert store.branch(tmp_path, "run", "new") == 2


def test_a_picture_that_cannot_be_written_leaves_the_run_as_it_was(root, monkeypatch):
    before = store.load_run(root / "run")[1]

    def full(path, content):
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"pictures.*\.png could not be written.*the disk is full"):
        save(root, 12, [0, 2, 5, 9])
    assert store.load_run(root / "run")[1] == before and not leftovers(root / "run" / "pictures")
