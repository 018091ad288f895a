"""A run's metrics for TensorBoard, where the package tensorboard is installed; nothing at all elsewhere."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

from ..training import metrics


class Events:
    """Writes every update's metrics into event files in a folder as they come. Use as a context manager.

    folder  where `tensorboard --logdir` finds them; made at the first update. None: nothing is written

    Events that the folder has from the first written update on are of training that was stopped or gone back
    on. They are no longer shown.

    What was written stays when the process is killed. An error in writing is logged once and ends the
    writing, never the training.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *_: object) -> None:
        with self._told_once():
            if self._writer:
                self._writer.close()

    def write(self, step: int, measured: Mapping[str, float]) -> None:
        """Add an update's metrics, {name: float}. `step` counts the run's updates from 1."""
        with self._told_once():
            if self._folder and not self._writer:
                self._open(step)
            if self._writer:
                for name, value in measured.items():
                    self._writer.add_scalar(tag(name), value, step)
                self._writer.flush()

    def _open(self, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds, and not everybody has it
        except ImportError:
            self._folder = None
        else:
            self._writer = SummaryWriter(self._folder, purge_step=step)

    @contextmanager
    def _told_once(self) -> Iterator[None]:
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


def tag(metric: str) -> str:
    """TensorBoard's name of a metric. The part before the slash is a section of its page."""
    whole, quarter = metrics.parted(metric)
    if quarter:
        return f"{whole} by noise quarter/{quarter}"
    if held_out := metrics.held_out(metric):
        return f"held-out/{held_out}"
    return f"train/{metric}"
