"""A run's history on disk: one tensor, read whole, as curves, or only its end."""

import json
import math
import struct
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from d3po_core.runs import files as run_files
from d3po_core.runs import history, store

FORMAT = "d3po.run/3"
TENSORS = {"lora.a": torch.arange(6.0).view(2, 3)}
HISTORY = [
    {"loss": 0.1 + 0.2, "margin": -0.0},
    {"loss": 5e-324, "margin": math.inf, "held-out accuracy": math.nan},
    {},
    {"margin": 1.0, "held-out accuracy": 0.75, "held-out margin": 0.5},
]
OLD = {
    1: {"step": 4, "history": HISTORY, "format": "d3po.run/1"},
    2: {"step": 4, "history": HISTORY, "rounds": [], "saved": 1, "format": "d3po.run/2"},
}


def bits(entries):
    """What `==` does not tell: nan is itself, 0.0 is not -0.0."""
    return [{name: struct.pack("<d", value) for name, value in metrics.items()} for metrics in entries]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


@pytest.fixture
def written(path):
    run_files.write(path, FORMAT, TENSORS, {"step": 4, "history": HISTORY})
    return path


@pytest.fixture(params=[1, 2])
def old(path, request):
    save_file(TENSORS, path, metadata={"d3po": json.dumps(OLD[request.param])})
    return path


# --- the way there and back ---


def test_a_history_comes_back_to_the_bit(written):
    tensors, record = run_files.read(written, FORMAT)
    assert bits(record.pop("history")) == bits(HISTORY)
    assert tensors.keys() == TENSORS.keys() and torch.equal(tensors["lora.a"], TENSORS["lora.a"])
    assert record == {"step": 4, "format": FORMAT}


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["loss", "a, b", "Größe", ""]), st.floats(), max_size=4), max_size=6
    )
)
@settings(max_examples=200, deadline=None)
def test_any_history_comes_back_to_the_bit(entries):
    assert bits(history.from_table(*history.to_table(entries))) == bits(entries)


@pytest.mark.parametrize("entries", [[], [{}], [{}, {}], [{}, {"loss": 1.0}]])
def test_a_history_that_says_little_comes_back(path, entries):
    run_files.write(path, FORMAT, {}, {"step": 0, "history": entries})
    assert run_files.read(path, FORMAT) == ({}, {"step": 0, "history": entries, "format": FORMAT})
    assert run_files.read_record(path, FORMAT)["history"] == entries[-1:]


def test_a_file_without_a_history_has_none(path):
    run_files.write(path, FORMAT, TENSORS, {"step": 0})
    assert (
        run_files.read(path, FORMAT)[1]
        == run_files.read_record(path, FORMAT)
        == {"step": 0, "format": FORMAT}
    )
    assert run_files.read_curves(path, FORMAT) == {}


def test_other_programs_see_a_table_with_nan_where_nothing_was_measured(written):
    with safe_open(written, framework="np") as file:
        record, table = json.loads(file.metadata()["d3po"]), file.get_tensor("history")
    assert len(record.pop("checksum")) == 16
    assert record == {
        "step": 4,
        "format": FORMAT,
        "metrics": ["loss", "margin", "held-out accuracy", "held-out margin"],
    }
    nan, inf = math.nan, math.inf
    np.testing.assert_array_equal(
        table,
        [[0.1 + 0.2, -0.0, nan, nan], [5e-324, inf, nan, nan], [nan, nan, nan, nan], [nan, 1.0, 0.75, 0.5]],
    )
    assert table.dtype == np.float64


def test_what_is_written_is_left_as_it_was(path):
    tensors, record = dict(TENSORS), {"step": 4, "history": list(HISTORY)}
    run_files.write(path, FORMAT, tensors, record)
    assert tensors.keys() == TENSORS.keys() and record == {"step": 4, "history": HISTORY}


# --- a part of it ---


def test_a_record_has_the_end_of_the_history_alone(written):
    assert run_files.read_record(written, FORMAT) == {"step": 4, "format": FORMAT, "history": HISTORY[-1:]}


