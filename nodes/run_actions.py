"""What can be done with a run on disk, without a graph."""

from contextlib import suppress

from ..d3po_core.runs import store
from ..d3po_core.runs.undo import undo_round
from .library import events_folder, file_of, on_shelf, runs_root
from .lora_export import export
from .lora_files import metadata, remove_lora, write_lora
from .types import TrainingState


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
    """A run's name and its steps, by which it is deleted: so that it cannot mean a later run of this name."""
    saved = [entry for entry in store.list_runs(runs_root()) if entry.name == run and not entry.problem]
    return f"{run} {saved[0].step}" if saved else run


def delete_run(run):
    """Remove a run and its copy for Load LoRA, for good; what was done in lines."""
    folder = store.existing(runs_root(), run)
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
