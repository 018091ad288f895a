"""Recordings of a window of a schedule's steps: they hold these and the finished latents."""

import dataclasses

import pytest
import torch

from d3po_core.candidates.preferences import Preferences
from d3po_core.candidates.trajectory import FORMAT, WINDOW_FORMAT, Trajectory
from d3po_core.training.loop import Example, Settings, Trainer
from d3po_core.training.metrics import BY_QUARTER

FIRST, STEPS = 1, 2  # of the four steps of the toy's schedule
PAIRS = ((0, 1), (2, 1))
SETTINGS = Settings(beta=20.0, clip=0.0, weighting="standardised", learning_rate=3e-3, epochs=3)


def cut(whole):
    """What is left of a recording where a window of its steps is kept."""
    last = FIRST + STEPS
    return dataclasses.replace(
        whole,
        states=whole.states[FIRST : last + 1],
        denoised=whole.denoised[FIRST:last],
        sigmas=whole.sigmas[FIRST : last + 1].clone(),
        schedule=whole.sigmas,
        final=whole.states[-1],
    )


@pytest.fixture
def whole(toy):
    return toy.record(toy.Denoiser(toy.net()))


def test_a_window_knows_where_it_lies_and_what_came_of_it(whole):
    window = cut(whole)
    assert (whole.first, window.first) == (0, FIRST)
    assert torch.equal(window.finished, whole.finished) and torch.equal(window.levels, whole.sigmas)
    assert [window.way(i) for i in range(STEPS)] == [whole.way(FIRST + i) for i in range(STEPS)]
    assert window.actions == [0, 1] and window.ending == whole.ending


@pytest.mark.parametrize("is_lazy", [False, True])
def test_files_give_back_every_bit(whole, tmp_path, is_lazy):
    window, path = cut(whole), tmp_path / "window.safetensors"
    window.save(path)
    read = Trajectory.open(path) if is_lazy else Trajectory.load(path)
    for name in ("states", "denoised", "sigmas", "schedule", "final"):
        assert torch.equal(getattr(read, name)[:], getattr(window, name)), name
    assert read.first == FIRST and read.kernel == whole.kernel and read.ending == whole.ending
    assert WINDOW_FORMAT.encode() in path.read_bytes()
    whole.save(path)
    assert FORMAT.encode() in path.read_bytes(), "what older versions read stays as it was"


def test_a_finished_latent_that_is_damaged_is_found_where_it_is_read(whole, tmp_path):
    path = tmp_path / "window.safetensors"
    cut(whole).save(path)
    content = bytearray(path.read_bytes())
    place = content.index(whole.finished[1].numpy().tobytes())
    content[place + 5] ^= 4
    path.write_bytes(content)
    opened = Trajectory.open(path)
    with pytest.raises(ValueError, match="damaged: step 1 of final"):
        opened.finished


def test_steps_that_are_no_part_of_the_schedule_are_an_error(whole):
    with pytest.raises(ValueError, match="no part of the schedule"):
        dataclasses.replace(cut(whole), schedule=whole.sigmas * 2)
    with pytest.raises(ValueError, match="both the schedule"):
        dataclasses.replace(cut(whole), final=None)
    with pytest.raises(ValueError, match="final latents"):
        dataclasses.replace(cut(whole), final=whole.states[-1, :2])


def test_training_on_a_window_is_training_on_these_steps_of_the_whole(toy, setup):
    """The same LoRA to the bit, with the same figures, in as many passes."""

    def trained(of, **window):
        denoise, adapter = setup()
        with adapter.off():
            trajectory = of(toy.record(denoise))
        denoise.batches.clear()
        trainer = Trainer(adapter, dataclasses.replace(SETTINGS, **window), "base")
        made = trainer.fit([Example(Preferences(trajectory, PAIRS), denoise)])
        return trainer.trained(), made, len(denoise.batches)

    weights, made, passes = trained(cut)
    own, figures, own_passes = trained(
        lambda whole: whole, window_start=FIRST / 4, window_end=(FIRST + STEPS) / 4
    )
    assert passes == own_passes
    for name in weights:
        assert torch.equal(weights[name][0], own[name][0]) and torch.equal(weights[name][1], own[name][1])
    names = {name for update in made for name in update} - {"seconds"}
    assert any(name.startswith(BY_QUARTER[0]) for name in names)
    assert [{name: update[name] for name in names if name in update} for update in made] == [
        {name: update[name] for name in names if name in update} for update in figures
    ]
