"""CSV, TSV, JSONL and JSON tables of image pairs, one pair a row, with paths relative to the table's folder.

Columns are known by the words in their names, whatever their order and case; image, img, jpg, path and file
may stand before or after (chosen, chosen_image, image_path_chosen):

    prompt     prompt, caption, text
    the pair   chosen/winner/win/preferred/better/good/w and rejected/loser/lose/dispreferred/worse/bad/l,
               or 0 and 1 with a label (image_0, jpg_1)
    label      label_0, label_1 as in Pick-a-Pic: 1 for the better, 0.5 both for a tie; prefer_0, prefer_1 as
               in invoke-training's metadata.jsonl. One of the two is enough
    has_label  false: nobody judged; the row is passed over
    judge      annotator, rater, user, user_id, worker_id, user_hash
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from . import json_text
from .files import Export, Folder, Summary, open_text
from .record import ExchangeError, OnProblem, Record, Source, made, prompt_or_none, readable, report

COLUMNS = {
    "prompt": ("prompt", "caption", "text"),
    "winner": ("chosen", "winner", "win", "preferred", "better", "good", "w"),
    "loser": ("rejected", "loser", "lose", "dispreferred", "worse", "bad", "l"),
    "first": ("0",),
    "second": ("1",),
    "label_0": ("label_0", "prefer_0"),
    "label_1": ("label_1", "prefer_1"),
    "has_label": ("has_label",),
    "annotator": ("annotator", "rater", "user", "user_id", "worker_id", "user_hash"),
}
IMAGES = {"winner", "loser", "first", "second"}
FILLERS = {"image", "img", "jpg", "jpeg", "png", "path", "file", "filename"}
SUFFIXES = {".csv", ".tsv", ".jsonl"}


def read_table(path: str | Path, on_problem: OnProblem = "raise") -> Iterator[Record]:
    """Records of two images each, in the order of the rows. A folder gives those of all tables in it."""
    path = Path(path)
    folder = Folder(path if path.is_dir() else path.parent)
    names = table_names(folder, on_problem) if path.is_dir() else [path.name]
    if not names:
        raise ExchangeError(f"{folder.root} has no table of pairs: {LOOKED_FOR}")
    for name in names:
        file = folder.file(name) if path.is_dir() else path
        yield from made(_entries(folder, file, name, on_problem), on_problem)


def write_table(
    records: Iterable[Record], folder: str | Path, on_problem: OnProblem = "raise", kind: str = "csv"
) -> Summary:
    """pairs.csv or pairs.jsonl with prompt, chosen, rejected and annotator, a row for every strict pair."""
    if kind not in ("csv", "jsonl"):
        raise ValueError(f"kind is csv or jsonl, not {kind!r}")
    with Export(folder) as out, out.open(f"pairs.{kind}") as file:
        header = ("prompt", "chosen", "rejected", "annotator")
        if kind == "csv":
            csv.writer(file).writerow(header)
        for record, images in out.judged(records, on_problem):
            names = {i: out.image(f"images/{out.images:06}.png", data) for i, data in images.items()}
            for winner, loser in record.pairs:
                row = (record.prompt, names[winner], names[loser], record.annotator)
                if kind == "csv":
                    csv.writer(file).writerow(row)
                else:
                    file.write(json.dumps(dict(zip(header, row)), ensure_ascii=False) + "\n")
    return out.summary


LOOKED_FOR = (
    "a .csv, .tsv or .jsonl file with columns such as prompt, chosen, rejected, "
    "or caption, image_0, image_1, label_0"
)


def table_names(folder: Folder, on_problem: OnProblem = "raise") -> list[str]:
    """The tables in a folder that have the columns of pairs."""
    return [
        *readable(folder.names("", SUFFIXES), lambda name: _has_columns(folder.file(name), name), on_problem)
    ]


def columns(names: Iterable[str]) -> dict[str, str]:
    """{role: column} of a table's column names. ValueError where they do not make pairs."""
    roles: dict[str, str] = {}
    for name in names:
        words = [
            word for word in str(name).strip().lower().replace(" ", "_").replace("-", "_").split("_") if word
        ]
        plain = "_".join(word for word in words if word not in FILLERS)
        for role, known in COLUMNS.items():
            if (plain if role in IMAGES else "_".join(words)) in known:
                roles.setdefault(role, name)
    if "winner" in roles and "loser" in roles:
        roles["first"], roles["second"] = roles["winner"], roles["loser"]
    elif not {"first", "second"} <= roles.keys() or not {"label_0", "label_1"} & roles.keys():
        raise ValueError(
            f"the columns {', '.join(map(str, names))!r:.200} do not say which image of a pair won: "
            "name them chosen and rejected, or image_0, image_1 and label_0"
        )
    return roles


