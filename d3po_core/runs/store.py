"""Named runs on disk. A run is a folder with

run.safetensors                       its LoRA, optimizer, step and metrics, and what each round was trained on
checkpoints/step-000123.safetensors   the same of earlier steps: the last few, and the best on held-out sets
progress.safetensors                  a train step that has not ended yet (progress.py)
progress-best.safetensors             that train step after its best update so far

No file is ever changed, only replaced by a whole one.
"""

import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..training import metrics
from . import progress
from .files import NotOurs, Unsound, leftovers, read, read_curves, read_record, unsound, write
from .lineage import LONGEST, SHAPE, branch_names, identity, is_past, why_not  # noqa: F401 (SHAPE is of the runs' face)
from .locks import held

FORMAT = "d3po.run/3"
STATE = "run.safetensors"
CHECKPOINTS = "checkpoints"
LATEST, BEST = "latest", "best"
BEGINNING = "0"  # the checkpoint before a run's first round
# what older runs do not say, of themselves and of their settings
UNSAID = {"rounds": [], "saved": 0}
UNSAID_SETTINGS = {"adapter": "LoRA"}


@dataclass(frozen=True)
class Checkpoint:
    """A run's state at a step. `saved` counts the run's saves, as one that went back has fewer steps later."""

    path: Path
    step: int
    saved: int
    held_out: tuple | None  # (accuracy, margin), None where nothing was held out


@dataclass(frozen=True)
class Saved:
    """What became of a state that was saved: the name of the run that has it, and why it is not what was asked for, as a
    clause about the run that is there; "" where it is."""

    run: str
    why: str = ""


@dataclass(frozen=True)
class Summary:
    """A run at a glance. `problem` says why a run cannot be read."""

    name: str
    step: int = 0
    rounds: int = 0
    model: str = ""
    rank: int = 0
    accuracy: float | None = None
    best: float | None = None
    size: int = 0
    changed: float = 0.0
    checkpoints: tuple = ()
    problem: str = ""


def run_folder(root, name, what="run"):
    """Folder of a run, or of `what` else has a name. Raises ValueError for a name that could lie outside `root` or not be
    a folder everywhere."""
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


def save_run(folder, tensors, record, keep=3, head=None):
    """Write a run's state, {name: tensor} and a JSON record with at least "step", also as a checkpoint: a Saved.

    Of the checkpoints the last `keep` stay, and the best by held-out accuracy.

    What is there is replaced only by a state that follows from it (lineage.why_not; head is `head` of the folder when this
    one was loaded). Any other is kept beside it as a run of its own, NAME branch 2, unless what is there has gone on from
    it: then there is nothing to write. Raises ValueError for a state that no training goes on from.
    """
    if wrong := unsound(tensors):
        raise ValueError(
            f"lora: {wrong}, so this state was not saved: what was there before is as it was. Lower "
            "learning_rate, and train the round again"
        )
    record = _whole(record)
    with held(folder):
        there = _current(folder)
        why = why_not(there, record, head)
        if not why:
            _write_state(folder, tensors, record, keep)
            return Saved(folder.name)
    if is_past(record, there):
        return Saved(folder.name, "it has gone on from this LoRA already")
    for name in branch_names(folder.name):
        with held(folder.with_name(name)):
            if _takes(folder.with_name(name), record):
                _write_state(folder.with_name(name), tensors, record, keep)
                return Saved(name, why)


def _takes(folder, record):
    """Whether a folder has room for a state as a branch: it is not there, or has what the state goes on from."""
    with suppress(NotOurs):
        there = _current(folder)
        return not folder.exists() if there is None else not why_not(there, record)
    return False


def _write_state(folder, tensors, record, keep):
    before, found = _current(folder), checkpoints(folder)
    record = record | {"saved": 1 + max([before["saved"] if before else 0, *(c.saved for c in found)])}
    kept = (
        [checkpoint_path(folder, record["step"])] if record["step"] else []
    )  # of no step there is nothing to go back to
    for path in (*kept, folder / STATE):
        write(path, FORMAT, tensors, record)
    _prune(folder, keep)


def head(folder):
    """A name of what a run's folder has now, for a later `save_run`; None where there is no run yet.

    Raises ValueError, naming the file, if it is not whole or not a run.
    """
    there = _current(folder)
    return there and identity(there)


