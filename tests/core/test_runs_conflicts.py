"""A save never replaces what it does not go on from.

States that follow, states that do not, and two processes at once."""

import json
import os
import signal
import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from d3po_core.runs import files as run_files
from d3po_core.runs import locks, store
from tests.core.children import finish, start
from tests.core.rounds import PAIRS
from tests.core.test_runs import BASE, contents, files, state

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="a child that starts at once needs fork")
ROUNDS = 4  # that each of two processes trains


@pytest.fixture
def run(tmp_path):
    """The folder of a run of two rounds, "a" and "b"."""
    folder = tmp_path / "taste"
    for step, rounds in ((1, "a"), (2, "ab")):
        store.save_run(folder, *state(step, rounds=rounds))
    return folder


def rounds_of(folder):
    return "".join(round_["key"] for round_ in store.load_run(folder)[1]["rounds"])


def listed(folder):
    return {one.name: rounds_of(folder.parent / one.name) for one in store.list_runs(folder.parent)}


# --- what follows and what does not ---


def test_a_state_with_all_the_rounds_that_are_there_takes_their_place(run):
    assert store.save_run(run, *state(5, rounds="abcd")) == store.Saved("taste")
    assert listed(run) == {"taste": "abcd"}


@pytest.mark.parametrize("rounds", ["x", "ax", "xb", "xab", "bax"])
def test_a_state_that_does_not_follow_is_kept_beside_the_run(run, rounds):
    before = contents(run)
    saved = store.save_run(run, *state(7, rounds=rounds))
    assert saved.run == "taste branch 2" and "goes on from" in saved.why
    assert contents(run) == before and listed(run) == {"taste": "ab", "taste branch 2": rounds}
    assert store.load_run(run.with_name("taste branch 2"))[1]["step"] == 7


def test_a_checkpoint_of_equal_steps_is_not_written_over(run):
    store.save_run(run, *state(2, rounds="ax"))
    assert store.load_run(run, "2")[1]["rounds"][-1]["key"] == "b"


def test_a_run_that_was_gone_back_on_is_replaced_while_it_is_as_it_was(run):
    head = store.head(run)
    assert store.save_run(run, *state(2, rounds="ax"), head=head) == store.Saved("taste")
    assert listed(run) == {"taste": "ax"}
    assert store.save_run(run, *state(3, rounds="ay"), head=head).run == "taste branch 2"
    assert listed(run) == {"taste": "ax", "taste branch 2": "ay"}


def test_an_equal_state_saved_again_is_no_conflict(run):
    assert store.save_run(run, *state(2, rounds="ab")) == store.Saved("taste")
    assert listed(run) == {"taste": "ab"}


def test_a_state_that_the_run_has_gone_on_from_is_not_put_back(run):
    before = contents(run)
    saved = store.save_run(run, *state(1, rounds="a"))
    assert saved.run == "taste" and "gone on from" in saved.why
    assert contents(run) == before and list(listed(run)) == ["taste"]


def test_what_was_branched_goes_on_in_its_branch(run):
    for rounds in ("x", "xy", "xy", "z", "xyz", "zz"):
        store.save_run(run, *state(len(rounds), rounds=rounds))
    assert listed(run) == {"taste": "ab", "taste branch 2": "xyz", "taste branch 3": "zz"}


def test_the_branch_of_a_branch_has_the_next_number(run):
    store.save_run(run, *state(1, rounds="x"))
    assert store.save_run(run.with_name("taste branch 2"), *state(1, rounds="y")).run == "taste branch 3"


def test_a_folder_that_is_there_is_not_taken_for_a_branch(run):
    (run.parent / "taste branch 2").mkdir()
    (run.parent / "taste branch 3").mkdir()
    (run.parent / "taste branch 3" / store.STATE).write_bytes(b"damaged")
    assert store.save_run(run, *state(1, rounds="x")).run == "taste branch 4"
    assert files(run.parent / "taste branch 2") == [] and files(run.parent / "taste branch 3") == [
        store.STATE
    ]


def test_a_long_name_has_room_for_its_branch(tmp_path):
    long = tmp_path / ("x" * 90 + " and more")
    store.save_run(long, *state(1, rounds="a"))
    name = store.save_run(long, *state(1, rounds="b")).run
    assert store.run_folder(tmp_path, name).is_dir() and name == "x" * 90 + " branch 2"


@pytest.mark.parametrize(
    "change, told",
    [
        ({"model": "other"}, "another base model"),
        ({"settings": BASE["settings"] | {"rank": 4}}, "started with rank 2, and this LoRA has rank 4"),
        (
            {"settings": BASE["settings"] | {"alpha": 4.0, "targets": "all linear"}},
            "alpha 2.0 and targets attention",
        ),
        (
            {"settings": BASE["settings"] | {"adapter": "LoKr"}},
            "started with adapter LoRA, and this LoRA has adapter LoKr",
        ),
    ],
)
def test_a_run_is_not_replaced_by_one_that_does_not_fit(run, change, told):
    before, head = contents(run), store.head(run)
    tensors, record = state(3, rounds="abc")
    saved = store.save_run(run, tensors, record | change, head=head)
    assert saved.run == "taste branch 2" and told in saved.why
    assert contents(run) == before and listed(run)["taste branch 2"] == "abc"


