"""Several datasets as one: parts that were recorded on several machines, or judged by several people."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Any, NamedTuple

from ..files import make_folder, replace_whole
from .index import DatasetError, failure
from .sets import insert_row
from .store import Dataset

SAID = ("set_id", "annotator", "judgement", "time", "tool")  # what makes two judgements the same one


class Merged(NamedTuple):
    """How much a merged dataset holds."""

    sets: int
    judgements: int


def merged(parts: Sequence[Path], into: Path) -> Merged:
    """Make a dataset in the folder `into` of all that the datasets in the folders `parts` hold; these stay as
    they are.

    A set that several have is one set, with what any of them knows of it: its recording, images, prompt. A
    judgement that several have, in a copy, is one judgement. Judgements follow one another by their times, so
    that of an annotator's judgements of a set the newest counts, whichever part it is from; those of a part
    stay in their order, whatever its clock said. Files that are missing are missing there too.

    `into` appears when it is whole. Raises DatasetError where it is there already, a part is not, or two
    parts hold sets of one name with other numbers of candidates.
    """
    if into.exists():
        raise DatasetError(f"{into} is there already: choose a new name for the merged dataset")
    unfinished = into.with_name(f".{into.name}.merging")
    with ExitStack() as stack:
        opened = [stack.enter_context(Dataset(part, create=False)) for part in parts]
        stack.callback(shutil.rmtree, unfinished, ignore_errors=True)
        shutil.rmtree(unfinished, ignore_errors=True)  # of a merge that was stopped
        with Dataset(unfinished) as made:
            count = _filled(made, opened)
        try:
            unfinished.rename(into)
        except OSError as error:
            raise failure(error, into) from error
    return count


def _filled(made: Dataset, parts: Sequence[Dataset]) -> Merged:
    """Put all of the parts into an empty dataset."""
    for part in parts:
        part._index.together(lambda index: made._index.write(lambda own: _take(part, index, made, own)))
    rows = _in_order([part._index.read("SELECT * FROM judgements ORDER BY number") for part in parts])

    def judge(own: Connection) -> Merged:
        for number, row in enumerate(rows, 1):
            insert_row(own, "judgements", dict(row) | {"number": number})
        held = (
            own.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("sets", "judgements")
        )
        return Merged(*held)

    return made._index.write(judge)


def _take(part: Dataset, index: Connection, made: Dataset, own: Connection) -> None:
    """Add a part's sets with their files, or what a set that is there lacks."""
    for row in index.execute("SELECT * FROM conditioning"):
        _add(part, made, own, "conditioning", "hash", dict(row), row["file"])
    for row in index.execute("SELECT * FROM sets ORDER BY created, id"):
        there = own.execute("SELECT * FROM sets WHERE id = ?", [row["id"]]).fetchone()
        if there is None:
            insert_row(own, "sets", dict(row))
            _copy(part, made, row["trajectory"])
            continue
        if there["candidates"] != row["candidates"]:
            raise DatasetError(
                f"set {row['id']!r} has {row['candidates']} candidates in {part.folder}, and "
                f"{there['candidates']} in another part. Delete it in one of them"
            )
        lacking = {name: row[name] for name in row.keys() if there[name] in (None, "") and row[name]}
        if "trajectory" in lacking:
            lacking["trajectory_bytes"] = row["trajectory_bytes"]
            _copy(part, made, row["trajectory"])
        for name, value in lacking.items():
            own.execute(f"UPDATE sets SET {name} = ? WHERE id = ?", [value, row["id"]])
    for row in index.execute("SELECT * FROM images"):
        _add(part, made, own, "images", "set_id, candidate", dict(row), row["file"])


def _add(
    part: Dataset, made: Dataset, own: Connection, table: str, key: str, row: dict[str, Any], file: str
) -> None:
    """Add a row and its file, unless there is a row of that key."""
    names = key.split(", ")
    where = " AND ".join(f"{name} = :{name}" for name in names)
    if not own.execute(f"SELECT 1 FROM {table} WHERE {where}", row).fetchone():
        insert_row(own, table, row)
        _copy(part, made, file)


def _copy(part: Dataset, made: Dataset, file: str | None) -> None:
    """Copy a file, where there is one."""
    if file is None or not part._files.path(file).exists():
        return
    source, place = part._files.path(file), made._files.path(file)
    try:
        make_folder(place.parent)

        def save(path: Path) -> None:
            shutil.copyfile(source, path)

        replace_whole(place, save)
    except OSError as error:
        raise failure(error, place) from error


def _in_order(parts: Sequence[Sequence[Row]]) -> Iterator[Row]:
    """The judgements of all parts by their times, each once; each part's in its own order."""
    said, placed = set(), []
    for rows in parts:
        latest = ""
        for row in rows:
            latest = max(latest, row["time"])  # a clock that was set back changes no order
            placed.append((latest, row))
    for _, row in sorted(placed, key=lambda each: each[0]):
        what = tuple(row[name] for name in SAID)
        if what not in said:
            said.add(what)
            yield row
