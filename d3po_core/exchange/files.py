"""Where preference data is read from and written to: paths that stay inside a folder, and new folders."""

import contextlib
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from ..candidates.judgement import is_text
from .record import (
    IMAGE_SUFFIXES,
    ExchangeError,
    OnProblem,
    Record,
    open_image,
    png,
    refuse_pickle,
    report,
)

DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*([.:]|$)", re.IGNORECASE)


class Folder:
    """An imported folder. What is written in its files leads only to files inside it."""

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path).resolve()
        if not self.root.is_dir():
            raise ExchangeError(f"{path} is not a folder")

    def file(self, name: object, *within: str) -> Path:
        """The file of that name in the folder, or else in the first of the subfolders `within` that has it.

        Raises ExchangeError where the name leads outside, or to no file.
        """
        for path in (self._inside(name, sub) for sub in ("", *within)):
            if path.is_file():
                return path
        raise ExchangeError(f"{quoted(name)} is not there")

    def image(self, name: object, *within: str) -> Path:
        """As `file`, for an image: the file begins like one and is not absurdly large."""
        path = self.file(name, *within)
        try:
            open_image(path).close()
        except ValueError as error:
            raise ExchangeError(f"{quoted(name)} {error}") from error
        return path

    def names(self, sub: str = "", suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[str]:
        """Names of the files in a subfolder with one of the suffixes, sorted; none where it is missing."""
        folder = self._inside(sub or ".", "")
        if not folder.is_dir():
            return []
        return sorted(
            f"{sub}/{path.name}" if sub else path.name
            for path in folder.iterdir()
            if path.suffix.lower() in suffixes and not path.name.startswith(".")
        )

    def folders(self) -> list[str]:
        """Names of the subfolders, sorted, without hidden ones."""
        return sorted(
            path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")
        )

    def _inside(self, name: object, sub: str) -> Path:
        if not isinstance(name, str) or not name.strip():
            raise ExchangeError(f"{quoted(name)} is not the name of a file")
        if "://" in name:
            raise ExchangeError(
                f"{quoted(name)} is a web address: download the images and write their file names"
            )
        # Files made on Windows have backslashes; no other system needs one in a name.
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if PureWindowsPath(name).anchor or name.startswith("/"):
            raise ExchangeError(
                f"{quoted(name)} is an absolute path: write it relative to the imported folder"
            )
        if ".." in parts:
            raise ExchangeError(f"{quoted(name)} leads out of the imported folder")
        if "\0" in name or not is_text(name) or any(DEVICES.match(part) for part in parts):
            raise ExchangeError(f"{quoted(name)} is not a file name on every system")
        try:
            path = self.root.joinpath(sub, *parts).resolve()
            path.is_file()  # says whether the system can have such a name at all
        except (OSError, RuntimeError) as error:
            raise ExchangeError(f"{quoted(name)} cannot be followed ({error})") from error
        if not path.is_relative_to(self.root):
            raise ExchangeError(f"{quoted(name)} is a link that leads out of the imported folder")
        return path


def quoted(name: object) -> str:
    return f"{name!r:.120}"


@contextlib.contextmanager
def open_text(path: Path, name: str) -> Iterator[IO[str]]:
    """A UTF-8 text file, with or without BOM, after a look at how it begins. ExchangeError for any other."""
    try:
        refuse_pickle(path)
        file = open(path, encoding="utf-8-sig", newline="")
    except (OSError, ValueError) as error:
        raise ExchangeError(f"{name} {error}") from error
    with file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise ExchangeError(
                f"{name} is not UTF-8 text: save it again as UTF-8 (in Excel: CSV UTF-8)"
            ) from error


@dataclass(frozen=True)
class Summary:
    """What an export wrote. `left_out` counts the records without a strict pair, and those with a problem."""

    folder: Path
    records: int
    pairs: int
    images: int
    left_out: int


class Export:
    """A folder in the making. It takes its name when all is written. Where that fails, nothing is left."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.part = self.folder.with_name(self.folder.name + ".part")
        self.records = self.pairs = self.images = self.left_out = 0

    def __enter__(self) -> "Export":
        name = self.folder.name
        if not name or DEVICES.match(name) or re.search(r'[<>:"|?*\x00-\x1f]|[. ]$', name):
            raise ExchangeError(f"{quoted(name)} is not a folder name on every system: choose another")
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ExchangeError(f"{self.folder} is there already: choose a new or an empty folder")
        try:
            self.part.mkdir(parents=True)
        except FileExistsError as error:
            raise ExchangeError(f"{self.part} is left from an export that was cut off: remove it") from error
        except OSError as error:
            raise ExchangeError(f"{self.folder} cannot be made ({error.strerror}): choose another") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.part)
            return
        if not self.records:
            shutil.rmtree(self.part)
            raise ExchangeError(
                f"nothing was written to {self.folder}: no set has an image that is better than another"
            )
        if self.folder.exists():
            self.folder.rmdir()
        self.part.rename(self.folder)

    def judged(
        self,
        records: Iterable[Record],
        on_problem: OnProblem,
        check: Callable[[Record], None] = lambda record: None,
        whole: bool = False,
    ) -> Iterator[tuple[Record, dict[int, bytes]]]:
        """(record, {i: PNG bytes}) of each record with a strict pair: its judged images, with `whole` all.

        Nothing of a record is written before all its images could be read.
        """
        for number, record in enumerate(records, 1):
            try:
                pairs = record.pairs
                if pairs:
                    check(record)
                    needed = (
                        range(len(record.images)) if whole else sorted({i for pair in pairs for i in pair})
                    )
                    images = {i: png(record.pixels(i)) for i in needed}
            except ValueError as error:
                self.left_out += 1
                report(
                    error
                    if isinstance(error, ExchangeError)
                    else ExchangeError(f"{record.source or f'record {number}'}: {error}"),
                    on_problem,
                    error,
                )
                continue
            if not pairs:
                self.left_out += 1
                continue
            self.records += 1
            self.pairs += len(pairs)
            yield record, images

    def write(self, name: str, data: bytes) -> str:
        """Write a file of that name in the folder: the name."""
        path = self.part / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return name

    def image(self, name: str, data: bytes) -> str:
        """As `write`, and count it as an image."""
        self.images += 1
        return self.write(name, data)

    def open(self, name: str) -> IO[str]:
        """A new text file in the folder, to write to."""
        path = self.part / name
        path.parent.mkdir(exist_ok=True)
        return open(path, "w", encoding="utf-8", newline="")

    @property
    def summary(self) -> Summary:
        return Summary(self.folder, self.records, self.pairs, self.images, self.left_out)
