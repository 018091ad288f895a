"""A run's metrics for TensorBoard, where the package tensorboard is installed; nothing at all elsewhere."""

import logging
from contextlib import contextmanager, suppress

from ..training import metrics


class Events:
    """Writes every update's metrics into event files in a folder as they come. Use as a context manager.

    folder  where `tensorboard --logdir` finds them; made at the first update. None: nothing is written

    What the folder has of the first update that is written and later ones is of training that was stopped or
    gone back on, and is not shown any more.

    What was written stays when the process is killed. An error in writing is told once in the log and ends
    the writing, never the training.
    """

    def __init__(self, folder):
        self._folder, self._writer = folder, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self._told_once():
            if self._writer:
                self._writer.close()

    def write(self, step, measured):
        """Add an update's metrics, {name: float}; `step` counts the run's updates from 1."""
        with self._told_once():
            if self._folder and not self._writer:
                self._open(step)
            if self._writer:
                for name, value in measured.items():
                    self._writer.add_scalar(tag(name), value, step)
                self._writer.flush()

    def _open(self, step):
        try:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds, and is not there for everybody
        except ImportError:
            self._folder = None
        else:
            self._writer = SummaryWriter(self._folder, purge_step=step)

    @contextmanager
    def _told_once(self):
        try:
            yield
        except Exception as error:
            logging.getLogger(__name__).warning(
                "D3PO: TensorBoard's events could not be written to %s (%s). Training goes on without them",
                self._folder,
                error,
            )
            if self._writer:
                with suppress(Exception):
                    self._writer.close()
            self._folder = self._writer = None


def tag(metric):
    """TensorBoard's name of a metric: what is before the slash is a section of its page."""
    whole, quarter = metrics.parted(metric)
    if quarter:
        return f"{whole} by noise quarter/{quarter}"
    if held_out := metrics.held_out(metric):
        return f"held-out/{held_out}"
    return f"train/{metric}"