def test_curves_have_nan_where_nothing_was_measured(written):
    curves = run_files.read_curves(written, FORMAT)
    assert list(curves) == ["loss", "margin", "held-out accuracy", "held-out margin"]
    np.testing.assert_array_equal(curves["held-out accuracy"], [math.nan, math.nan, math.nan, 0.75])
    np.testing.assert_array_equal(curves["margin"], [0.0, math.inf, math.nan, 1.0])


# --- files of before ---


def test_an_earlier_file_is_read_in_every_way(old, written_curves):
    assert bits(run_files.read(old, FORMAT)[1]["history"]) == bits(HISTORY)
    assert run_files.read_record(old, FORMAT)["history"] == HISTORY[-1:]
    curves = run_files.read_curves(old, FORMAT)
    assert list(curves) == list(written_curves)
    for name in curves:
        np.testing.assert_array_equal(curves[name], written_curves[name])


@pytest.fixture
def written_curves(tmp_path):
    run_files.write(tmp_path / "new" / "run.safetensors", FORMAT, TENSORS, {"step": 4, "history": HISTORY})
    return run_files.read_curves(tmp_path / "new" / "run.safetensors", FORMAT)


def test_a_pack_of_before_refuses_the_new_file(written):
    for look in (run_files.read, run_files.read_record, run_files.read_curves):
        with pytest.raises(
            run_files.NotOurs, match="newer version of this pack .d3po.run/3.*update the pack"
        ):
            look(written, "d3po.run/2")


# --- damage ---


@pytest.mark.parametrize(
    "tensors, metrics",
    [
        ({}, ["loss"]),
        ({"history": torch.zeros(2, 2, dtype=torch.float64)}, ["loss"]),
        ({"history": torch.zeros(2, dtype=torch.float64)}, ["loss"]),
        ({"history": torch.zeros(2, 1, dtype=torch.float64)}, 7),
    ],
)
@pytest.mark.parametrize("look", [run_files.read, run_files.read_record, run_files.read_curves])
def test_a_table_that_does_not_fit_its_names_is_damage(path, tensors, metrics, look):
    save_file(tensors, path, metadata={"d3po": json.dumps({"format": FORMAT, "step": 1, "metrics": metrics})})
    with pytest.raises(run_files.NotOurs, match="damaged"):
        look(path, FORMAT)


# --- long runs ---


def test_a_run_of_300_000_updates_is_listed_without_reading_it_whole(tmp_path):
    """As JSON these would be 250 MB, which no safetensors header takes."""
    names = [f"metric {i}" for i in range(38)]
    one = dict.fromkeys(names, 0.6931471805599453)
    entries = [one | {"loss": update / 7} for update in range(300_000)]
    entries[-1] |= {"held-out accuracy": 0.75, "held-out margin": 0.5}
    began = time.monotonic()
    store.save_run(tmp_path / "run", TENSORS, {"step": 300_000, "history": entries})
    written, began = time.monotonic() - began, time.monotonic()
    assert store.load_run(tmp_path / "run")[1]["history"] == entries
    read, began = time.monotonic() - began, time.monotonic()
    (run,) = store.list_runs(tmp_path)
    listed, began = time.monotonic() - began, time.monotonic()
    assert run.accuracy == run.best == 0.75
    assert len(store.load_curves(tmp_path / "run")["loss"]) == 300_000
    curves = time.monotonic() - began
    print(f"written {written:.2f} s, read {read:.2f} s, listed {listed:.4f} s, curves {curves:.3f} s")
    assert listed < read / 4, "a listing reads whole tensors"
    assert curves < read, "curves come by way of the whole history"


def test_the_curves_of_a_run_are_those_of_its_last_state(tmp_path):
    assert store.load_curves(tmp_path / "none") is None
    for step, loss in ((1, [0.5]), (2, [0.5, 0.4])):
        store.save_run(
            tmp_path,
            TENSORS,
            {"step": step, "history": [{"loss": value} for value in loss]},
            head=store.head(tmp_path),
        )
    assert store.load_curves(tmp_path)["loss"].tolist() == [0.5, 0.4]
    (tmp_path / store.STATE).write_bytes(b"")
    with pytest.raises(ValueError, match="run.safetensors.*left as it is"):
        store.load_curves(tmp_path)
