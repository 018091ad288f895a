"""Damage that leaves a file's size and its frame as they were, and numbers that no training goes on from."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from d3po_core.runs import files as run_files
from d3po_core.runs import progress, store
from tests.core.rounds import same, stop_after, whole
from tests.core.test_runs import go_on, state


def rewrite(path, change=lambda tensors: None, **record):
    """Put a file with other content in the place of one, with the checksum that it had."""
    with safe_open(path, framework="pt") as file:
        old = json.loads(file.metadata()["d3po"])
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"d3po": json.dumps(old | record)})


def flip(path):
    """Change one bit of the last tensor."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def folder(begin, tmp_path):
    """A run of two rounds in the middle of its third."""
    whole(begin, tmp_path / "run", 2)
    stop_after(4, begin(tmp_path / "run"))
    return tmp_path / "run"


@pytest.mark.parametrize("damage", [flip, lambda path: rewrite(path, step=19)], ids=["a bit", "the record"])
def test_damage_that_keeps_the_size_is_an_error_that_names_the_file(folder, damage):
    path = folder / store.STATE
    size, kept = path.stat().st_size, store.load_run(folder, "20")
    damage(path)
    assert path.stat().st_size == size
    before = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*damaged.*left as it is.*step 20"):
        store.load_run(folder)
    assert path.read_bytes() == before
    path.rename(folder / "aside")
    assert same(store.load_run(folder)[0], kept[0]), "what it says to do helps"


def test_damaged_progress_is_a_warning_and_the_round_begins_anew(begin, folder):
    flip(folder / progress.FILE)
    start, warning = begin(folder).fit()
    assert start == 0 and "began anew" in warning and str(folder / progress.FILE) in warning


def test_files_of_before_there_was_a_checksum_are_read(folder):
    path = folder / store.STATE
    kept = store.load_run(folder)
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["d3po"])
    del record["checksum"]
    save_file(load_file(path), path, metadata={"d3po": json.dumps(record)})
    assert same(store.load_run(folder)[0], kept[0]) and store.load_run(folder)[1] == kept[1]


# --- numbers that are none ---


def change(name, value):
    def of(tensors):
        found = next(key for key in sorted(tensors) if key.startswith(name))
        tensors[found] = value(tensors[found])

    return of


UNSOUND = {
    "a LoRA with nan": change("lora.", lambda t: t.index_fill(0, torch.tensor([0]), float("nan"))),
    "an infinite LoRA": change("lora.", lambda t: t * float("inf")),
    "a LoRA of integers": change("lora.", lambda t: t.to(torch.int32)),
    "an optimizer with nan": change("optimizer.", lambda t: t * float("nan")),
    "an optimizer of integers": change("optimizer.", lambda t: t.to(torch.int64)),
}


def without_checksum(path, spoil):
    rewrite(path, spoil, checksum=None)


@pytest.mark.parametrize("spoil", UNSOUND.values(), ids=UNSOUND)
def test_a_state_of_no_numbers_is_refused_with_what_to_do(folder, spoil):
    without_checksum(folder / store.STATE, spoil)
    told = re.escape(str(folder / store.STATE)) + ".*cannot be trained on.*checkpoint.*: 0, 10, 20"
    with pytest.raises(ValueError, match=told):
        store.load_run(folder)
    assert store.load_run(folder, "10")[1]["step"] == 10
    with pytest.raises(ValueError, match="step-000020.*cannot be trained on"):
        without_checksum(store.checkpoint_path(folder, 20), spoil)
        store.load_run(folder, "20")


@pytest.mark.parametrize("spoil", UNSOUND.values(), ids=UNSOUND)
def test_progress_of_no_numbers_is_begun_anew(begin, folder, spoil):
    without_checksum(folder / progress.FILE, spoil)
    start, warning = begin(folder).fit()
    assert start == 0 and "began anew" in warning


def test_a_state_of_no_numbers_is_not_saved(folder):
    tensors, record = store.load_run(folder)
    before = (folder / store.STATE).read_bytes()
    name = next(name for name in tensors if name.startswith("lora."))
    with pytest.raises(ValueError, match="lora: .*not finite.*not saved"):
        store.save_run(
            folder, tensors | {name: tensors[name] * float("nan")}, record, head=store.head(folder)
        )
    assert (folder / store.STATE).read_bytes() == before


def test_the_counters_and_bytes_of_other_optimizers_are_fine(tmp_path):
    tensors = {
        "lora.a": torch.ones(3, dtype=torch.bfloat16),
        "AdamW8bit.a.state1": torch.arange(3, dtype=torch.uint8),
        "AdamW8bit.a.absmax1": torch.ones(1),
        "AdamW8bit.a.step": torch.tensor(3),
        "ema.a": torch.ones(3),
        "ema updates": torch.tensor(3),
        "AdamWScheduleFree group.k": torch.tensor(2),
        "optimizer.a.step": torch.tensor(2.0),
        "loss scale": torch.tensor(65536.0),
        "lora.empty": torch.ones(0),
    }
    go_on(tmp_path / "run", tensors, state(3)[1])
    assert same(store.load_run(tmp_path / "run")[0], tensors)


def test_a_history_may_be_infinite(tmp_path):
    record = state(1)[1] | {"history": [{"loss": float("inf"), "margin": float("nan")}]}
    go_on(tmp_path / "run", {"lora.a": torch.ones(2)}, record)
    assert store.load_run(tmp_path / "run")[1]["history"][0]["loss"] == float("inf")


def test_a_record_alone_is_read_without_the_tensors(folder):
    flip(folder / store.STATE)
    assert run_files.read_record(folder / store.STATE, store.FORMAT)["step"] == 20
    assert [one.problem for one in store.list_runs(folder.parent)] == [""]
