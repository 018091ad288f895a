"""What pictures become, kept with a run: a few by the base model and, of the same noise, by the run's LoRA.

They are PNG files in a run's folder, named by their content, and the record of a state says which are its
own. A file stays while a state that the run keeps has it.
"""

import hashlib
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..files import make_folder, write_whole
from .files import leftovers, named
from .record import LookFiles, Record

PICTURES = "pictures"


@dataclass(frozen=True)
class Look:
    """Pictures as the bytes of PNG files: by the base model, as many by the LoRA, and each pair's prompt, ""
    where it is not known."""

    before: tuple[bytes, ...]
    now: tuple[bytes, ...]
    prompts: tuple[str, ...]


def write_look(folder: Path, look: Look) -> LookFiles:
    """Write a look's pictures into a run's folder, and return what the record is to say of them.

    The caller holds the folder's lock. Raises OSError, naming the file, where one cannot be written.
    """

    def written(pictures: Iterable[bytes]) -> list[str]:
        return [_write(folder / PICTURES, picture) for picture in pictures]

    return {"before": written(look.before), "now": written(look.now), "prompts": list(look.prompts)}


def _write(folder: Path, picture: bytes) -> str:
    path = folder / f"{hashlib.sha256(picture).hexdigest()[:16]}.png"
    if not path.exists():
        with named(path):
            make_folder(folder)
            write_whole(path, picture)
    return path.name


def look_of(folder: Path, record: Record) -> LookFiles | None:
    """The names of a state's pictures; None where it has none, or some are gone."""
    look = record.get("look")
    if not look:
        return None
    names = [*look["before"], *look["now"]]
    if not all(_is_ours(name) and (folder / PICTURES / name).exists() for name in names):
        return None
    return look


def read_look(folder: Path, record: Record) -> Look | None:
    """A state's look; None where there is none, or some of its pictures are gone."""
    look = look_of(folder, record)
    if look is None:
        return None
    try:
        before, now = (
            tuple((folder / PICTURES / name).read_bytes() for name in names)
            for names in (look["before"], look["now"])
        )
    except OSError:  # another process has just saved to the run
        return None
    return Look(before, now, tuple(look["prompts"]))


def picture_files(folder: Path) -> list[Path]:
    """The files that are named as pictures of a look are."""
    return sorted(path for path in (folder / PICTURES).glob("*.png") if _is_ours(path.name))


def prune_looks(folder: Path, records: Iterable[Record]) -> None:
    """Remove the pictures that none of these records has, and what is left of a writer that was killed."""
    looks = [look for record in records if (look := record.get("look"))]
    kept = {name for look in looks for name in (*look["before"], *look["now"])}
    unwanted = [path for path in picture_files(folder) if path.name not in kept]
    for path in (*unwanted, *leftovers(folder / PICTURES)):
        with suppress(OSError):  # somebody has it open: the next save tries again
            path.unlink(missing_ok=True)


def _is_ours(name: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{16}\.png", name) is not None
