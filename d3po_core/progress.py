"""A train step's state on disk while it runs, so that one that was stopped goes on where it was.

It belongs to one train step alone, which its key names: where training began, with what settings, on what data. Any
other leaves it aside.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .run_files import NotOurs, content_name, read, read_record, write

FORMAT = "d3po.progress/2"
FILE = "progress.safetensors"


def trained_on(preferences):
    """Which sets and what was said of them, in order: the name of each set, a hash of its pairs, scores and thumbs, and
    one of how it was made."""
    return [{"set": p.trajectory.set_id, "said": _sha(json.dumps([p.pairs, p.scores, p.liked]))[:16],
             "made": _sha(json.dumps(p.trajectory.settings, sort_keys=True))[:16]} for p in preferences]


def key_of(start, tensors, settings, model, data):
    """Name of a train step: the step and state it starts from, all settings that change its result, and its data."""
    digest = hashlib.sha256(json.dumps([start, settings, model, data], sort_keys=True).encode())
    digest.update(content_name(tensors).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Progress:
    """The progress of the train step `key` in a run's folder.

    folder  None: nothing is kept
    every   how many updates lie between two states that are kept; 0: none is
    """

    folder: Path | None
    key: str
    every: int = 1

    @property
    def path(self):
        return self.folder / FILE

    def fit(self, trainer, examples, begin=lambda start: None, on_update=lambda history: None, **options):
        """`trainer.fit` from where this train step was stopped: (every update's metrics, how many updates had been made
        before, a warning or ""). begin(how many) is called first, on_update(metrics of all updates so far) after each
        update; options are fit's.
        """
        round_start = trainer.round_start
        (before, warning), total = self._take_up(trainer), trainer.updates_in(examples)
        begin(len(before))

        def keep(history):
            on_update(history)
            if self.folder and self.every and (len(history) % self.every == 0 or len(history) == total):
                self.save(trainer, history)

        history = trainer.fit(examples, history=before, round_start=round_start, after_update=keep, **options)
        return history, len(before), warning

    def _take_up(self, trainer):
        try:
            found = self.find()
        except NotOurs as error:
            return [], f"The progress of a train step that had been stopped was lost, and this one began anew: {error}"
        if found is None:
            return [], ""
        tensors, record = found
        trainer.load_state(tensors, record["step"])
        return record["history"], ""

    def find(self):
        """(tensors, record) of this very train step, or None. Raises NotOurs if there is no telling."""
        return read(self.path, FORMAT) if self._is_there() else None

    def _is_there(self):
        return self.folder and self.path.exists() and read_record(self.path, FORMAT).get("key") == self.key

    def save(self, trainer, history):
        tensors, step = trainer.state()
        write(self.path, FORMAT, tensors, {"key": self.key, "step": step, "history": history})

    def remove(self):
        """Remove it, unless it is another train step's by now."""
        with suppress(NotOurs, OSError):  # then it is in nobody's way: the next train step replaces it
            if self._is_there():
                self.path.unlink()


def _sha(text):
    return hashlib.sha256(text.encode()).hexdigest()
