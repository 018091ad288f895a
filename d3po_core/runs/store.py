"""Named runs on disk. A run is a folder with

run.safetensors                       its LoRA, optimizer, step and metrics, and what each round was trained
                                      on
checkpoints/step-000123.safetensors   the same of earlier steps: the last few, and the best on held-out sets
progress.safetensors                  a train step that has not ended yet (progress.py)
progress-best.safetensors             that train step after its best update so far
pictures/0123456789abcdef.png         what pictures have become (looks.py)
win-rate.json                         what the last blind comparison said (compared.py)

No file is ever changed, only replaced by a whole one.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from . import progress
from .checkpoints import (
    BEGINNING,
    CHECKPOINTS,
    FORMAT,
    LATEST,
    STATE,
    best_of,
    checkpoint_files,
    checkpoint_path,
    checkpoints,
    complete,
    current_record,
    held_out,
    left_alone,
    state_path,
)
from .compared import COMPARISON, Compared, comparison_of
from .files import NotOurs, leftovers, read, read_curves, read_record, unsound, write
from .history import Curves
from .lineage import LONGEST, SHAPE, branch_names, identity, is_past, why_not  # noqa: F401
from .locks import held
from .looks import PICTURES, Look, look_of, picture_files, prune_looks, read_look, write_look
from .record import LookFiles, Record, Tensors

T = TypeVar("T")


@dataclass(frozen=True)
class Saved:
    """What became of a state that was saved.

    run  the name of the run that has it
    why  why that is not the run that was asked for, as a clause about the run that is there; "" where it is
    """

    run: str
    why: str = ""


@dataclass(frozen=True)
class Summary:
    """A run at a glance. `problem` says why a run cannot be read.

    sets    how many it has learned from
    labels  how many of their candidates somebody looked at
    """

    name: str
    step: int = 0
    rounds: int = 0
    model: str = ""
    rank: int = 0
    accuracy: float | None = None
    best: float | None = None
    size: int = 0
    changed: float = 0.0
    checkpoints: tuple[int, ...] = ()
    sets: int = 0
    labels: int = 0
    best_step: int | None = None
    look: LookFiles | None = None
    compared: Compared | None = None
    problem: str = ""


def run_folder(root: Path, name: str, what: str = "run") -> Path:
    """The folder of a run, or of something else that `what` calls by a word.

    Raises ValueError for a name that could lie outside `root` or cannot be a folder on every system.
    """
    reserved = name.split(".")[0].upper() in {
        "CON",
        "PRN",
        "AUX",
        "NUL",
        *(f"{d}{i}" for d in ("COM", "LPT") for i in range(10)),
    }
    if reserved or len(name) > LONGEST or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]*(?<![. ])", name):
        raise ValueError(f"{what}: {name!r} cannot name a folder; use letters, digits, spaces, '-' and '_'")
    return Path(root) / name


# --- saving and loading ---


def save_run(
    folder: Path,
    tensors: Tensors,
    record: Record,
    keep: int = 3,
    head: str | None = None,
    look: Look | None = None,
) -> Saved:
    """Write a run's state, {name: tensor} and a JSON record with at least "step", also as a checkpoint, and
    what pictures have become by it.

    Of the checkpoints the last `keep` stay, and the best by held-out accuracy.

    The state that is there is replaced only by one that follows from it (lineage.why_not). `head` is what the
    function head gave when this state was loaded. Any other state is kept beside it as a run of its own, NAME
    branch 2. Where the state that is there has gone on from this one, nothing is written. Raises ValueError
    for a state that no training can go on from.
    """
    if wrong := unsound(tensors):
        raise ValueError(
            f"lora: {wrong}, so this state was not saved: what was there before is as it was. Lower "
            "learning_rate, and train the round again"
        )
    record = complete(record)
    with held(folder):
        there = current_record(folder)
        why = why_not(there, record, head)
        if there is None or not why:
            _write_state(folder, tensors, record, keep, look)
            return Saved(folder.name)
    if is_past(record, there):
        return Saved(folder.name, "it has gone on from this LoRA already")
    for name in branch_names(folder.name):
        with held(folder.with_name(name)):
            if _takes(folder.with_name(name), record):
                _write_state(folder.with_name(name), tensors, record, keep, look)
                return Saved(name, why)
    raise ValueError(f"run: no branch of {folder.name!r} is free. Save to another name")


def _takes(folder: Path, record: Record) -> bool:
    """Whether a folder can take a state as a branch: it is not there, or has what the state goes on from."""
    with suppress(NotOurs):
        there = current_record(folder)
        return not folder.exists() if there is None else not why_not(there, record)
    return False


def _write_state(folder: Path, tensors: Tensors, record: Record, keep: int, look: Look | None) -> None:
    before, kept = current_record(folder), checkpoints(folder)
    if look:
        record = record | {"look": write_look(folder, look)}
    record = record | {"saved": 1 + max([before["saved"] if before else 0, *(c.saved for c in kept)])}
    # a state of no steps is nothing to go back to
    as_checkpoint = [checkpoint_path(folder, record["step"])] if record["step"] else []
    for path in (*as_checkpoint, folder / STATE):
        write(path, FORMAT, tensors, record)
    _prune(folder, keep)
    prune_looks(folder, [record, *(c.record for c in checkpoints(folder))])


def head(folder: Path) -> str | None:
    """A name of what a run's folder has now, for a later `save_run`; None where there is no run yet.

    Raises ValueError, naming the file, if it is not whole or not a run.
    """
    record = current_record(folder)
    return None if record is None else identity(record)


def load_run(folder: Path, checkpoint: str | int = LATEST) -> tuple[Tensors, Record] | None:
    """(tensors, record) of a run at a checkpoint ("latest", "best" or a step).

    None where there is no run yet. A step is the state before any round that went on from it: 0 is the run as
    it began, without tensors.

    Raises ValueError, naming the file, if it is not whole or not a run.
    """
    if str(checkpoint).strip() == BEGINNING:
        record = load_record(folder, checkpoint)
        return None if record is None else ({}, record)
    return _at(folder, checkpoint, lambda path: read(path, FORMAT))


def load_record(folder: Path, checkpoint: str | int = LATEST) -> Record | None:
    """The record that `load_run` returns, alone, and only the end of its history."""
    state = _at(folder, checkpoint, lambda path: (None, read_record(path, FORMAT)))
    return None if state is None else state[1]


def _at(
    folder: Path, checkpoint: str | int, look: Callable[[Path], tuple[T, Record]]
) -> tuple[T, Record] | None:
    """What look(path) -> (tensors, record) reads at a checkpoint; None where there is no run yet."""
    checkpoint = str(checkpoint).strip()
    current_record(folder)  # a run that could not be saved again is not trained on
    path = state_path(folder, checkpoint)
    if path is None:
        return None
    with left_alone(path):
        tensors, record = look(path)
    record = complete(record)
    if checkpoint == BEGINNING:
        record |= {"step": 0, "history": []}
        record.pop("look", None)
    if checkpoint.isdecimal():
        record["rounds"] = [round_ for round_ in record["rounds"] if round_["start"] < record["step"]]
    return tensors, record


def load_curves(folder: Path) -> Curves | None:
    """{metric: float64 [updates]} of a run, NaN where it was not measured; None where there is no run yet.

    Raises ValueError, naming the file, if it is not whole or not a run.
    """
    path = state_path(folder, LATEST)
    if path is None:
        return None
    with left_alone(path):
        return read_curves(path, FORMAT)


def run_version(folder: Path) -> str:
    """A text that changes whenever the run on disk does; "" where there is none."""
    stats = [
        (path.name, path.stat()) for path in (folder / STATE, *checkpoint_files(folder)) if path.exists()
    ]
    return " ".join(f"{name} {stat.st_mtime_ns} {stat.st_ino} {stat.st_size}" for name, stat in stats)


def _prune(folder: Path, keep: int) -> None:
    kept = checkpoints(folder)
    for checkpoint in kept[:-keep] if keep else kept:
        if checkpoint != best_of(kept):
            with suppress(OSError):  # somebody has it open: the next save tries again
                checkpoint.path.unlink()


# --- list, branch, delete ---


def list_runs(root: Path) -> list[Summary]:
    """A Summary of every run below `root`, by name."""
    folders = (
        sorted(Path(root).iterdir(), key=lambda folder: folder.name.lower()) if Path(root).is_dir() else []
    )
    return [_summary(root, folder, files) for folder in folders if (files := _own_files(folder))]


def branch(root: Path, name: str, new_name: str, checkpoint: str | int = LATEST) -> int:
    """Start a run from a checkpoint of another, and return the step it is at.

    Raises ValueError if the new name is taken.
    """
    source, target = existing(root, name), run_folder(root, new_name)
    loaded = load_run(source, checkpoint)
    if loaded is None:
        raise ValueError(
            f"run: the first round of {name!r} is not finished, so there is nothing to branch from"
        )
    tensors, record = loaded
    with held(target):
        try:
            target.mkdir()
        except FileExistsError:
            raise ValueError(
                f"new_name: {new_name!r} is there already, and was left as it is. Choose another name"
            ) from None
        try:
            _write_state(target, tensors, record, keep=1, look=read_look(source, record))
        except OSError:
            _remove(_own_files(target), target)
            raise
    return record["step"]


def delete(root: Path, name: str) -> list[str]:
    """Remove a run's own files, and its folder if nothing else is in it. Returns what is left."""
    folder = existing(root, name)
    with held(folder):
        _remove(_own_files(folder), folder)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def existing(root: Path, name: str) -> Path:
    """The folder of a run that is there.

    Raises ValueError if there is none, or a link in it leads out of the folder.
    """
    folder = run_folder(root, name)
    if not _own_files(folder):
        names = ", ".join(run.name for run in list_runs(root)) or "none yet"
        raise ValueError(f"run: there is no run {name!r}. There are: {names}")
    _refuse_links(root, folder, _own_files(folder))
    return folder


