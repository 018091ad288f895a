import os
import re

import pytest
import torch

from d3po_core.runs import store
from d3po_core.runs.locks import LOCKS
from tools.host import link

BASE = {
    "model": "base",
    "settings": {"rank": 2, "alpha": 2.0, "targets": "attention", "adapter": "LoRA", "architecture": "SD15"},
}
TENSORS = {"lora.a": torch.arange(6.0).view(2, 3), "optimizer.a.step": torch.tensor(3.0)}
RECORD = BASE | {"step": 3, "name": "Bär"}


def files(folder):
    """All but the locks, which are no run's."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() and path.parent.name != LOCKS
    )


def contents(folder):
    return {file: (folder / file).read_bytes() for file in files(folder)}


def state(step, accuracy=None, margin=0.0, rounds=None):
    """(tensors, record) of a run at a step; `rounds` by their keys."""
    history = [{} if accuracy is None else {"held-out accuracy": accuracy, "held-out margin": margin}]
    rounds = [{"start": i, "key": key, "sets": []} for i, key in enumerate(rounds or [])]
    return {"lora.a": torch.full((2,), float(step))}, BASE | {
        "step": step,
        "history": history,
        "rounds": rounds,
    }


def go_on(folder, tensors, record, **options):
    """Save a state as who has loaded what is there."""
    assert not store.save_run(folder, tensors, record, head=store.head(folder), **options).why


def keep_steps(folder, *states, **options):
    """Save states one after the other; the steps of the checkpoints that are left."""
    for one in states:
        go_on(folder, *one, **options)
    return [checkpoint.step for checkpoint in store.checkpoints(folder)]


@pytest.fixture
def folder(tmp_path):
    folder = store.run_folder(tmp_path, "my taste")
    store.save_run(folder, TENSORS, RECORD)
    return folder


def test_a_run_comes_back_as_it_was_saved(folder):
    tensors, record = store.load_run(folder)
    assert tensors.keys() == TENSORS.keys() and all(
        torch.equal(tensors[name], TENSORS[name]) for name in TENSORS
    )
    assert record.items() >= (RECORD | {"format": "d3po.run/3"}).items()
    assert files(folder) == ["checkpoints/step-000003.safetensors", "run.safetensors"]


def test_a_run_that_does_not_exist_is_none_and_makes_no_folder(tmp_path):
    assert store.load_run(tmp_path / "new") is None and store.run_version(tmp_path / "new") == ""
    assert not (tmp_path / "new").exists()


def test_the_version_changes_with_the_run(folder):
    before = store.run_version(folder)
    go_on(folder, TENSORS, RECORD | {"step": 4})
    assert store.run_version(folder) != before and store.load_run(folder)[1]["step"] == 4


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", r"a\b", ".x", "x.", "x ", "a:b", "x\n", 101 * "x"]
)
def test_names_that_could_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        store.run_folder(tmp_path, name)


@pytest.mark.parametrize("name", ["x", "my taste", "v1.2_b-3", "x" * 100])
def test_a_plain_name_is_a_folder_below_the_root(tmp_path, name):
    assert store.run_folder(tmp_path, name) == tmp_path / name


def test_what_a_killed_process_left_half_written_goes_with_the_next_save(folder):
    for half in ("run.safetensors.1.partial", "checkpoints/step-000009.safetensors.1.partial"):
        (folder / half).write_bytes(b"half")
    (folder / "mine.partial").write_bytes(b"mine")
    go_on(folder, TENSORS, RECORD | {"step": 4})
    assert [file for file in files(folder) if file.endswith("partial")] == ["mine.partial"]


# --- checkpoints ---


def test_the_last_three_checkpoints_and_the_best_are_kept(tmp_path):
    accuracies = (0.5, 0.9, 0.6, 0.7, 0.6, 0.8)
    kept = keep_steps(tmp_path, *(state(step, accuracy) for step, accuracy in enumerate(accuracies, 1)))
    assert kept == [2, 4, 5, 6] and store.best_of(store.checkpoints(tmp_path)).step == 2
    assert files(tmp_path) == [f"checkpoints/step-00000{step}.safetensors" for step in kept] + [
        "run.safetensors"
    ]


@pytest.mark.parametrize("keep, kept", [(1, [6]), (2, [5, 6]), (9, [1, 2, 3, 4, 5, 6])])
def test_as_many_checkpoints_are_kept_as_are_asked_for(tmp_path, keep, kept):
    assert keep_steps(tmp_path, *map(state, range(1, 7)), keep=keep) == kept


def test_of_equal_accuracies_the_larger_margin_is_the_best_and_of_equal_margins_the_later(tmp_path):
    keep_steps(
        tmp_path, state(1, 0.5, 3.0), state(2, 0.7, 1.0), state(3, 0.7, 2.0), state(4, 0.7, 2.0), keep=9
    )
    assert store.best_of(store.checkpoints(tmp_path)).step == 4


def test_a_run_that_went_back_keeps_the_checkpoints_it_saved_last(tmp_path):
    assert keep_steps(tmp_path, *map(state, (10, 20, 30, 11, 12)), keep=2) == [11, 12]


@pytest.mark.parametrize(
    "checkpoint, step", [("latest", 5), ("best", 2), ("2", 2), (" 4 ", 4), (3, 3), ("000005", 5)]
)
def test_a_run_loads_at_any_checkpoint(tmp_path, checkpoint, step):
    keep_steps(tmp_path, *(state(step, 0.9 if step == 2 else 0.5) for step in range(1, 6)))
    tensors, record = store.load_run(tmp_path, checkpoint)
    assert record["step"] == step and torch.equal(tensors["lora.a"], torch.full((2,), float(step)))


@pytest.mark.parametrize(
    "checkpoint, told",
    [
        ("7", "'7'.*latest, best, .*: 3, 4, 5"),
        ("newest", "'newest'"),
        ("../run", "'../run'"),
        ("best", "held_out"),
    ],
)
def test_a_checkpoint_that_there_is_not_is_an_error_that_lists_them(tmp_path, checkpoint, told):
    keep_steps(tmp_path, *map(state, range(1, 6)))
    with pytest.raises(ValueError, match=f"checkpoint: .*{told}"):
        store.load_run(tmp_path, checkpoint)


@pytest.mark.parametrize("checkpoint", ["latest", "best", "3"])
def test_a_new_run_begins_whatever_the_checkpoint(tmp_path, checkpoint):
    assert store.load_run(tmp_path / "new", checkpoint) is None


def test_with_its_state_moved_away_a_run_goes_on_from_its_last_checkpoint(folder):
    before = store.run_version(folder)
    (folder / store.STATE).unlink()
    assert store.load_run(folder)[1]["step"] == 3 and store.run_version(folder) not in ("", before)


def test_a_run_from_before_there_were_adapters_is_a_lora(tmp_path):
    settings = {name: value for name, value in BASE["settings"].items() if name != "adapter"}
    old = RECORD | {"settings": settings, "saved": 1, "rounds": []}
    for path in (store.checkpoint_path(tmp_path, 3), tmp_path / store.STATE):
        store.write(path, store.FORMAT, TENSORS, old)
    assert (
        store.load_run(tmp_path)[1]["settings"]
        == store.load_run(tmp_path, "3")[1]["settings"]
        == BASE["settings"]
    )
    other = old | {"settings": settings | {"adapter": "DoRA"}}
    assert (
        "started with adapter LoRA, and this LoRA has adapter DoRA"
        in store.save_run(tmp_path, TENSORS, other).why
    )
    go_on(tmp_path, TENSORS, RECORD | {"step": 4})
    assert store.load_run(tmp_path)[1]["settings"] == BASE["settings"]


# --- list, branch, delete ---


def test_runs_are_listed_with_their_figures(tmp_path):
    keep_steps(tmp_path / "b", state(1, 0.9, rounds="a"), state(2, 0.7, rounds="ab"))
    keep_steps(tmp_path / "A", state(5))
    (tmp_path / "no run").mkdir()
    (tmp_path / "file").write_text("x")
    plain, judged = store.list_runs(tmp_path)
    assert (plain.name, plain.step, plain.rounds, plain.accuracy, plain.best) == ("A", 5, 0, None, None)
    assert (judged.name, judged.step, judged.rounds, judged.accuracy, judged.best) == ("b", 2, 2, 0.7, 0.9)
    assert (judged.model, judged.rank, judged.problem) == ("SD15 base", 2, "")
    assert judged.size == sum((tmp_path / "b" / file).stat().st_size for file in files(tmp_path / "b"))
    assert judged.changed == (tmp_path / "b" / store.STATE).stat().st_mtime
    assert store.list_runs(tmp_path / "nowhere") == []


def test_a_run_in_its_first_round_is_listed(tmp_path):
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "progress.safetensors").write_bytes(b"anything")
    (run,) = store.list_runs(tmp_path)
    assert (run.name, run.step, run.problem, run.size) == ("young", 0, "its first round is not finished", 8)


def test_a_damaged_run_is_listed_with_what_is_wrong(folder):
    (folder / store.STATE).write_bytes(b"")
    (run,) = store.list_runs(folder.parent)
    assert run.name == "my taste" and str(folder / store.STATE) in run.problem and run.size > 0


@pytest.mark.parametrize("checkpoint, step", [("latest", 3), ("best", 1), ("2", 2)])
def test_a_branch_begins_where_the_run_was_and_leaves_it(tmp_path, checkpoint, step):
    keep_steps(tmp_path / "old", state(1, 0.9), state(2, 0.5), state(3, 0.6))
    before = contents(tmp_path / "old")
    assert store.branch(tmp_path, "old", "new", checkpoint) == step
    old, new = store.load_run(tmp_path / "old", checkpoint), store.load_run(tmp_path / "new")
    assert torch.equal(new[0]["lora.a"], old[0]["lora.a"])
    assert new[1] | {"saved": 0} == old[1] | {"saved": 0}
    keep_steps(tmp_path / "new", state(9))
    assert contents(tmp_path / "old") == before


def test_a_run_in_its_first_round_cannot_be_branched(tmp_path):
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "progress.safetensors").write_bytes(b"anything")
    with pytest.raises(ValueError, match="run: the first round of 'young' is not finished"):
        store.branch(tmp_path, "young", "new")
    assert not (tmp_path / "new").exists()


def test_a_branch_replaces_nothing(folder):
    for name in ("taken", "empty"):
        (folder.parent / name).mkdir()
    (folder.parent / "taken" / "notes.txt").write_text("mine")
    for name in ("taken", "empty", "my taste"):
        before = contents(folder.parent)
        with pytest.raises(ValueError, match=f"new_name: '{name}' is there already"):
            store.branch(folder.parent, "my taste", name)
        assert contents(folder.parent) == before


def test_a_branch_that_cannot_be_written_leaves_no_folder(folder, monkeypatch):
    monkeypatch.setattr("d3po_core.files.os.replace", refuse)
    with pytest.raises(OSError, match="could not be written"):
        store.branch(folder.parent, "my taste", "new")
    assert not (folder.parent / "new").exists()


def refuse(*_):
    raise OSError(30, "Read-only file system")


def test_delete_removes_a_run_whole_and_no_other(folder):
    root = folder.parent
    keep_steps(root / "other", state(1))
    (folder / "progress.safetensors").write_bytes(b"anything")
    (folder / "run.safetensors.123.partial").write_bytes(b"half")
    (folder / "checkpoints" / "step-000009.safetensors.123.partial").write_bytes(b"half")
    other = contents(root / "other")
    assert store.delete(root, "my taste") == []
    assert not folder.exists() and contents(root / "other") == other


def test_delete_leaves_what_is_not_the_runs(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "checkpoints" / "step-1.safetensors").write_text("mine")
    assert store.delete(folder.parent, "my taste") == ["checkpoints", "notes.txt"]
    assert files(folder) == ["checkpoints/step-1.safetensors", "notes.txt"]


def test_a_damaged_run_can_be_deleted(folder):
    (folder / store.STATE).write_bytes(b"")
    assert store.delete(folder.parent, "my taste") == [] and not folder.exists()


def test_a_run_that_there_is_not_is_an_error_that_lists_them(folder):
    for act in (
        lambda: store.delete(folder.parent, "mine"),
        lambda: store.branch(folder.parent, "mine", "new"),
    ):
        with pytest.raises(ValueError, match="no run 'mine'. There are: my taste"):
            act()
    assert [run.name for run in store.list_runs(folder.parent)] == ["my taste"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "NUL"])
def test_unsafe_names_are_refused_everywhere(folder, name):
    root = folder.parent
    for act in (
        lambda: store.delete(root, name),
        lambda: store.branch(root, name, "new"),
        lambda: store.branch(root, "my taste", name),
    ):
        with pytest.raises(ValueError, match="cannot name a folder"):
            act()
    assert sorted(path.name for path in root.iterdir()) == [LOCKS, "my taste"]


@pytest.mark.skipif(os.name == "nt", reason="links need special rights there")
@pytest.mark.parametrize(
    "link", ["run", "checkpoints", "run.safetensors", "checkpoints/step-000001.safetensors"]
)
def test_a_link_out_of_the_folder_is_refused_and_left(tmp_path, link):
    keep_steps(tmp_path / "elsewhere", state(1))
    folder = tmp_path / "runs" / "run"
    keep_steps(folder, state(1), state(2))
    place = folder / link if link != "run" else folder
    place.rename(tmp_path / "aside")
    place.symlink_to(tmp_path / "elsewhere" / link if link != "run" else tmp_path / "elsewhere")
    before = contents(tmp_path)
    for act in (
        lambda: store.delete(tmp_path / "runs", "run"),
        lambda: store.branch(tmp_path / "runs", "run", "new"),
    ):
        with pytest.raises(ValueError, match="is a link to another place. Nothing was changed"):
            act()
    assert contents(tmp_path) == before
    assert "is a link" in store.list_runs(tmp_path / "runs")[0].problem


def test_a_root_that_is_a_link_is_fine(tmp_path):
    keep_steps(tmp_path / "disk" / "run", state(1))
    link(tmp_path / "disk", tmp_path / "runs")
    assert store.branch(tmp_path / "runs", "run", "new") == 1
    assert store.delete(tmp_path / "runs", "run") == []
    assert [run.name for run in store.list_runs(tmp_path / "runs")] == ["new"]
