"""Taking back a run's last round."""

import pytest
import torch

from d3po_core.runs.store import list_runs, load_run, save_run
from d3po_core.runs.undo import undo_round


def record(step, starts):
    return {
        "step": step,
        "settings": {"rank": 4, "alpha": 4.0, "targets": "attention", "adapter": "LoRA"},
        "model": "base",
        "history": [{"loss": 0.1 * i} for i in range(step)],
        "rounds": [{"start": start, "key": f"round at {start}", "sets": []} for start in starts],
    }


def tensors(step):
    return {"lora.a": torch.full((2,), float(step))}


@pytest.fixture
def run(tmp_path):
    for step, starts in ((2, [0]), (5, [0, 2]), (9, [0, 2, 5])):
        save_run(tmp_path / "run", tensors(step), record(step, starts))
    return tmp_path


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_is_put_back_to_where_its_last_round_began_round_by_round(run):
    for was, step, starts in ((9, 5, [0, 2]), (5, 2, [0]), (2, 0, [])):
        _, told, before = undo_round(run, "run")
        now, there = load_run(run / "run")
        assert (before, told["step"], there["step"]) == (was, step, step)
        assert same(now, tensors(step) if step else {})
        assert [round_["start"] for round_ in there["rounds"]] == starts
        assert len(there["history"]) == step
    with pytest.raises(ValueError, match="has no round"):
        undo_round(run, "run")


def test_what_was_taken_back_can_be_had_again(run):
    undo_round(run, "run")
    again, there = load_run(run / "run", 9)
    assert same(again, tensors(9)) and there["step"] == 9


def test_a_round_taken_back_can_be_trained_anew(run):
    undo_round(run, "run")
    saved = save_run(run / "run", tensors(7), record(7, [0, 2, 5]))
    assert (saved.run, load_run(run / "run")[1]["step"]) == ("run", 7)


def test_where_the_beginning_is_gone_the_run_stays_as_it_is(tmp_path):
    save_run(tmp_path / "run", tensors(2), record(2, [0]), keep=1)
    save_run(tmp_path / "run", tensors(5), record(5, [0, 2]), keep=1)
    with pytest.raises(ValueError, match="not kept any more.*keep"):
        undo_round(tmp_path, "run")
    assert [summary.step for summary in list_runs(tmp_path)] == [5]


def test_there_must_be_such_a_run(tmp_path):
    with pytest.raises(ValueError, match="there is no run 'nobody'"):
        undo_round(tmp_path, "nobody")