def test_a_run_of_an_earlier_version_is_replaced_by_what_goes_on_from_it_alone(tmp_path):
    """Its rounds have no keys, or there are none."""
    for number, rounds in enumerate(([], [{"start": 0, "sets": []}])):
        folder = tmp_path / f"old {number}"
        folder.mkdir()
        tensors, record = state(4)
        save_file(
            tensors,
            folder / store.STATE,
            metadata={"d3po": json.dumps(record | {"rounds": rounds, "format": "d3po.run/1"})},
        )
        head, old = store.head(folder), contents(folder)
        after = state(5, rounds="a")
        after[1]["rounds"] = rounds + [{"start": 4, "key": "a", "sets": []}]
        assert store.save_run(folder, *state(9, rounds="x")).run == f"old {number} branch 2"
        assert contents(folder) == old
        assert store.save_run(folder, *after, head=head) == store.Saved(f"old {number}")
        assert store.load_run(folder)[1]["step"] == 5


def test_where_the_state_was_moved_away_the_last_checkpoint_is_what_there_is(run):
    (run / store.STATE).unlink()
    assert store.save_run(run, *state(2, rounds="ax")).run == "taste branch 2"
    assert store.save_run(run, *state(3, rounds="abc")) == store.Saved("taste")


# --- as it began ---


def test_a_run_can_go_back_to_where_it_began(run):
    tensors, record = store.load_run(run, "0")
    assert tensors == {} and (record["step"], record["rounds"], record["history"]) == (0, [], [])
    assert store.load_run(run.with_name("new"), "0") is None
    assert store.save_run(run, *state(1, rounds="x"), head=store.head(run)) == store.Saved("taste")
    assert listed(run) == {"taste": "x"}


def test_rounds_without_an_update_are_kept_and_a_step_is_the_state_before_them(tmp_path):
    folder = tmp_path / "taste"
    for step, starts in ((0, [0]), (0, [0, 0]), (3, [0, 0, 0]), (3, [0, 0, 0, 3])):
        record = BASE | {
            "step": step,
            "history": [{}] * step,
            "rounds": [
                {"start": start, "key": f"{number}", "sets": []} for number, start in enumerate(starts)
            ],
        }
        assert store.save_run(folder, {"lora.a": torch.ones(2)} if step else {}, record).why == ""
    assert len(store.load_run(folder)[1]["rounds"]) == 4
    assert (
        len(store.load_run(folder, "3")[1]["rounds"]) == 3 and store.load_run(folder, "0")[1]["rounds"] == []
    )
    assert files(folder) == ["checkpoints/step-000003.safetensors", store.STATE]


# --- two processes ---


def train(begin, folder, pairs, tell):
    for _ in range(ROUNDS):
        one = begin(folder, pairs=pairs)
        one.fit()
        tell(json.dumps([one.progress.key, one.save().run]).encode() + b"\n")


@needs_fork
def test_two_processes_that_train_the_same_run_keep_every_round(begin, tmp_path):
    folder = tmp_path / "taste"
    pipes = [
        start(lambda tell, pairs=pairs: train(begin, folder, pairs, tell)) for pairs in (PAIRS, PAIRS[::-1])
    ]
    told = []
    for pid, pipe in pipes:
        status, lines = finish(pid, pipe)
        assert status == 0, lines
        told += [json.loads(line) for line in lines.splitlines()]
    keys = {
        one.name: [round_["key"] for round_ in store.load_run(tmp_path / one.name)[1]["rounds"]]
        for one in store.list_runs(tmp_path)
    }
    assert len(told) == 2 * ROUNDS and all(key in keys[run] for key, run in told)
    assert len({key for key, _ in told}) == 2 * ROUNDS, "rounds that are alike show nothing"
    assert len({run for _, run in told}) > 1, "the two never met"
    assert not list(tmp_path.rglob("*.partial"))


@needs_fork
def test_two_processes_that_write_one_run_all_the_time_never_fail(tmp_path):
    """Nor is a file that one is writing taken for a dead one's by the other."""
    folder = tmp_path / "taste"

    def write(tell):
        for _ in range(60):
            tensors, record = state(1, rounds="a")
            store.save_run(folder, tensors | {"lora.b": torch.zeros(50_000)}, record)

    for pid, pipe in [start(write) for _ in range(2)]:
        assert finish(pid, pipe) == (0, b"")
    assert listed(folder) == {"taste": "a"}


@needs_fork
def test_a_lock_is_waited_for_and_goes_with_the_process_that_held_it(run, monkeypatch):
    def hold(tell):
        with locks.held(run):
            tell(b"held\n")
            time.sleep(60)

    pid, pipe = start(hold)
    assert pipe.readline() == b"held\n"
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    before = contents(run)
    for act in (
        lambda: store.save_run(run, *state(3, rounds="abc")),
        lambda: store.delete(run.parent, "taste"),
    ):
        with pytest.raises(OSError, match="taste.* is being written by another program.*press Run again"):
            act()
    assert contents(run) == before
    monkeypatch.setattr(locks, "PATIENCE", 60)
    threading.Timer(0.3, os.kill, [pid, signal.SIGKILL]).start()
    assert store.save_run(run, *state(3, rounds="abc")) == store.Saved("taste")
    finish(pid, pipe)


def test_a_lock_is_no_run(run):
    with locks.held(run.with_name("new")):
        assert [one.name for one in store.list_runs(run.parent)] == ["taste"]
    assert not run.with_name("new").exists()
    assert store.delete(run.parent, "taste") == [] and store.list_runs(run.parent) == []


# --- leftovers ---


def test_a_leftover_that_cannot_be_removed_is_nobodys_error(run, monkeypatch):
    (run / "run.safetensors.1.partial").mkdir()  # no unlink removes it
    assert store.save_run(run, *state(3, rounds="abc")) == store.Saved("taste")
    assert run_files.leftovers(run) == [run / "run.safetensors.1.partial"]
