"""Training that is stopped and goes on, and training that is killed."""

import dataclasses
import math
import os
import random
import signal
import threading
import time

import pytest
import torch
from safetensors.torch import save

from d3po_core.runs import files as run_files
from d3po_core.runs import progress, store
from d3po_core.runs.progress import Progress, key_of
from tests.conftest import EVERY
from tests.core.children import finish, start
from tests.core.rounds import PAIRS, SETTINGS, UPDATES, Stop, raise_, same, same_runs, stop_after, whole

ROUNDS = 3
KILLS = 50 if EVERY else 20
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="a child that starts at once needs fork")


# --- going on ---


@pytest.mark.parametrize("reference", ["base", "round start"])
@pytest.mark.parametrize("rounds_before", [0, 1])
def test_a_round_that_was_stopped_goes_on_to_the_same_bits(begin, tmp_path, reference, rounds_before):
    options = dict(settings=dataclasses.replace(SETTINGS, reference=reference))
    straight = whole(begin, tmp_path / "straight", rounds_before + 1, **options)
    whole(begin, tmp_path / "stopped", rounds_before, **options)
    stop_after(4, begin(tmp_path / "stopped", **options))
    stop_after(7, begin(tmp_path / "stopped", **options))
    again = begin(tmp_path / "stopped", **options)
    assert again.fit() == (7, "") and len(again.history) == UPDATES
    again.save()
    assert same_runs(store.load_run(tmp_path / "stopped"), straight)


@pytest.mark.parametrize("every, start", [(1, 8), (3, 6), (100, 0), (0, 0)])
def test_progress_is_kept_as_often_as_asked_for(begin, tmp_path, every, start):
    stop_after(8, begin(tmp_path, every=every))
    assert begin(tmp_path, every=every).fit()[0] == start
    assert (tmp_path / progress.FILE).exists() == (every > 0)


@pytest.mark.parametrize(
    "lost, stopped, ended", [(math.inf, [1, 8], [1, UPDATES]), (0.0, [*range(1, 9)], None)]
)
def test_where_writing_is_slow_it_is_seldom_and_what_was_put_off_is_written_where_training_stops(
    begin, tmp_path, monkeypatch, lost, stopped, ended
):
    monkeypatch.setattr(progress, "BRIEF", -1.0)
    monkeypatch.setattr(progress, "LOST", lost)
    steps, write = [], progress.write
    monkeypatch.setattr(progress, "write", lambda *told: (steps.append(told[3]["step"]), write(*told)))
    stop_after(8, begin(tmp_path / "stopped"))
    assert steps == stopped and begin(tmp_path / "stopped").fit()[0] == 8
    steps.clear()
    begin(tmp_path / "whole").fit()
    assert steps == (ended or [*range(1, UPDATES + 1)])


def test_training_goes_on_while_a_state_is_written_and_a_failure_to_write_is_told(
    begin, tmp_path, monkeypatch
):
    one, seen = begin(tmp_path), threading.Event()

    def slow(*_):
        assert seen.wait(60), "training waits for the disk"
        raise OSError("the disk is full")

    monkeypatch.setattr(progress, "BRIEF", -1.0)
    monkeypatch.setattr(progress, "write", slow)
    on_step = lambda: seen.set() if one.trainer.step == 5 else None
    with pytest.raises(OSError, match="the disk is full"):
        one.progress.fit(one.trainer, one.examples, on_step=on_step)
    assert one.trainer.step >= 5