def _refuse_links(root: Path, folder: Path, files: list[Path]) -> None:
    real = Path(root).resolve() / folder.name
    for path in (folder, *_parts(folder), *files):
        if path.resolve() != real / path.relative_to(folder):
            raise ValueError(
                f"run: {path} is a link to another place. Nothing was changed: work on the run where it "
                "really is, or remove the link by hand"
            )


def _parts(folder: Path) -> tuple[Path, Path]:
    """The folders in a run's folder."""
    return folder / CHECKPOINTS, folder / PICTURES


def _own_files(folder: Path) -> list[Path]:
    """All that this pack writes into a run's folder. It ends with run.safetensors, which makes it a run."""
    whole = [*(folder / file for file in (*progress.FILES, COMPARISON)), *checkpoint_files(folder)]
    whole += [*picture_files(folder), folder / STATE]
    return [
        *(path for part in (folder, *_parts(folder)) for path in leftovers(part)),
        *(path for path in whole if path.exists() or path.is_symlink()),
    ]


def _remove(files: list[Path], folder: Path) -> None:
    for path in files:
        path.unlink(missing_ok=True)
    for emptied in (*_parts(folder), folder):
        with suppress(OSError):  # something that is not ours is in it
            emptied.rmdir()


def _summary(root: Path, folder: Path, files: list[Path]) -> Summary:
    size = 0
    for path in files:
        with suppress(OSError):  # a writer at work has just given it its name
            size += path.stat().st_size
    try:
        _refuse_links(root, folder, files)
        state = state_path(folder, LATEST)
        if state is None:
            return Summary(folder.name, size=size, problem="its first round is not finished")
        record, kept = complete(read_record(state, FORMAT)), checkpoints(folder)
    except ValueError as error:
        return Summary(folder.name, size=size, problem=str(error))
    settings, last, best = record["settings"], held_out(record), best_of(kept)
    return Summary(
        folder.name,
        record["step"],
        len(record["rounds"]),
        " ".join(filter(None, (settings.get("architecture"), record.get("model")))),
        settings.get("rank", 0),
        last[0] if last else None,
        best.held_out[0] if best and best.held_out else None,
        size,
        state.stat().st_mtime,
        tuple(c.step for c in kept),
        len({entry["set"] for entry in progress.sets_of(record["rounds"])}),
        progress.labels(record["rounds"]),
        best.step if best else None,
        look_of(folder, record),
        comparison_of(folder),
    )
