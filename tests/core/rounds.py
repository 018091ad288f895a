"""Rounds of training on a run without the host, for the tests of what may happen to them."""

import dataclasses

import pytest
import torch

from d3po_core.runs import store
from d3po_core.runs.progress import Progress, key_of, trained_on
from d3po_core.training.loop import Settings, Trainer

PAIRS = (((0, 1),), ((1, 0),), ((0, 1), (0, 2)))
SETTINGS = Settings(
    beta=20.0,
    clip=0.0,
    weighting="standardised",
    learning_rate=3e-3,
    epochs=5,
    sets_per_update=2,
    step_fraction=0.67,
)
UPDATES = 10  # that SETTINGS make of PAIRS


class Round:
    """A train step on a run, as the node makes it: from the state on disk, with progress, saved at last."""

    def __init__(self, folder, toy, setup, settings=SETTINGS, pairs=PAIRS, every=1, **shape):
        self.head, loaded = store.head(folder), store.load_run(folder)
        self.folder, (tensors, record) = folder, loaded or ({}, {"step": 0, "history": [], "rounds": []})
        denoise, adapter = setup(**shape)
        with adapter.off():
            self.examples = toy.examples(denoise, pairs)
        self.trainer = Trainer(adapter, settings, "base")
        if loaded:
            self.trainer.load_state(tensors, record["step"])
        sets = trained_on([example.preferences for example in self.examples])
        key = key_of(record["step"], tensors, dataclasses.asdict(settings), "net", sets)
        self.record = {
            "history": record["history"],
            "model": "net",
            "rounds": record["rounds"] + [{"start": record["step"], "key": key, "sets": sets}],
        }
        self.progress = Progress(folder, key, every)

    def fit(self):
        """(updates made before, warning)"""
        self.history, *resumed = self.progress.fit(self.trainer, self.examples)
        return tuple(resumed)

    def save(self):
        tensors, step = self.trainer.state()
        history = self.record["history"] + self.history
        saved = store.save_run(
            self.folder, tensors, self.record | {"step": step, "history": history}, head=self.head
        )
        self.progress.remove()
        return saved


def whole(begin, folder, rounds=1, **options):
    """What an uninterrupted run ends with: (tensors, record)."""
    for _ in range(rounds):
        one = begin(folder, **options)
        one.fit()
        one.save()
    return store.load_run(folder)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_runs(one, other):
    return same(one[0], other[0]) and all(
        one[1][name] == other[1][name] for name in ("step", "history", "rounds")
    )


class Stop(BaseException):
    """An interrupt, which in ComfyUI is no Exception."""


def stop_after(updates, one):
    """Train a round until so many updates are made."""

    def on_step():
        if one.trainer.step == one.record["rounds"][-1]["start"] + updates:
            raise Stop

    with pytest.raises(Stop):
        one.progress.fit(one.trainer, one.examples, on_step=on_step)


def raise_(error):
    raise error
