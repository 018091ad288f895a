"""A train step's state on disk while it runs, so that one that was stopped goes on where it was.

It belongs to one train step alone, which its key names: where training began, with what settings, on what data. Any
other leaves it aside.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..training.monitor import best_update
from .files import NotOurs, content_name, name_of, read, read_record, write
from .locks import held

FORMAT = "d3po.progress/2"
FILE, BEST_FILE = FILES = "progress.safetensors", "progress-best.safetensors"


def trained_on(preferences):
    """Which sets and what was said of them, in order: the name of each set, a hash of its pairs, scores and thumbs, and
    one of how it was made."""
    return [
        {
            "set": p.candidates.set_id,
            "said": said(p.pairs, p.scores, p.liked),
            "made": name_of(p.candidates.settings),
        }
        for p in preferences
    ]


def said(pairs, scores, liked):
    """A name of what was said of a set, as Preferences has it."""
    return name_of([pairs, scores, liked])


def key_of(start, tensors, settings, model, data):
    """Name of a train step: the step and state it starts from, all settings that change its result, and its data."""
    digest = hashlib.sha256(json.dumps([start, settings, model, data], sort_keys=True).encode())
    digest.update(content_name(tensors).encode())
    return digest.hexdigest()


@dataclass
class Progress:
    """The progress of the train step `key` in a run's folder.

    folder     None: nothing is kept
    every      how many updates lie between two states that are kept; 0: none is
    keep_best  remember the state after the update with the best held-out figures, for `back_to_best`
    """

    folder: Path | None
    key: str
    every: int = 1
    keep_best: bool = False
    _best: dict | None = None  # update, step, tensors; written: whether it is on disk

    def fit(self, trainer, examples, begin=lambda start: None, on_update=lambda history: None, **options):
        """`Trainer.fit` from where this train step was stopped: (every update's metrics, how many updates had been made
        before, a warning or ""). begin(how many) is called first, on_update(metrics of all updates so far) after each
        update; options are fit's.
        """
        round_start = trainer.round_start
        (before, warning), total = self._take_up(trainer), trainer.updates_in(examples)
        begin(len(before))

        def keep(history):
            on_update(history)
            if self.keep_best and best_update(history) == len(history):
                tensors, step = trainer.state()
                self._best = {"update": len(history), "step": step, "tensors": tensors, "written": False}
            if self.folder and self.every and (len(history) % self.every == 0 or len(history) == total):
                self.save(trainer, history)

        history = trainer.fit(examples, history=before, round_start=round_start, after_update=keep, **options)
        return history, len(before), warning

    def back_to_best(self, trainer, history):
        """Put the trainer back to where it was after the best of these updates: the updates' metrics up to it.

        All of them, with the trainer as it is, where nothing was measured or the last update is the best.
        """
        best, self._best = self._best, None
        if best is None or best["update"] != best_update(history):
            return history
        trainer.load_state(best["tensors"], best["step"])
        return history[: best["update"]]

    def _take_up(self, trainer):
        try:
            found = self.find()
            best = self.find(BEST_FILE) if found and self.keep_best else None
        except NotOurs as error:
            return (
                [],
                f"The progress of a train step that had been stopped was lost, and this one began anew: {error}",
            )
        if found is None:
            return [], ""
        if best:
            tensors, record = best
            self._best = {
                "update": record["update"],
                "step": record["step"],
                "tensors": tensors,
                "written": True,
            }
        tensors, record = found
        trainer.load_state(tensors, record["step"])
        lost = self.keep_best and not best and best_update(record["history"])
        return record["history"], (
            f"The state after update {lost}, the best before training had been stopped, is not on "
            "disk, so that training cannot go back to it"
        ) if lost else ""

    def find(self, file=FILE):
        """(tensors, record) of this very train step, or None. Raises NotOurs if there is no telling."""
        return read(self.folder / file, FORMAT) if self._is_there(file) else None

    def _is_there(self, file):
        path = self.folder and self.folder / file
        return path and path.exists() and read_record(path, FORMAT).get("key") == self.key

    def save(self, trainer, history):
        tensors, step = trainer.state()
        with held(self.folder):
            if (
                self._best and not self._best["written"]
            ):  # first, so that no progress is past a best that is not on disk
                write(
                    self.folder / BEST_FILE,
                    FORMAT,
                    self._best["tensors"],
                    {"key": self.key, "step": self._best["step"], "update": self._best["update"]},
                )
                self._best["written"] = True
            write(self.folder / FILE, FORMAT, tensors, {"key": self.key, "step": step, "history": history})
            if not self._best:  # a best that is there belonged to the progress that was there
                with suppress(OSError):
                    (self.folder / BEST_FILE).unlink(missing_ok=True)

    def remove(self):
        """Remove it, unless it is another train step's by now."""
        if not self.folder or not any((self.folder / file).exists() for file in FILES):
            return
        with (
            suppress(OSError),
            held(self.folder),
        ):  # else it is in nobody's way: the next train step replaces it
            for file in FILES:
                with suppress(NotOurs, OSError):
                    if self._is_there(file):
                        (self.folder / file).unlink()