def load_run(folder, checkpoint=LATEST):
    """(tensors, record) of a run at a checkpoint ("latest", "best" or a step), or None where there is no run yet.

    A step is the state before any round that went on from it: 0 is the run as it began, without tensors.

    Raises ValueError, naming the file, if it is not whole or not a run.
    """
    if str(checkpoint).strip() == BEGINNING:
        record = load_record(folder, checkpoint)
        return record and ({}, record)
    return _at(folder, checkpoint, lambda path: read(path, FORMAT))


def load_record(folder, checkpoint=LATEST):
    """The record that `load_run` returns, alone, and of its history the end."""
    found = _at(folder, checkpoint, lambda path: (None, read_record(path, FORMAT)))
    return found and found[1]


def _at(folder, checkpoint, look):
    """What look(path) -> (tensors, record) finds at a checkpoint."""
    checkpoint = str(checkpoint).strip()
    _current(folder)  # a run that could not be saved again is not trained on
    path = _path_of(folder, checkpoint)
    if path is None:
        return None
    with _left_alone(path):
        tensors, record = look(path)
    record = _whole(record)
    if checkpoint == BEGINNING:
        record |= {"step": 0, "history": []}
    if checkpoint.isdecimal():
        record["rounds"] = [round_ for round_ in record["rounds"] if round_["start"] < record["step"]]
    return tensors, record


def load_curves(folder):
    """{metric: float64 [updates]} of a run, NaN where it was not measured; None where there is no run yet.

    Raises ValueError, naming the file, if it is not whole or not a run.
    """
    path = _path_of(folder, LATEST)
    if path is None:
        return None
    with _left_alone(path):
        return read_curves(path, FORMAT)


def run_version(folder):
    """Changes whenever the run on disk does; "" where there is none."""
    stats = [
        (path.name, path.stat()) for path in (folder / STATE, *_checkpoint_files(folder)) if path.exists()
    ]
    return " ".join(f"{name} {stat.st_mtime_ns} {stat.st_ino} {stat.st_size}" for name, stat in stats)


def _current(folder):
    """The record of a run as it stands, with the end of its history, or None."""
    path = _path_of(folder, LATEST)
    if path is None:
        return None
    with _left_alone(path):
        return _whole(read_record(path, FORMAT))


def _whole(record):
    """A record with what older ones do not say."""
    return UNSAID | record | {"settings": UNSAID_SETTINGS | record.get("settings", {})}


@contextmanager
def _left_alone(path):
    """Say of a file that is not a run's, or is damaged, what there is to do."""
    try:
        yield
    except Unsound as error:
        folder = path.parent if path.name == STATE else path.parent.parent
        raise Unsound(
            f"{error}. It was left as it is: set D3PO Load Run's checkpoint to an earlier step of those that are "
            f"kept: {', '.join(map(str, steps_kept(folder)))}"
        ) from error
    except NotOurs as error:
        found = checkpoints(path.parent) if path.name == STATE else []
        instead = f" to go on from the last checkpoint, step {found[-1].step}" if found else ""
        raise NotOurs(
            f"{error}. It was left as it is: give this run another name, or move the file away{instead}"
        ) from error


# --- checkpoints ---


def checkpoint_path(folder, step):
    return folder / CHECKPOINTS / f"step-{step:06d}.safetensors"


def checkpoints(folder):
    """A run's checkpoints in the order they were saved. Damaged and foreign files are left out, and left alone."""
    found = []
    for path in _checkpoint_files(folder):
        with suppress(NotOurs):
            record = _whole(read_record(path, FORMAT))
            if checkpoint_path(folder, record["step"]) == path:
                found.append(Checkpoint(path, record["step"], record["saved"], held_out(record)))
    return sorted(found, key=lambda c: (c.saved, c.step))


def steps_kept(folder):
    """The steps that a run can go back to."""
    there = _current(folder)
    return sorted({0, *(c.step for c in checkpoints(folder)), *([there["step"]] if there else [])})


def best_of(found):
    """The checkpoint with the highest held-out accuracy, of equals the one with the highest margin; or None."""
    return max((c for c in found if c.held_out), key=lambda c: (*c.held_out, c.saved), default=None)


def held_out(record):
    """(accuracy, margin) on the held-out sets when a state was saved, or None."""
    last = (record.get("history") or [{}])[-1]
    accuracy = last.get(metrics.HELD_OUT_ACCURACY)
    return None if accuracy is None else (accuracy, last.get(metrics.HELD_OUT_MARGIN, 0.0))


def _checkpoint_files(folder):
    return sorted(
        path
        for path in (folder / CHECKPOINTS).glob("step-*.safetensors")
        if re.fullmatch(r"step-\d{6,}\.safetensors", path.name)
    )


