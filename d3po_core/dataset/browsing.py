"""A preference dataset looked through by a person, from its index alone: what there is, and pages of sets."""

from itertools import groupby
from sqlite3 import Connection, Row
from typing import Any, NamedTuple

from .files import NAMED
from .index import each_readable
from .rows import HistoryEntry, SetRow, history_entry, set_row
from .sets import JUDGED, ROWS

HAS_IMAGES = "EXISTS (SELECT 1 FROM images WHERE set_id = id)"
# what is to be judged must be seen
FILTERS = {"all": "TRUE", "unjudged": f"{HAS_IMAGES} AND NOT {JUDGED}", "judged": JUDGED}
ORDERS = {"oldest": "created, id", "newest": "created DESC, id DESC"}


class Shown(NamedTuple):
    """A set to look at.

    images  the files of its candidates, relative to the dataset's folder; () unless there is one for each
    said    of each annotator what counts, oldest first
    """

    row: SetRow
    images: tuple[str, ...]
    said: tuple[HistoryEntry, ...]


def overview(index: Connection, annotator: str) -> dict[str, Any]:
    """As Dataset.overview says, over a connection to the index."""
    sets, newest = index.execute("SELECT count(*), max(created) FROM sets").fetchone()
    annotators = index.execute(
        "SELECT annotator, count(*) AS judgements FROM counting GROUP BY annotator ORDER BY annotator"
    )
    return {
        "sets": sets,
        "unjudged": count(index, annotator, "unjudged", ""),
        "annotators": {str(row["annotator"]): row["judgements"] for row in annotators},
        "newest": newest and str(newest),
    }


def count(index: Connection, annotator: str, which: str, search: str) -> int:
    """As Dataset.count says, over a connection to the index."""
    where, values = _wanted(annotator, which, search)
    return int(index.execute(f"SELECT count(*) FROM sets WHERE {where}", values).fetchone()[0])


def browse(
    index: Connection, annotator: str, which: str, search: str, order: str, limit: int, offset: int
) -> list[Shown]:
    """As Dataset.browse says, over a connection to the index."""
    where, values = _wanted(annotator, which, search)
    query = f"{ROWS} WHERE {where} ORDER BY {ORDERS[order]} LIMIT :limit OFFSET :offset"
    values |= {"limit": limit, "offset": offset}
    rows = [*each_readable(index.execute(query, values), set_row)]
    images = _by_set(index, "SELECT * FROM images WHERE set_id IN ({}) ORDER BY set_id, candidate", rows)
    said = _by_set(
        index,
        "SELECT judgements.*, candidates FROM counting AS judgements JOIN sets ON sets.id = set_id "
        "WHERE set_id IN ({}) ORDER BY set_id, number",
        rows,
    )
    return [
        Shown(
            row, _files(images.get(row.id, []), row), (*each_readable(said.get(row.id, []), history_entry),)
        )
        for row in rows
    ]


def _wanted(annotator: str, which: str, search: str) -> tuple[str, dict[str, Any]]:
    """A condition on sets, and its values."""
    return f"{FILTERS[which]} AND (:search = '' OR prompt LIKE :like ESCAPE '\\')", {
        "annotator": annotator,
        "search": search,
        "like": f"%{_literally(search)}%",
    }


def _literally(text: str) -> str:
    """A pattern of LIKE, escaped by a backslash, for just this text."""
    for sign in "\\%_":
        text = text.replace(sign, f"\\{sign}")
    return text


def _by_set(index: Connection, query: str, sets: list[SetRow]) -> dict[str, list[Row]]:
    """The rows of a query about some sets, which come in the order of their set_id."""
    rows = index.execute(query.format(", ".join("?" * len(sets))), [row.id for row in sets]).fetchall()
    return {name: list(own) for name, own in groupby(rows, key=lambda row: row["set_id"])}


def _files(images: list[Row], row: SetRow) -> tuple[str, ...]:
    """A set's images; () where the index names others than there should be, or what is no file of ours."""
    numbers, files = [image["candidate"] for image in images], [str(image["file"]) for image in images]
    is_whole = numbers == [*range(row.candidates)] and all(map(NAMED.fullmatch, files))
    return tuple(files) if is_whole else ()
