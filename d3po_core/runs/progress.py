"""A train step's state on disk while it runs, so that a stopped one goes on where it was.

It belongs to one train step alone, named by its key: where training began, with what settings, on what data.
Other train steps leave it aside.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..candidates.preferences import Preferences
from ..training.monitor import best_update
from .files import NotOurs, content_name, name_of, read, read_record, write
from .locks import held
from .record import JudgedSet, Metrics, Record, Round, Tensors
from .writing import Writing

if TYPE_CHECKING:
    from ..training.learner import Learner

FORMAT = "d3po.progress/2"
BRIEF = 0.25  # seconds of writing that nobody minds after every update
LOST = 60.0  # seconds of training that may be lost where writing takes longer
FILE, BEST_FILE = FILES = "progress.safetensors", "progress-best.safetensors"


def trained_on(preferences: Iterable[Preferences]) -> list[JudgedSet]:
    """Which sets, and what was said of them, in order."""
    sets: list[JudgedSet] = []
    for p in preferences:
        sets.append(
            {
                "set": p.candidates.set_id,
                "said": said(p.pairs, p.scores, p.liked),
                "made": name_of(p.candidates.settings),
            }
        )
        if p.taste:
            sets[-1]["taste"] = p.taste.name
    return sets


def labels(rounds: Iterable[Round]) -> int:
    """How many candidates somebody looked at in these rounds, each once."""
    return sum({entry["set"]: entry.get("labels", 0) for entry in sets_of(rounds)}.values())


def sets_of(rounds: Iterable[Round]) -> list[JudgedSet]:
    """What rounds were trained on, in order; records of earlier versions do not say it."""
    return [entry for round_ in rounds for entry in round_.get("sets", [])]


def said(
    pairs: Sequence[tuple[int, int]], scores: Sequence[float | None], liked: Sequence[bool | None]
) -> str:
    """A name of what was said of a set, as Preferences has it."""
    return name_of([pairs, scores, liked])


def key_of(
    start: int,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    model: str,
    data: Sequence[JudgedSet],
) -> str:
    """The name of a train step: the step and state it starts from, its data, and all settings that matter."""
    digest = hashlib.sha256(json.dumps([start, settings, model, data], sort_keys=True).encode())
    digest.update(content_name(tensors).encode())
    return digest.hexdigest()


@dataclass
class Best:
    """The state after the best update of a train step. `written` says whether it is on disk."""

    update: int
    step: int
    tensors: Tensors
    written: bool


@dataclass
class Progress:
    """The progress of the train step `key` in a run's folder.

    folder     None: nothing is kept
    every      a state is kept after so many updates; 0: none is kept
    keep_best  remember the state after the update with the best held-out figures, for `back_to_best`

    States are written while training goes on. Where that takes longer than BRIEF, at most LOST seconds pass
    between two of them, and one more is written where training is stopped.
    """

    folder: Path | None
    key: str
    every: int = 1
    keep_best: bool = False
    _best: Best | None = None
    _put_off: bool = False  # whether a state should have been kept
    _copied: float = 0.0  # when the last one was copied
    _writing: Writing | None = None

    def fit(
        self,
        trainer: "Learner",
        examples: Sequence[Any],
        begin: Callable[[int], object] = lambda start: None,
        on_update: Callable[[list[Metrics]], object] = lambda history: None,
        **options: Any,
    ) -> tuple[list[Metrics], int, str]:
        """`Learner.fit` from where this train step was stopped; options are fit's.

        Returns every update's metrics, how many of these updates had been made before, and a warning or "".
        begin(how many) is called first, and on_update(metrics of all updates so far) after each update.
        """
        round_start = trainer.round_start
        (before, warning), total = self._take_up(trainer), trainer.updates_in(examples)
        trainer.ranks.require_same((self.key, len(before)), "what this train step begins with")
        begin(len(before))

        made, step = before, trainer.step
        self._copied = time.monotonic()

        def keep(history: list[Metrics]) -> None:
            nonlocal made, step
            made, step = list(history), trainer.step
            on_update(history)
            if self.keep_best and best_update(history) == len(history):
                tensors, _ = trainer.state()
                self._best = Best(len(history), step, tensors, written=False)
            if self.every and (len(history) % self.every == 0 or len(history) == total):
                self._put_off = True
            if self._put_off and self._due():
                self.save(trainer, made)

        try:
            history = trainer.fit(
                examples, history=before, round_start=round_start, after_update=keep, **options
            )
        except BaseException:  # ComfyUI's interrupt is no Exception
            with suppress(OSError):  # what stopped training is told instead
                if self._put_off and trainer.step == step:
                    self.save(trainer, made)
                self._settle()
            raise
        if self._put_off:
            self.save(trainer, made)
        self._settle()
        return history, len(before), warning

    def _due(self) -> bool:
        """Whether to write now what has been put off."""
        brief = self._writing is None or self._writing.took <= BRIEF
        return brief or time.monotonic() - self._copied >= LOST

    def _settle(self) -> None:
        """Wait until what is being written is on disk. Raises what writing raised."""
        if self._writing:
            self._writing.join()
            error, self._writing.error = self._writing.error, None
            if error:
                raise error

    def back_to_best(self, trainer: "Learner", history: list[Metrics]) -> list[Metrics]:
        """Put the trainer back to where it was after the best update, and return the metrics up to it.

        Where nothing was measured, or the last update is the best, the trainer stays as it is and all are
        returned.
        """
        best, self._best = self._best, None
        if best is None or best.update != best_update(history):
            return history
        trainer.load_state(best.tensors, best.step)
        return history[: best.update]

    def _take_up(self, trainer: "Learner") -> tuple[list[Metrics], str]:
        """Load what is on disk of this train step: the metrics of its updates so far, and a warning or ""."""
        try:
            stopped = self.find()
            best = self.find(BEST_FILE) if stopped and self.keep_best else None
        except NotOurs as error:
            return (
                [],
                "The progress of a train step that had been stopped was lost, and this one began anew: "
                f"{error}",
            )
        if stopped is None:
            return [], ""
        if best:
            tensors, record = best
            self._best = Best(record["update"], record["step"], tensors, written=True)
        tensors, record = stopped
        trainer.load_state(tensors, record["step"])
        lost = self.keep_best and not best and best_update(record["history"])
        return record["history"], (
            f"The state after update {lost}, the best before training had been stopped, is not on "
            "disk, so that training cannot go back to it"
        ) if lost else ""

    def find(self, file: str = FILE) -> tuple[Tensors, Record] | None:
        """(tensors, record) of this very train step, or None.

        Raises NotOurs if the file cannot be read, so that nothing tells which train step it belongs to.
        """
        if self.folder is None or not self._is_ours(self.folder / file):
            return None
        return read(self.folder / file, FORMAT)

    def _is_ours(self, path: Path) -> bool:
        return path.exists() and read_record(path, FORMAT).get("key") == self.key

    def save(self, trainer: "Learner", history: list[Metrics]) -> None:
        """Begin to write the trainer's state into the run's folder, and the best one if it is not there yet.
        Waits for the state before to be on disk, and raises what writing that raised."""
        self._settle()
        self._put_off, self._copied = False, time.monotonic()
        if self.folder and trainer.ranks.first:
            self._writing = Writing(partial(self._write, *trainer.state(), history, self._best))

    def _write(self, tensors: Tensors, step: int, history: list[Metrics], best: Best | None) -> None:
        assert self.folder
        folder = self.folder
        with held(folder):
            if best and not best.written:  # first, so that no progress is past a best that is not on disk
                figures: Record = {"key": self.key, "step": best.step, "update": best.update}
                write(folder / BEST_FILE, FORMAT, best.tensors, figures)
                best.written = True
            write(folder / FILE, FORMAT, tensors, {"key": self.key, "step": step, "history": history})
            if not best:  # a best that is there belonged to the progress that was there
                with suppress(OSError):
                    (folder / BEST_FILE).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the files of this train step, and leave those of any other."""
        if not self.folder:
            return
        paths = [self.folder / file for file in FILES]
        if not any(path.exists() for path in paths):
            return
        # a file that stays is in nobody's way: the next train step replaces it
        with suppress(OSError), held(self.folder):
            for path in paths:
                with suppress(NotOurs, OSError):
                    if self._is_ours(path):
                        path.unlink()
