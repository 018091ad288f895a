"""One writer at a time for a run's folder, whatever process or machine it is in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..files import make_folder

LOCKS = ".locks"  # beside the folders, so that a folder can be deleted while its lock is held
PATIENCE = 60.0  # seconds that others may take to write


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder's lock. The folder need not be there.

    The system releases the lock when its process ends. Whoever holds it must not ask for it again. Raises
    OSError where somebody else holds it for long.
    """
    path = folder.parent / LOCKS / f"{folder.name}.lock"
    make_folder(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise OSError(
            f"{folder} is being written by another program, and has been for {PATIENCE:g} seconds. Nothing "
            "was written: wait until it is done, or close it, then press Run again to go on"
        ) from error
    try:
        yield
    finally:
        lock.release()