def test_without_a_run_nothing_is_kept(begin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = begin(tmp_path)
    Progress(None, one.progress.key).fit(one.trainer, one.examples)
    assert list(tmp_path.iterdir()) == []


def test_a_round_that_ended_but_was_not_saved_is_there_at_once(begin, tmp_path):
    one = begin(tmp_path)
    one.fit()
    again = begin(tmp_path)
    assert again.fit() == (UPDATES, "") and again.history == one.history
    assert same(again.trainer.state()[0], one.trainer.state()[0])


@pytest.mark.parametrize(
    "change",
    [
        dict(settings=dataclasses.replace(SETTINGS, learning_rate=1e-3)),
        dict(settings=dataclasses.replace(SETTINGS, seed=1)),
        dict(pairs=PAIRS[:2]),
        dict(pairs=PAIRS[::-1]),
        dict(pairs=(((1, 0),), *PAIRS[1:])),
    ],
)
def test_progress_of_another_train_step_is_left_aside_and_replaced_by_the_next_update(
    begin, tmp_path, change
):
    stop_after(4, begin(tmp_path))
    before = (tmp_path / progress.FILE).read_bytes()
    other = begin(tmp_path, **change)
    other.progress.remove()
    with pytest.raises(Stop):
        other.progress.fit(other.trainer, other.examples, on_step=lambda: raise_(Stop))
    assert (tmp_path / progress.FILE).read_bytes() == before
    straight = begin(tmp_path / "straight", **change)
    straight.fit()
    assert other.fit()[0] == 0 and same(other.trainer.state()[0], straight.trainer.state()[0])
    assert (tmp_path / progress.FILE).read_bytes() != before


def test_the_key_tells_the_state_that_a_round_starts_from():
    def key(**change):
        return key_of(
            *(
                dict(
                    start=3,
                    tensors={"lora.a": torch.ones(2)},
                    settings={"rank": 2},
                    model="net",
                    data=[{"set": "s", "pairs": "p"}],
                )
                | change
            ).values()
        )

    assert key() == key()
    for change in (
        dict(start=4),
        dict(tensors={}),
        dict(tensors={"lora.a": torch.tensor([1.0, 1.0000001])}),
        dict(tensors={"lora.b": torch.ones(2)}),
        dict(tensors={"lora.a": torch.ones(1, 2)}),
        dict(settings={"rank": 4}),
        dict(model="other"),
        dict(data=[{"set": "s", "pairs": "q"}]),
        dict(data=[]),
    ):
        assert key(**change) != key()


def test_saving_removes_the_progress_of_this_train_step_only(begin, tmp_path):
    one, other = begin(tmp_path), begin(tmp_path, pairs=PAIRS[:2])
    one.fit()
    stop_after(2, other)
    one.save()
    assert (tmp_path / progress.FILE).exists()
    begin(tmp_path / "x").fit()
    whole(begin, tmp_path / "x")
    assert not (tmp_path / "x" / progress.FILE).exists()


# --- killed ---


@needs_fork
def test_training_survives_kills_at_random_moments(begin, tmp_path):
    """Each child trains on for as long as it lives and tells every update as it begins to be kept."""
    straight, folder = whole(begin, tmp_path / "straight", ROUNDS), tmp_path / "killed"
    chance, kills, resumed, halves, told = random.Random(0), 0, 0, 0, [0]
    while kills < KILLS or step_on_disk(folder) < ROUNDS * UPDATES:
        if step_on_disk(folder) == ROUNDS * UPDATES:
            assert same_runs(store.load_run(folder), straight)
            store.delete(folder.parent, folder.name)
            told = [0]
        pid, pipe = start(lambda tell: train_on(begin, folder, tell))
        first = pipe.readline() if chance.random() < 0.9 else b""
        if kills < KILLS:
            time.sleep(chance.uniform(0, 0.25))
            os.kill(pid, signal.SIGKILL)
            kills += 1
        status, rest = finish(pid, pipe)
        assert os.WIFSIGNALED(status) or status == 0, rest
        now = [int(line) for line in (first + rest).split(b"\n")[:-1]]
        resumed += bool(now and (now[0] - 1) % UPDATES)
        halves += any(folder.rglob("*.partial"))
        told += now
        require_whole(folder, straight, told[-1])
    assert resumed >= KILLS // 4 and halves >= KILLS // 20, (
        "the kills came too early or too late to mean anything"
    )
    assert same_runs(store.load_run(folder), straight)
    assert not list(folder.rglob("*.partial")) and not (folder / progress.FILE).exists()


def save_slowly(tensors, path, metadata):
    """So that some kills come while a file is half written."""
    data = save(tensors, metadata)
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        time.sleep(0.005)
        file.write(data[len(data) // 2 :])


def train_on(begin, folder, tell):
    run_files.save_file = save_slowly  # in this child alone

    class Telling(Progress):
        def save(self, trainer, history):
            super().save(trainer, history)  # the one before is on disk then
            tell(b"%d\n" % trainer.step)

    while step_on_disk(folder) < ROUNDS * UPDATES:
        one = begin(folder)
        one.progress = Telling(folder, one.progress.key)
        one.fit()
        one.save()


def step_on_disk(folder):
    loaded = store.load_run(folder)
    return loaded[1]["step"] if loaded else 0


def require_whole(folder, straight, told):
    """The run loads, whatever is beside it. It knows all that was told but for the update being made."""
    state, kept = store.load_run(folder), folder / progress.FILE
    steps = [state[1]["step"] if state else 0]
    for path in [*(c.path for c in store.checkpoints(folder)), *([kept] if kept.exists() else [])]:
        tensors, record = progress.read(path, progress.FORMAT if path == kept else store.FORMAT)
        assert any(name.startswith("lora.") for name in tensors)
        steps.append(record["step"])
    assert len(store.checkpoints(folder)) == len(list((folder / "checkpoints").glob("*.safetensors")))
    assert max(steps) >= told - 1
    if state:
        assert state[1]["history"] == straight[1]["history"][: state[1]["step"]]
