"""Parquet as Pick-a-Pic has it (huggingface.co/datasets/yuvalkirstain/pickapic_v2, arXiv 2305.01569).

One row a pair: caption; jpg_0, jpg_1 with the bytes of the images; label_0, label_1 with 1 for the better
and 0.5 both for a tie; has_label, false where nobody judged; user_id; and names and addresses that only their
website needs. The columns are recognised as in table.py. An image may also be a mapping of bytes and path, as
the datasets library writes it.

pyarrow reads and writes the files. It is imported where it is needed: the rest of the pack does without.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .files import Export, Folder, Summary
from .record import (
    ExchangeError,
    OnProblem,
    Record,
    Source,
    check_image_bytes,
    made,
    readable,
    refuse_pickle_file,
)
from .table import columns, pair_record

ROWS = 16  # held at once; a row has two images


def read_pickapic(path: str | Path, on_problem: OnProblem = "raise") -> Iterator[Record]:
    """Records of two images each, in the order of the rows. A folder gives those of all its parquet files."""
    files = {name: (folder, file) for folder, file, name in parquet_files(path)}
    # the one file that was asked for must be right
    for name in readable(
        files, lambda name: _roles(files[name][1], name), on_problem if Path(path).is_dir() else "raise"
    ):
        folder, file = files[name]
        yield from made(_entries(folder, file, name, _roles(file, name)), on_problem)


def _roles(file: Path, name: str) -> dict[str, str]:
    try:
        return columns(parquet_columns(file, name))
    except ExchangeError:
        raise
    except ValueError as error:
        raise ExchangeError(f"{name}: {error}") from error


def write_pickapic(records: Iterable[Record], folder: str | Path, on_problem: OnProblem = "raise") -> Summary:
    """data/train-00000-of-00001.parquet with Pick-a-Pic's columns, a row for every strict pair, images as
    PNG."""
    arrow, parquet = _pyarrow()
    schema = arrow.schema([(name, getattr(arrow, kind)()) for name, kind in SCHEMA.items()])
    with Export(folder) as out:
        out.write("data/train-00000-of-00001.parquet", b"")
        with parquet.ParquetWriter(out.part / "data/train-00000-of-00001.parquet", schema) as table:
            for rows in _some(_rows(out, records, on_problem)):
                table.write_table(arrow.Table.from_pylist(rows, schema))
    return out.summary


SCHEMA = {
    "are_different": "bool_",
    "best_image_uid": "string",
    "caption": "string",
    "has_label": "bool_",
    "image_0_uid": "string",
    "image_1_uid": "string",
    "jpg_0": "binary",
    "jpg_1": "binary",
    "label_0": "float64",
    "label_1": "float64",
    "ranking_id": "int64",
    "annotator": "string",
}


def _rows(out: Export, records: Iterable[Record], on_problem: OnProblem) -> Iterator[dict[str, Any]]:
    for record, images in out.judged(records, on_problem):
        for winner, loser in record.pairs:
            # In the order of the candidates: in a set where the first always wins, that may be learned
            # instead.
            pair = sorted((winner, loser))
            uids = [f"{out.records:06}-{i}" for i in pair]
            out.images += 2
            yield {
                "are_different": True,
                "best_image_uid": uids[pair.index(winner)],
                "caption": record.prompt or "",
                "has_label": True,
                "image_0_uid": uids[0],
                "image_1_uid": uids[1],
                "jpg_0": images[pair[0]],
                "jpg_1": images[pair[1]],
                "label_0": float(pair[0] == winner),
                "label_1": float(pair[1] == winner),
                "ranking_id": out.records,
                "annotator": record.annotator,
            }


def _some(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def parquet_files(path: str | Path) -> list[tuple[Folder, Path, str]]:
    """(folder, file, name) of a parquet file, or of those in a folder and its folder data."""
    path = Path(path)
    folder = Folder(path if path.is_dir() else path.parent)
    if not path.is_dir():
        refuse_pickle_file(path)
        return [(folder, path, path.name)]
    names = parquet_names(folder)
    if not names:
        raise ExchangeError(f"{folder.root} has no .parquet file, nor has its folder data")
    return [(folder, folder.file(name), name) for name in names]


def parquet_names(folder: Folder) -> list[str]:
    return [name for sub in ("", "data") for name in folder.names(sub, {".parquet"})]


def parquet_columns(file: Path, name: str) -> list[str]:
    with _opened(file, name) as table:
        return list(table.schema_arrow.names)


def parquet_rows(file: Path, name: str, wanted: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row as a mapping), a few rows at a time."""
    number = 0
    with _opened(file, name) as table:
        batches = table.iter_batches(ROWS, columns=list(wanted))
        while True:
            try:
                rows = next(batches).to_pylist()
            except StopIteration:
                return
            except (OSError, ValueError, NotImplementedError) as error:
                raise ExchangeError(f"{name}, after row {number}: damaged or cut off ({error})") from error
            for number, row in enumerate(rows, number + 1):
                yield number, row


def image_source(folder: Folder, value: object, *within: str) -> Source:
    """An image of a Record out of a cell: bytes, a name, or a mapping with one of them."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return folder.image(value, *within) if isinstance(value, str) else check_image_bytes(value)


def _entries(
    folder: Folder, file: Path, name: str, roles: Mapping[str, str]
) -> Iterator[tuple[str, Callable[[], Record | None]]]:
    for number, row in parquet_rows(file, name, roles.values()):
        place = f"{name}, row {number}"
        yield (
            place,
            partial(
                pair_record,
                {role: row[column] for role, column in roles.items()},
                partial(image_source, folder),
                place,
            ),
        )


def _opened(file: Path, name: str) -> Any:
    _, parquet = _pyarrow()
    try:
        return parquet.ParquetFile(file)
    except (OSError, ValueError, NotImplementedError) as error:
        raise ExchangeError(f"{name} is not a parquet file, or is cut off ({error})") from error


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ExchangeError(
            "parquet files need pyarrow: install it with pip install pyarrow into the Python that "
            "runs ComfyUI, or use another format"
        ) from error
    # Older ones can run code out of a file (CVE-2023-47248).
    if int(pyarrow.__version__.split(".")[0]) < 15:
        raise ExchangeError(
            f"pyarrow {pyarrow.__version__} is too old to open files safely: pip install --upgrade pyarrow"
        )
    return pyarrow, pyarrow.parquet
