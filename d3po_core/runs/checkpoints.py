"""The states of a run on disk: the present one, and its checkpoints, which are those of earlier steps."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..training import metrics
from .files import NotOurs, Unsound, read_record
from .record import Record

FORMAT = "d3po.run/3"
STATE = "run.safetensors"
CHECKPOINTS = "checkpoints"
LATEST, BEST = "latest", "best"
BEGINNING = "0"  # the checkpoint before a run's first round
# what older records lack, of the run and of its settings
UNSAID: Record = {"rounds": [], "saved": 0}
UNSAID_SETTINGS: dict[str, Any] = {"adapter": "LoRA"}


@dataclass(frozen=True)
class Checkpoint:
    """A run's state at a step.

    saved     counts the run's saves: a run that went back has fewer steps later
    held_out  (accuracy, margin); None where nothing was held out
    record    all that the state says of itself, with the end of its history
    """

    path: Path
    step: int
    saved: int
    held_out: tuple[float, float] | None
    record: Record


def current_record(folder: Path) -> Record | None:
    """The record of a run as it stands, with the end of its history; None where there is no run yet."""
    path = state_path(folder, LATEST)
    if path is None:
        return None
    with left_alone(path):
        return complete(read_record(path, FORMAT))


def complete(record: Record) -> Record:
    """A record with the fields that older ones lack."""
    settings = UNSAID_SETTINGS | record.get("settings", {})
    filled: Record = UNSAID | record | {"settings": settings}
    return filled


@contextmanager
def left_alone(path: Path) -> Iterator[None]:
    """Add to the error of a file that is not a run's, or is damaged, what there is to do."""
    try:
        yield
    except Unsound as error:
        folder = path.parent if path.name == STATE else path.parent.parent
        raise Unsound(
            f"{error}. It was left as it is: set D3PO Load Run's checkpoint to an earlier step of those "
            f"that are kept: {', '.join(map(str, steps_kept(folder)))}"
        ) from error
    except NotOurs as error:
        kept = checkpoints(path.parent) if path.name == STATE else []
        instead = f" to go on from the last checkpoint, step {kept[-1].step}" if kept else ""
        raise NotOurs(
            f"{error}. It was left as it is: give this run another name, or move the file away{instead}"
        ) from error


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / CHECKPOINTS / f"step-{step:06d}.safetensors"


def checkpoints(folder: Path) -> list[Checkpoint]:
    """A run's checkpoints in the order they were saved, without damaged and foreign files."""
    kept = []
    for path in checkpoint_files(folder):
        with suppress(NotOurs):
            record = complete(read_record(path, FORMAT))
            if checkpoint_path(folder, record["step"]) == path:
                kept.append(Checkpoint(path, record["step"], record["saved"], held_out(record), record))
    return sorted(kept, key=lambda c: (c.saved, c.step))


def steps_kept(folder: Path) -> list[int]:
    """The steps that a run can go back to."""
    record = current_record(folder)
    return sorted({0, *(c.step for c in checkpoints(folder)), *([record["step"]] if record else [])})


def best_of(kept: Sequence[Checkpoint]) -> Checkpoint | None:
    """The checkpoint of the highest held-out accuracy, of equals the one of the highest margin."""
    return max((c for c in kept if c.held_out), key=lambda c: (*(c.held_out or ()), c.saved), default=None)


def held_out(record: Record) -> tuple[float, float] | None:
    """(accuracy, margin) on the held-out sets when a state was saved, or None."""
    last = (record.get("history") or [{}])[-1]
    accuracy = last.get(metrics.HELD_OUT_ACCURACY)
    return None if accuracy is None else (accuracy, last.get(metrics.HELD_OUT_MARGIN, 0.0))


def checkpoint_files(folder: Path) -> list[Path]:
    """The files that are named as checkpoints are, whatever is in them."""
    return sorted(
        path
        for path in (folder / CHECKPOINTS).glob("step-*.safetensors")
        if re.fullmatch(r"step-\d{6,}\.safetensors", path.name)
    )


def state_path(folder: Path, checkpoint: str) -> Path | None:
    """The file of a run's state, or None where there is no run yet.

    Where run.safetensors was moved away, the latest state is the last checkpoint. Raises ValueError if the
    run has no such checkpoint.
    """
    current, wants_last = folder / STATE, checkpoint in (LATEST, BEGINNING)
    if wants_last and current.exists():
        return current
    kept = checkpoints(folder)
    last = current if current.exists() else kept[-1].path if kept else None
    if last is None or wants_last:
        return last
    if checkpoint == BEST:
        best = best_of(kept)
        if best is None:
            raise ValueError(
                "checkpoint: this run has no held-out figures to tell which is best. Wire preferences to "
                f"the train step's 'held_out', or choose {LATEST} or a step: {_steps(kept)}"
            )
        return best.path
    if checkpoint.isdecimal():
        step = int(checkpoint)
        if checkpoint_path(folder, step).exists():
            return checkpoint_path(folder, step)
        if read_record(last, FORMAT)["step"] == step:
            return last
    raise ValueError(
        f"checkpoint: this run has no {checkpoint!r}. Choose {LATEST}, {BEST}, or one of the steps it "
        f"keeps: {_steps(kept)}; {BEGINNING} is the run as it began"
    )


def _steps(kept: Sequence[Checkpoint]) -> str:
    return ", ".join(str(c.step) for c in kept) or "none"