def judgement(label_0: object, label_1: object) -> dict[str, Any]:
    """Of two images by their labels, as Record.of reads it; either label may be None."""
    labels: list[Any] = [_number(label) for label in (label_0, label_1)]
    if labels == [None, None]:
        raise ValueError("label_0 and label_1 are empty: put 1 for the better image, 0.5 for a tie")
    first, second = (1 - labels[1 - i] if label is None else label for i, label in enumerate(labels))
    if not (0 <= first <= 1 and 0 <= second <= 1):
        raise ValueError(f"the labels {first:g} and {second:g} are not between 0 and 1")
    return {"ties": [[0, 1]]} if first == second else {"pairs": [[0, 1] if first > second else [1, 0]]}


def is_no(value: object) -> bool:
    """Whether a has_label says that nobody judged."""
    return value is not None and _number(value) == 0


def _number(value: Any) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = {"true": 1, "false": 0}.get(value.strip().lower(), value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"the label {value!r:.60} is not a number")
    return number


def _has_columns(path: Path, name: str) -> bool:
    with open_text(path, name) as file:
        try:
            if path.suffix.lower() == ".jsonl":
                columns(json.loads(next(line for line in file if line.strip())))
            else:
                columns(next(_csv(file, path)))
        except UnicodeDecodeError:
            raise
        except (ValueError, TypeError, StopIteration, RecursionError, csv.Error):
            return False
    return True


def _entries(
    folder: Folder, path: Path, name: str, on_problem: OnProblem
) -> Iterator[tuple[str, Callable[[], Record | None]]]:
    for line, row in _rows(path, name, on_problem):
        place = f"{name}, line {line}"
        yield place, partial(_record, folder, row, place)


def _rows(path: Path, name: str, on_problem: OnProblem) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """(line, function that gives the row as a mapping)"""
    suffix = path.suffix.lower()
    if suffix == ".json":
        for line, item in json_text.items(path, name):
            yield line, partial(_object, item)
    elif suffix == ".jsonl":
        with open_text(path, name) as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, partial(_parsed, text)
    else:
        with open_text(path, name) as file:
            rows = _csv(file, path)
            try:
                header: list[str] = next(rows, [])
                columns(header)
            except (ValueError, csv.Error) as error:
                raise ExchangeError(f"{name}, line 1: {error}") from error
            while True:
                try:
                    row = next(rows, None)
                except csv.Error as error:
                    report(ExchangeError(f"{name}, line {rows.line_num}: {error}"), on_problem, error)
                    continue
                if row is None:
                    return
                if row:
                    yield rows.line_num, partial(_named, header, row)


def _csv(file: IO[str], path: Path) -> Any:
    header = file.readline()
    file.seek(0)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
    return csv.reader(file, delimiter=delimiter, strict=True)


def _named(header: list[str], row: list[str]) -> dict[str, Any]:
    if len(row) != len(header):
        raise ValueError(f"{len(row)} fields where the first line names {len(header)}")
    return dict(zip(header, row))


def _parsed(text: str) -> dict[str, Any]:
    try:
        return _object(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} (column {error.colno}); each line must be a JSON object") from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _object(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"expected an object with columns, got {item!r:.60}")
    return item


def _record(folder: Folder, read: Callable[[], dict[str, Any]], place: str) -> Record | None:
    row = read()
    return pair_record({role: row[name] for role, name in columns(row).items()}, folder.image, place)


def pair_record(value: Mapping[str, Any], image: Callable[[Any], Source], place: str) -> Record | None:
    """A Record of a row as {role: value}; None where nobody judged. `image` turns a cell into an image."""
    if is_no(value.get("has_label")):
        return None
    labels = value.get("label_0"), value.get("label_1")
    if "winner" in value and not any(label not in (None, "") for label in labels):
        labels = 1, 0
    annotator = value.get("annotator")
    return Record.of(
        prompt_or_none(value.get("prompt")),
        (image(value["first"]), image(value["second"])),
        judgement(*labels),
        None if annotator in (None, "") else str(annotator),
        place,
    )
