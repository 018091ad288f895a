"""Preference data from and for other trainers: recognise a format, read it into Records, write Records.

    for record in read(folder):
        record.prompt, record.pairs, record.load(0)
    WRITERS["csv"](records, new_folder)

Reading is lazy: images are looked at one by one, and decoded by `record.load`. A file that says nothing about
itself is recognised by its content, not by its name alone. Every error is an ExchangeError, a ValueError that
names the file.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from . import json_text
from .d3po import read_d3po, score_names, write_d3po
from .files import Folder, Summary
from .folders import has_endings, read_folders, sibling_folders, write_folders
from .hps import hps_names, is_hps, read_hps, write_hps
from .parquet import parquet_columns, parquet_names, read_pickapic, write_pickapic
from .record import PICKLE_SUFFIXES, ExchangeError, OnProblem, Record, readable, refuse_pickle_file
from .table import columns, read_table, table_names, write_table

__all__ = [
    "READERS",
    "WRITERS",
    "ExchangeError",
    "Record",
    "Summary",
    "read",
    "read_d3po",
    "read_folders",
    "read_hps",
    "read_pickapic",
    "read_table",
    "recognise",
    "write_d3po",
    "write_folders",
    "write_hps",
    "write_pickapic",
    "write_table",
]

READERS: dict[str, Callable[[str | Path, OnProblem], Iterator[Record]]] = {
    "d3po": read_d3po,
    "folders": read_folders,
    "table": read_table,
    "pickapic": read_pickapic,
    "hps": read_hps,
}
WRITERS: dict[str, Callable[..., Summary]] = {
    "d3po": write_d3po,
    "folders": write_folders,
    "csv": write_table,
    "jsonl": partial(write_table, kind="jsonl"),
    "pickapic": write_pickapic,
    "hps": write_hps,
    "hps train": partial(write_hps, split="train"),
}

LOOKED_FOR = """
- D3PO: a folder images or all_img with 00000.png, 00001.png, ... and a JSON file of scores, \
[[0, 1, ...], ...]
- HPS: a JSON list of objects with prompt, image_path and rank, or prompt, file_path and human_preference
- Pick-a-Pic: .parquet files with caption, jpg_0, jpg_1, label_0, label_1
- a table: .csv, .tsv or .jsonl with prompt, chosen, rejected, or caption, image_0, image_1, label_0
- pairs by name: folders w and l (or win/lose, chosen/rejected, good/bad) of equal image names, \
or 001_w.png, 001_l.png
Archives (.zip, .7z, .tar) must be unpacked first"""


def read(path: str | Path, on_problem: OnProblem = "raise") -> Iterator[Record]:
    """The Records of a file or folder in any of the formats. Raises ExchangeError at once where none fits.

    on_problem is "raise", which stops at the first bad record, or a function that is called with each
    ExchangeError. Its record is then left out, and so is a file of a folder that cannot be read from its
    beginning. One that is damaged later on stops the import either way. Reading looks at how each image
    begins. One that is cut off later on is found by record.load, which raises ExchangeError too.
    """
    if callable(on_problem):
        on_problem = _once(on_problem)
    return READERS[recognise(path, on_problem)](path, on_problem)


def _once(on_problem: Callable[[ExchangeError], object]) -> Callable[[ExchangeError], None]:
    """Tell each problem once, though a file is looked at for several formats."""
    reported: set[str] = set()

    def tell(problem: ExchangeError) -> None:
        if str(problem) not in reported:
            reported.add(str(problem))
            on_problem(problem)

    return tell


def recognise(path: str | Path, on_problem: OnProblem = "raise") -> str:
    """The name of the format, a key of READERS. Raises ExchangeError that says what was looked for."""
    path = Path(path)
    if not path.exists():
        raise ExchangeError(f"{path} is not there")
    name = _of_folder(path, on_problem) if path.is_dir() else _of_file(path)
    if name is None:
        raise ExchangeError(f"{path} is in no format known here. Looked for:{LOOKED_FOR}")
    return name


def _of_folder(path: Path, on_problem: OnProblem) -> str | None:
    folder = Folder(path)
    if score_names(folder, on_problem):
        return "d3po"
    if hps_names(folder, on_problem):
        return "hps"
    if any(readable(parquet_names(folder), lambda name: _of_parquet(folder.file(name), name), on_problem)):
        return "pickapic"
    if table_names(folder, on_problem):
        return "table"
    if sibling_folders(folder) or has_endings(folder):
        return "folders"
    for name in folder.names("", PICKLE_SUFFIXES):
        refuse_pickle_file(folder.root / name)
    return None


def _of_file(path: Path) -> str | None:
    refuse_pickle_file(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _of_parquet(path, path.name)
    if suffix in (".csv", ".tsv", ".jsonl"):
        return "table"
    if suffix == ".json":
        first = json_text.first(path, path.name)
        if isinstance(first, dict):
            return "hps" if is_hps(first) else "table"
        return "d3po"
    return None


def _of_parquet(path: Path, name: str) -> str | None:
    names = parquet_columns(path, name)
    if is_hps(names):
        return "hps"
    try:
        columns(names)
    except ValueError:
        return None
    return "pickapic"