def _path_of(folder, checkpoint):
    """File of a run's state, or None where there is no run yet. run.safetensors moved away: the last checkpoint."""
    current, found = folder / STATE, checkpoints(folder)
    last = current if current.exists() else found[-1].path if found else None
    if last is None or checkpoint in (LATEST, BEGINNING):
        return last
    if checkpoint == BEST:
        best = best_of(found)
        if best is None:
            raise ValueError(
                "checkpoint: this run has no held-out figures to tell which is best. Wire preferences to "
                f"the train step's 'held_out', or choose {LATEST} or a step: {_steps(found)}"
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
        f"keeps: {_steps(found)}; {BEGINNING} is the run as it began"
    )


def _steps(found):
    return ", ".join(str(c.step) for c in found) or "none"


def _prune(folder, keep):
    found = checkpoints(folder)
    for checkpoint in found[:-keep] if keep else found:
        if checkpoint != best_of(found):
            with suppress(OSError):  # somebody has it open: the next save tries again
                checkpoint.path.unlink()


# --- list, branch, delete ---


def list_runs(root):
    """A Summary of every run below `root`, by name."""
    folders = (
        sorted(Path(root).iterdir(), key=lambda folder: folder.name.lower()) if Path(root).is_dir() else []
    )
    return [_summary(root, folder) for folder in folders if _own_files(folder)]


def branch(root, name, new_name, checkpoint=LATEST):
    """Start a run from a checkpoint of another. Raises ValueError if the new name is taken."""
    source, target = existing(root, name), run_folder(root, new_name)
    tensors, record = load_run(source, checkpoint)
    with held(target):
        try:
            target.mkdir()
        except FileExistsError:
            raise ValueError(
                f"new_name: {new_name!r} is there already, and was left as it is. Choose another name"
            ) from None
        try:
            _write_state(target, tensors, record, keep=1)
        except OSError:
            _remove(_own_files(target), target)
            raise
    return record["step"]


def delete(root, name):
    """Remove a run's own files, and its folder if nothing else is in it. Returns what is left there."""
    folder = existing(root, name)
    with held(folder):
        _remove(_own_files(folder), folder)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def existing(root, name):
    """Folder of a run that is there. Raises ValueError if there is none, or a link in it leads out of the folder."""
    folder = run_folder(root, name)
    if not _own_files(folder):
        names = ", ".join(run.name for run in list_runs(root)) or "none yet"
        raise ValueError(f"run: there is no run {name!r}. There are: {names}")
    _refuse_links(root, folder)
    return folder


def _refuse_links(root, folder):
    real = Path(root).resolve() / folder.name
    for path in (folder, folder / CHECKPOINTS, *_own_files(folder)):
        if path.resolve() != real / path.relative_to(folder):
            raise ValueError(
                f"run: {path} is a link to another place. Nothing was changed: work on the run where it "
                "really is, or remove the link by hand"
            )


def _own_files(folder):
    """All that this pack writes into a run's folder, run.safetensors last: until then the run is one."""
    whole = [*(folder / file for file in progress.FILES), *_checkpoint_files(folder), folder / STATE]
    return [
        *leftovers(folder),
        *leftovers(folder / CHECKPOINTS),
        *(path for path in whole if path.exists() or path.is_symlink()),
    ]


def _remove(files, folder):
    for path in files:
        path.unlink(missing_ok=True)
    for emptied in (folder / CHECKPOINTS, folder):
        with suppress(OSError):  # something that is not ours is in it
            emptied.rmdir()


def _summary(root, folder):
    size = 0
    for path in _own_files(folder):
        with suppress(OSError):  # a writer at work has just given it its name
            size += path.stat().st_size
    try:
        _refuse_links(root, folder)
        path = _path_of(folder, LATEST)
        if path is None:
            return Summary(folder.name, size=size, problem="its first round is not finished")
        record, found = _whole(read_record(path, FORMAT)), checkpoints(folder)
    except ValueError as error:
        return Summary(folder.name, size=size, problem=str(error))
    settings, last, best = record["settings"], held_out(record), best_of(found)
    return Summary(
        folder.name,
        record["step"],
        len(record["rounds"]),
        " ".join(filter(None, (settings.get("architecture"), record.get("model")))),
        settings.get("rank", 0),
        last and last[0],
        best and best.held_out[0],
        size,
        path.stat().st_mtime,
        tuple(c.step for c in found),
    )
