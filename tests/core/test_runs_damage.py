"""Files of a run that are damaged, a full disk and folders that may not be written."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from d3po_core.runs import checkpoints, progress, store
from d3po_core.runs.locks import LOCKS
from tests.core.rounds import UPDATES, raise_, same, same_runs, stop_after, whole

ROOT = Path(__file__).resolve().parents[2]
DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "no header": lambda path: path.write_bytes(path.read_bytes()[:6]),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"step": 3})),
    "foreign": lambda path: save_file(load_file(path), path),
    "bad json": lambda path: save_file(load_file(path), path, metadata={"d3po": "{not json"}),
    "json list": lambda path: save_file(load_file(path), path, metadata={"d3po": "[1]"}),
    "no step": lambda path: save_file(load_file(path), path, metadata={"d3po": '{"format": "d3po.run/2"}'}),
    "of another kind": lambda path: save_file(
        load_file(path), path, metadata={"d3po": '{"format": "d3po.trajectory/1", "step": 3}'}
    ),
    "newer": lambda path: save_file(
        load_file(path), path, metadata={"d3po": '{"format": "d3po.run/4", "step": 3}'}
    ),
}
damaged = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)


@pytest.fixture
def folder(begin, tmp_path, tmp_path_factory):
    """A run of two rounds in the middle of its third; the same for all tests, and made once."""
    made = tmp_path_factory.getbasetemp() / "run of two rounds and a half"
    if not made.exists():
        whole(begin, tmp_path / "made", 2)
        stop_after(4, begin(tmp_path / "made"))
        (tmp_path / "made").rename(made)
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def straight(begin, tmp_path_factory):
    """What that run ends with where nothing happens to it; made once."""
    made = tmp_path_factory.getbasetemp() / "run of three rounds"
    return store.load_run(made) or whole(begin, made, 3)


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != LOCKS
    }


@damaged
def test_a_damaged_run_is_an_error_that_names_the_file_and_touches_nothing(folder, damage):
    tensors, record = store.load_run(folder)
    damage(folder / store.STATE)
    before = contents(folder)
    told = (
        re.escape(str(folder / store.STATE)) + ".*left as it is.*another name, or move the file away.*step 20"
    )
    for act in (
        lambda: store.load_run(folder),
        lambda: store.load_run(folder, "10"),
        lambda: store.save_run(folder, tensors, record),
    ):
        with pytest.raises(ValueError, match=told):
            act()
    assert contents(folder) == before


def test_a_newer_run_says_that_the_pack_is_old(folder):
    DAMAGE["newer"](folder / store.STATE)
    with pytest.raises(ValueError, match="newer version of this pack .d3po.run/4.*update the pack"):
        store.load_run(folder)


@damaged
def test_a_damaged_checkpoint_is_named_left_alone_and_in_nobodys_way(begin, folder, damage):
    path = store.checkpoint_path(folder, 10)
    damage(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*left as it is"):
        store.load_run(folder, "10")
    tensors, record = store.load_run(folder)
    for step in (21, 22, 23):
        store.save_run(folder, tensors, record | {"step": step}, keep=1, head=store.head(folder))
    assert path.read_bytes() == before and [c.step for c in store.checkpoints(folder)] == [23]


@damaged
def test_a_damaged_progress_is_a_warning_and_the_round_begins_anew(begin, folder, straight, damage):
    damage(folder / progress.FILE)
    one = begin(folder)
    start, warning = one.fit()
    one.save()
    assert start == 0 and ("began anew" in warning and str(folder / progress.FILE) in warning)
    assert same_runs(store.load_run(folder), straight)
    assert not (folder / progress.FILE).exists()


def test_a_checkpoint_under_another_steps_name_is_not_taken_for_it(folder):
    store.checkpoint_path(folder, 20).rename(store.checkpoint_path(folder, 15))
    assert [c.step for c in store.checkpoints(folder)] == [10]


@pytest.mark.parametrize("format, unsaid", [("d3po.run/1", checkpoints.UNSAID), ("d3po.run/2", {})])
def test_a_run_of_an_earlier_format_is_read_and_goes_on(begin, folder, tmp_path, format, unsaid):
    tensors, record = store.load_run(folder)
    old = {name: value for name, value in record.items() if name not in unsaid} | {"format": format}
    (tmp_path / "old").mkdir()
    save_file(tensors, tmp_path / "old" / store.STATE, metadata={"d3po": json.dumps(old)})
    loaded = store.load_run(tmp_path / "old")
    assert same(loaded[0], tensors) and loaded[1] == old | unsaid
    three = whole(begin, tmp_path / "old"), whole(begin, folder)
    assert same(three[0][0], three[1][0]) and three[0][1]["format"] == store.FORMAT
    assert three[0][1]["step"] == 30 and three[0][1]["history"] == three[1][1]["history"]


def test_progress_of_the_first_format_is_gone_on_from(begin, folder):
    tensors, record = progress.read(folder / progress.FILE, progress.FORMAT)
    save_file(
        tensors, folder / progress.FILE, metadata={"d3po": json.dumps(record | {"format": "d3po.progress/1"})}
    )
    assert begin(folder).fit() == (4, "")


# --- no room, no right ---

FORBIDDEN = {
    "read-only": PermissionError(13, "Permission denied"),
    "full": OSError(28, "No space left on device"),
}


@pytest.mark.parametrize("error", FORBIDDEN.values(), ids=FORBIDDEN)
@pytest.mark.parametrize("call", ["replace", "chmod"])
def test_a_progress_that_cannot_be_written_stops_training_and_names_the_file(
    begin, folder, monkeypatch, error, call
):
    before, one = contents(folder), begin(folder)
    with monkeypatch.context() as patch:
        patch.setattr(f"d3po_core.files.os.{call}", lambda *_: raise_(error))
        with pytest.raises(
            OSError, match=re.escape(f"{folder / progress.FILE} could not be") + ".*press Run again"
        ):
            one.fit()
    assert contents(folder) == before
    again = begin(folder)
    assert again.fit() == (4, "")


@pytest.mark.parametrize("error", FORBIDDEN.values(), ids=FORBIDDEN)
@pytest.mark.parametrize("number, file", [(1, "step-000030.safetensors"), (2, "run.safetensors")])
def test_a_run_that_cannot_be_written_is_as_it_was_and_can_be_saved_later(
    begin, folder, straight, monkeypatch, error, number, file
):
    one, calls, replace = begin(folder), [], os.replace
    one.fit()
    before = store.load_run(folder)

    def refuse(*arguments):
        calls.append(1)
        return raise_(error) if len(calls) == number else replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("d3po_core.files.os.replace", refuse)
        with pytest.raises(OSError, match=f"{file} could not be written .*Free some space.*press Run again"):
            one.save()
    assert same_runs(store.load_run(folder), before) and not list(folder.rglob("*.partial"))
    again = begin(folder)
    assert again.fit() == (UPDATES, "")
    again.save()
    assert same_runs(store.load_run(folder), straight)


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from d3po_core.runs import store
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    folder = Path(sys.argv[1])
    store.save_run(folder, {"lora.a": torch.zeros(100_000)}, {"step": 2}, head=store.head(folder))
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="no limit on the size of files there")
def test_a_disk_that_takes_only_half_a_file_keeps_the_run(tmp_path):
    store.save_run(tmp_path / "run", {"lora.a": torch.ones(2)}, {"step": 1})
    before = contents(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "run")], cwd=ROOT, text=True, capture_output=True
    )
    assert "step-000002.safetensors could not be written" in done.stdout, done.stderr
    assert contents(tmp_path) == before
