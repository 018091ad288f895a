"""The payload of a dataset: files that are whole, of the size the index says, and inside its folder."""

import os
import re
import secrets
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ..files import make_folder, replace_whole
from .index import NONSENSE, PAYLOAD, DatasetError, failure

NAMED = re.compile(rf"({'|'.join(PAYLOAD)})/[0-9a-f]{{2}}/[0-9a-f-]{{1,80}}\.(safetensors|png)")
UNFINISHED = re.compile(
    rf"({'|'.join(PAYLOAD)})/[0-9a-f]{{2}}/(\.tmp\w*|[0-9a-f-]{{1,80}}\.\w+\.\w+\.partial)"
)
DAMAGE = (*NONSENSE, OSError, SyntaxError, struct.error, Image.DecompressionBombError)

Pixels: TypeAlias = Tensor | NDArray[Any]
Stored: TypeAlias = tuple[str, int]  # a file and how many bytes it has


class Files:
    """A folder whose files are named by "/"-separated paths relative to it, as the index does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = Path(os.path.realpath(folder))

    def path(self, file: str) -> Path:
        """Where a file lies. Raises DatasetError for a name that is not of our making, or a place outside."""
        if not (NAMED.fullmatch(str(file)) or UNFINISHED.fullmatch(str(file))):
            raise DatasetError(
                f"the index of {self.folder} names a file {file!r}, which is none of this pack's. "
                "Another program altered it: put a copy of the index back"
            )
        return self.require_inside(self.folder / file)

    def require_inside(self, path: Path) -> Path:
        """The path. Raises DatasetError where links lead out of the folder."""
        if not Path(os.path.realpath(path)).is_relative_to(self._root):
            raise DatasetError(
                f"{path} leads out of the dataset's folder by a link. Put the file itself in its place"
            )
        return path

    def write(self, kind: str, name: str, ending: str, save: Callable[[Path], None]) -> Stored:
        """save(path) a new file, named after the hash `name`. It is whole and on disk when this returns."""
        # never the name of another file, so that who adds a set and who deletes one do not meet
        file = f"{kind}/{name[:2]}/{name[:32]}-{secrets.token_hex(4)}{ending}"
        path = self.path(file)
        try:
            make_folder(path.parent)
            replace_whole(path, save)
            return file, path.stat().st_size
        except (OSError, SafetensorError) as error:
            raise failure(error, path) from error

    @contextmanager
    def reading(self, set_id: str, file: str, size: int) -> Iterator[Path]:
        """The path of a set's file to read, and DatasetError for any damage that comes to light."""
        path = self.path(file)
        try:
            if path.stat().st_size != size:
                raise ValueError(f"it has {path.stat().st_size} bytes of {size}")
            yield path
        except DAMAGE as error:
            raise DatasetError(
                f"set {set_id!r}: {path} is missing or damaged ({error}). The other sets are not "
                "affected: put a copy of the file back, or delete the file, and what needs it is left out"
            ) from error

    def remove(self, files: Iterable[str]) -> None:
        """Remove files, as far as that can be done now: a file that stays is left over, and means nothing."""
        for file in files:
            with suppress(OSError, DatasetError):
                self.path(file).unlink(missing_ok=True)

    def stale(self, older_than: float) -> set[str]:
        """The files, ours and unfinished ones by their names, that are older than so many seconds."""
        files: set[str] = set()
        horizon = time.time() - older_than
        for path in (path for kind in PAYLOAD for path in (self.folder / kind).glob("??/*")):
            self.require_inside(path.parent)
            file = path.relative_to(self.folder).as_posix()
            with suppress(FileNotFoundError):  # a writer at work has just given it its name
                if (NAMED.fullmatch(file) or UNFINISHED.fullmatch(file)) and path.lstat().st_mtime < horizon:
                    files.add(file)
        return files


def save_png(image: Pixels, path: Path) -> None:
    """Write an image [H, W, 3], 0...1 or uint8, with 8 bits a channel."""
    pixels = torch.as_tensor(image).cpu()
    if pixels.dtype != torch.uint8:
        pixels = (pixels.float().nan_to_num().clamp(0, 1) * 255).round().byte()
    Image.fromarray(pixels.numpy()).save(path, "PNG", compress_level=4)


def load_png(path: Path) -> Tensor:
    """The image that `save_png` wrote, a tensor [H, W, 3] of float32."""
    with Image.open(path, formats=["PNG"]) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).float() / 255
