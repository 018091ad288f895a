"""Taking back a run's last round."""

from pathlib import Path

from .checkpoints import FORMAT, STATE, current_record
from .files import write
from .locks import held
from .record import Record, Tensors
from .store import existing, load_run


def undo_round(root: Path, name: str) -> tuple[Tensors, Record, int]:
    """Put a run back to where its last round began: (its tensors, its record, the step that it was at).

    The state that is taken back stays among the checkpoints until later saves push it out. Raises ValueError
    where there is no round to take back, or no checkpoint of where it began any more.
    """
    folder = existing(root, name)
    with held(folder):
        there = current_record(folder)
        if there is None or not there["rounds"]:
            raise ValueError(f"run: {name!r} has no round that could be taken back")
        began = there["rounds"][-1]["start"]
        try:
            loaded = load_run(folder, str(began))
        except ValueError as error:
            raise ValueError(
                f"run: where the last round of {name!r} began is not kept any more, so it was left as it is. "
                f"A higher 'keep' in Save Run keeps more. {error}"
            ) from error
        assert loaded is not None
        tensors, record = loaded
        write(folder / STATE, FORMAT, tensors, record | {"saved": there["saved"] + 1})
    return tensors, record, there["step"]
