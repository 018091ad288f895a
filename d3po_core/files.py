"""Files that are whole or not there, also after a power cut."""

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def replace_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Call write(temporary path), then move the temporary file to `path` in one step."""
    # a random name: two machines that share a folder may have processes of the same number
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        os.chmod(temporary, mode)  # safetensors makes files that only their owner can read
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Put a file with this content there in one step."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    replace_whole(path, write)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk. Windows has no such call: there the system does it in its own
    time."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network shares cannot sync a folder
            raise
    finally:
        os.close(descriptor)
