"""The last blind comparison of a run's LoRA with another side, kept with the run."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import write_whole
from ..training.win_rate import WinRate
from .checkpoints import LATEST, state_path
from .files import named
from .locks import held

COMPARISON = "win-rate.json"


@dataclass(frozen=True)
class Compared:
    """rate has the LoRA as its second side; when it was compared, in seconds since 1970."""

    rate: WinRate
    when: float


def keep_compared(folder: Path, rate: WinRate, when: float) -> None:
    """Keep a comparison, unless the one before says the same, or there is no run yet.

    Raises OSError, naming the file, where it cannot be written.
    """
    with held(folder):
        before = comparison_of(folder)
        if state_path(folder, LATEST) is None or before and before.rate == rate:
            return
        text = json.dumps(asdict(rate) | {"when": when})
        with named(folder / COMPARISON):
            write_whole(folder / COMPARISON, text.encode())


def comparison_of(folder: Path) -> Compared | None:
    """The comparison that is kept; None where there is none, or it cannot be read."""
    try:
        said = json.loads((folder / COMPARISON).read_text("utf-8"))
        rate = WinRate(*(int(said[name]) for name in ("wins", "losses", "ties")))
        return Compared(rate, float(said["when"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
