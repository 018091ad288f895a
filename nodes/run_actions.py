"""What can be done with a run on disk, without a graph."""

from contextlib import suppress

from ..d3po_core.runs import store
from ..d3po_core.runs.undo import undo_round
from .library import events_folder, file_of, on_shelf, runs_root
from .lora_export import export
from .lora_files import metadata, remove_lora, write_lora
from .types import TrainingState


class Unconfirmed(Exception):
    """A run is not what a person has confirmed. Nothing was deleted."""


def take_back_round(run):
    """Put a run, and its copy for Load LoRA, back to where its last round began; what was done in words."""
    tensors, record, was = undo_round(runs_root(), run)
    shelve(run, tensors, record)
    back = f" To take this back, set Load Run's checkpoint to {was}." if was != record["step"] else ""
    return f"{run}: the last round is taken back, from step {was} to step {record['step']}.{back}"


def branch_run(run, new_name, checkpoint):
    """Start a run from a checkpoint of another; what was done in words."""
    step = store.branch(runs_root(), run, new_name, checkpoint)
    tensors, record = store.load_run(store.existing(runs_root(), new_name))
    shelve(new_name, tensors, record)
    return f"{new_name}: begins at step {step} of {run}"


def shelve(run, tensors, record):
    """Put the LoRA of a run's state where Load LoRA finds it; where there is none yet, nothing is there."""
    if tensors:
        state = state_of(tensors, record)
        write_lora(on_shelf(run), file_of(state), metadata(state, run))
    else:
        remove_lora(on_shelf(run), run)


def state_of(tensors, record):
    return TrainingState(tensors, record["step"], record["settings"], record["model"])


def as_it_is(run):
    """What confirms that a run, of which this is the Summary, is to be deleted as it is now: its name and its
    steps, so that it cannot mean a later run of this name."""
    return run.name if run.problem else f"{run.name} {run.step}"


def delete_run(run, confirm):
    """Remove a run and its copy for Load LoRA, for good; what was done in lines. Raises Unconfirmed, with
    what confirms it, where confirm is something else."""
    folder = store.existing(runs_root(), run)
    (wanted,) = (as_it_is(entry) for entry in store.list_runs(runs_root()) if entry.name == run)
    if confirm != wanted:
        raise Unconfirmed(wanted)
    left = store.delete(runs_root(), run)
    remove_lora(on_shelf(run), run)
    _remove_events(events_folder(run))
    lines = [f"left in {folder}, as it is not the run's own: {', '.join(left)}"] if left else []
    return [f"{run}: deleted", *lines]


def _remove_events(folder):
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink()
    with suppress(OSError):  # it is not there, or something that is not ours is in it
        folder.rmdir()


def export_run(run):
    """Write a run's LoRA, as it is now, into a file of its own: its path in the output folder."""
    tensors, record = store.load_run(store.existing(runs_root(), run)) or ({}, {})
    if not tensors:
        raise ValueError(f"run: {run!r} has learned nothing yet, so there is no LoRA to export")
    state = state_of(tensors, record)
    return export(state, file_of(state), f"loras/{run}")
