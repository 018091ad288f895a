"""Human Preference Dataset v2 (github.com/tgxs002/HPSv2, arXiv 2306.09341): ranked images of one prompt.

    test.json    [{"prompt": "...", "image_path": ["a.jpg", ...], "rank": [2, 1, ...],
                   "raw_annotations": [{"rank": [1, 2, ...], "user_hash": "..."}, ...]}, ...]
    train.json   [{"prompt": "...", "file_path": ["a.jpg", "b.jpg"], "human_preference": [1, 0]}, ...]

rank[i] is the place of image i, the lowest the best, averaged over the judges. raw_annotations has each
judge's own places. human_preference has 1 for the preferred image. The names are those in test/ and train/.
Other folders are tried too: the JSON file's own, and images/. Parquet files with the same columns are read
where pyarrow is there.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from . import json_text
from .files import Export, Folder, Summary
from .parquet import image_source, parquet_columns, parquet_names, parquet_rows
from .record import ExchangeError, OnProblem, Record, made, prompt_or_none, readable, require_few, weak_order

PROMPT = ("prompt", "caption")
IMAGES = ("image_path", "file_path", "images", "files")
JUDGED = ("rank", "human_preference", "raw_annotations")


def read_hps(path: str | Path, on_problem: OnProblem = "raise", each_judge: bool = False) -> Iterator[Record]:
    """Records of two or more images. With `each_judge`, a record for each of raw_annotations where there are
    any, instead of one with their average. A folder gives those of all files in it that have the format."""
    path = Path(path)
    folder = Folder(path if path.is_dir() else path.parent)
    files = (
        [(name, folder.file(name)) for name in hps_names(folder, on_problem)]
        if path.is_dir()
        else [(path.name, path)]
    )
    if not files:
        raise ExchangeError(f"{folder.root} has no ranked images: {LOOKED_FOR}")
    for name, file in files:
        yield from made(_entries(folder, file, name, each_judge), on_problem)


def write_hps(
    records: Iterable[Record], folder: str | Path, on_problem: OnProblem = "raise", split: str = "test"
) -> Summary:
    """test.json with the ranks, or train.json with every strict pair; the images in a folder of that name.

    Of a set that is not ranked throughout, the judged images are written. Where their picks are no ranking,
    each pair is written by itself.
    """
    if split not in ("test", "train"):
        raise ValueError(f"split is test or train, not {split!r}")
    with Export(folder) as out, out.open(f"{split}.json") as file, json_text.writing(file) as append:
        for record, images in out.judged(records, on_problem):
            names = {
                i: Path(out.image(f"{split}/{out.images:06}.png", data)).name for i, data in images.items()
            }
            levels = weak_order(record.pairs) if split == "test" else None
            for levels in [levels] if levels else [[[w], [l]] for w, l in record.pairs]:
                places = sorted((i, place) for place, level in enumerate(levels, 1) for i in level)
                append(_entry(record, [names[i] for i, _ in places], [place for _, place in places], split))
    return out.summary


LOOKED_FOR = (
    'a JSON list of objects with "prompt", "image_path" and "rank", or "prompt", "file_path" and '
    '"human_preference"'
)


def hps_names(folder: Folder, on_problem: OnProblem = "raise") -> list[str]:
    """The files in a folder that have the format."""
    lists, tables = folder.names("", {".json"}), parquet_names(folder)
    return [
        *readable(lists, lambda name: is_hps(_first(folder, name)), on_problem),
        *readable(tables, lambda name: is_hps(parquet_columns(folder.file(name), name)), on_problem),
    ]


def is_hps(row: object) -> bool:
    """Whether a row, or the names of columns, has what the format needs."""
    return (
        isinstance(row, (dict, list))
        and any(key in IMAGES for key in row)
        and any(key in JUDGED for key in row)
    )


def _first(folder: Folder, name: str) -> Any:
    return json_text.first(folder.file(name), name)


def _entry(record: Record, names: list[str], ranks: list[int], split: str) -> dict[str, Any]:
    prompt = record.prompt or ""
    if split == "train":
        return {"prompt": prompt, "file_path": names, "human_preference": [int(rank == 1) for rank in ranks]}
    judges = [{"rank": ranks, "user_hash": record.annotator}] if record.annotator else []
    return {"prompt": prompt, "image_path": names, "rank": ranks, "raw_annotations": judges}


def _entries(
    folder: Folder, path: Path, name: str, each_judge: bool
) -> Iterator[tuple[str, Callable[[], Record]]]:
    parquet = path.suffix.lower() == ".parquet"
    rows = parquet_rows(path, name, parquet_columns(path, name)) if parquet else json_text.items(path, name)
    for number, (line, row) in enumerate(rows, 1):
        place = f"{name}, row {number}" if parquet else f"{name}, line {line}, entry {number}"
        judges = row.get("raw_annotations") if isinstance(row, dict) else None
        if not isinstance(judges, list) or not judges:
            yield place, partial(_record, folder, row, Path(name).stem, place)
        elif each_judge or not any(key in row for key in ("rank", "human_preference")):
            for judge in judges:
                yield place, partial(_judged, folder, row, judge, Path(name).stem, place)
        else:
            yield (
                place,
                partial(
                    _record,
                    folder,
                    row,
                    Path(name).stem,
                    place,
                    _name(judges[0]) if len(judges) == 1 else None,
                ),
            )


def _judged(folder: Folder, row: dict[str, Any], judge: Any, stem: str, place: str) -> Record:
    if not isinstance(judge, dict) or "rank" not in judge:
        raise ValueError(f"raw_annotations has {judge!r:.60}, not an object with rank and user_hash")
    return _record(folder, {**row, "rank": judge["rank"]}, stem, place, _name(judge))


def _name(judge: Any) -> str | None:
    name = judge.get("user_hash") if isinstance(judge, dict) else None
    return None if name in (None, "") else str(name)


def _record(folder: Folder, row: Any, stem: str, place: str, annotator: str | None = None) -> Record:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with prompt, image_path and rank, got {row!r:.60}")
    images = next((row[key] for key in IMAGES if row.get(key)), None)
    if not isinstance(images, list):
        raise ValueError("there is no list of images: image_path or file_path")
    require_few(len(images))
    key = next((key for key in JUDGED[:2] if row.get(key) is not None), None)
    if key is None:
        raise ValueError("nothing says which image is better: rank or human_preference")
    numbers = row[key]
    if not isinstance(numbers, list) or len(numbers) != len(images) or not all(map(_is_number, numbers)):
        raise ValueError(f"{key} is not a list of {len(images)} numbers, one for each image")
    scores = (
        numbers if key == "human_preference" else [-number for number in numbers]
    )  # the lowest rank is the best
    prompt = next((row[key] for key in PROMPT if key in row), None)
    return Record.of(
        prompt_or_none(prompt),
        [image_source(folder, image, stem, "images") for image in images],
        {"scores": scores},
        annotator,
        place,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
