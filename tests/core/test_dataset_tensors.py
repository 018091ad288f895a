"""Tensors that stay on disk."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from d3po_core.candidates import trajectory as trajectory_module
from d3po_core.candidates.preferences import Preferences
from d3po_core.candidates.trajectory import LazyTensor, Trajectory
from d3po_core.dataset.store import Dataset
from d3po_core.training.loop import Example, Settings, Trainer
from tests.core.datasets import file_of_set_7, taste


@pytest.fixture
def trajectory(toy):
    return toy.record(toy.Denoiser(toy.net()), seed=7)


@pytest.fixture
def folder(tmp_path, trajectory):
    return taste(tmp_path / "taste", trajectory)


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        3,
        slice(None),
        slice(1, 3),
        slice(-2, None),
        slice(None, None, 2),
        slice(3, 1),
        (0, slice(None, 1)),
        (slice(None), 1),
        (slice(1, None), slice(0, 2), 0),
        (1, 2, 0, 1, 1),
    ],
    ids=repr,
)
def test_a_lazy_tensor_is_indexed_as_the_tensor_it_stands_for(trajectory, tmp_path, index):
    trajectory.save(tmp_path / "t.safetensors")
    lazy, tensor = Trajectory.open(tmp_path / "t.safetensors").states, trajectory.states
    assert (lazy.shape, lazy.dtype, len(lazy), lazy.ndim) == (
        tensor.shape,
        tensor.dtype,
        len(tensor),
        tensor.ndim,
    )
    part = lazy[index]
    assert torch.equal(part, tensor[index]) and part.shape == tensor[index].shape
    assert part.untyped_storage().nbytes() == part.nbytes, "it holds the file"
    with pytest.raises(IndexError):
        lazy[99]


def test_a_lazy_tensor_goes_where_a_tensor_goes(trajectory, tmp_path):
    trajectory.save(tmp_path / "t.safetensors")
    lazy, tensor = Trajectory.open(tmp_path / "t.safetensors").denoised, trajectory.denoised
    assert torch.equal(torch.stack([lazy, lazy]), torch.stack([tensor, tensor]))
    assert torch.equal(tensor - lazy, torch.zeros_like(tensor)) and torch.equal(
        torch.stack(list(lazy)), tensor
    )
    (tmp_path / "t.safetensors").unlink()
    zeros = torch.zeros_like(lazy)
    assert torch.equal(zeros, torch.zeros_like(tensor)) and zeros.dtype == tensor.dtype
    assert torch.zeros_like(lazy, dtype=torch.float64, device="meta").dtype == torch.float64


def test_an_opened_trajectory_reads_its_latents_when_they_are_asked_for(trajectory, tmp_path):
    path = tmp_path / "t.safetensors"
    trajectory.save(path)
    opened = Trajectory.open(path, conditioning="x")
    assert opened.count == 3 and opened.actions == trajectory.actions and opened.conditioning == "x"
    dataclasses.replace(trajectory, states=trajectory.states + 1).save(path)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is damaged: step 2 of states"):
        opened.states[2]
    path.unlink()
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*states cannot be read"):
        opened.states[0]


def test_an_opened_trajectory_can_be_saved_again(trajectory, tmp_path):
    trajectory.save(tmp_path / "a.safetensors")
    Trajectory.open(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_shapes_that_do_not_fit_are_an_error_on_opening(trajectory, tmp_path):
    header = {
        "d3po": json.dumps(
            {
                "format": trajectory_module.FORMAT,
                "kernel": {"name": "ancestral", "eta": 1},
                "set_id": "",
                "model": "",
                "policy": "",
                "settings": {},
            }
        )
    }
    for states in (torch.ones(2, 1, 2, 2, 2), torch.ones(())):
        save_file(
            {"states": states, "denoised": torch.ones(2, 1, 2, 2, 2), "sigmas": torch.ones(3)},
            tmp_path / "t.safetensors",
            metadata=header,
        )
        with pytest.raises(ValueError, match="t.safetensors is not a trajectory file"):
            Trajectory.open(tmp_path / "t.safetensors")


def test_a_trajectory_is_written_from_where_it_lies_in_memory(trajectory, folder, monkeypatch):
    given, real = {}, trajectory_module.save_file
    monkeypatch.setattr(
        trajectory_module,
        "save_file",
        lambda tensors, *more, **named: (
            given.update({name: tensor.data_ptr() for name, tensor in tensors.items()}),
            real(tensors, *more, **named),
        ),
    )
    with Dataset(folder) as dataset:
        dataset.add_set("set 8", trajectory=dataclasses.replace(trajectory, set_id="set 8"))
    assert given == {name: getattr(trajectory, name).data_ptr() for name in ("states", "denoised", "sigmas")}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_trajectories_and_what_was_read_of_them_keep_no_file_open(folder):
    with Dataset(folder) as dataset:
        path = os.path.realpath(file_of_set_7(dataset, "sets"))
        held = [
            (opened, opened.states[0], opened.denoised[0, :1])
            for opened in (dataset.trajectory("set 7") for _ in range(50))
        ]
        assert path not in Path("/proc/self/maps").read_text() and len(held) == 50
        assert path not in [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]


@pytest.mark.parametrize("reference", ["base", None], ids=["recorded reference", "computed reference"])
def test_training_on_latents_on_disk_is_training_on_latents_in_memory(setup, toy, tmp_path, reference):
    weights = []
    for on_disk in (False, True):
        denoise, adapter = setup(seed=1)
        examples = toy.examples(denoise)
        if on_disk:
            with Dataset(tmp_path / "taste") as dataset:
                for i, example in enumerate(examples):
                    dataset.add_set(example.candidates.set_id, trajectory=example.candidates)
                    opened = dataset.trajectory(example.candidates.set_id)
                    assert isinstance(opened.states, LazyTensor) and isinstance(opened.denoised, LazyTensor)
                    examples[i] = Example(Preferences(opened, example.preferences.pairs), denoise)
        Trainer(adapter, Settings(learning_rate=1e-2, epochs=3), reference).fit(examples)
        weights.append(adapter.weights())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
