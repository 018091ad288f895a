"""What tests of preference datasets put into them, and how they look at them."""

import contextlib
import sqlite3
from datetime import datetime, timezone

import torch

from d3po_core.candidates.judgement import Judgement
from d3po_core.dataset.sets import share
from d3po_core.dataset.store import Dataset

WINNER_0, WINNER_1, TIE = {"pairs": [[0, 1]]}, {"pairs": [[1, 0]]}, {"ties": [[0, 1]]}
TREE = {
    "positive": [[torch.arange(6.0).view(2, 3), {"area": (1, 2), "strength": 0.5, "mask": None}]],
    "negative": [],
    "cfg": 7.5,
    "seed": 2**64 - 1,
    "name": "ein Bär",
    "on": True,
}
NOON = datetime(2025, 1, 31, 12, tzinfo=timezone.utc)


def judge(dataset, set_id, said, *given, **named):
    """Dataset.judge, of a mapping or None."""
    row = dataset.find(set_id)
    judgement = None if said is None else Judgement.parse(said, row.candidates if row else 2)
    return dataset.judge(set_id, judgement, *given, **named)


def taste(folder, trajectory):
    """A dataset of a recorded set, "set 7", which is judged, and of one of images alone, "other"."""
    with Dataset(folder) as dataset:
        dataset.add_set(
            "set 7", trajectory=trajectory, images=torch.rand(3, 8, 8, 3), conditioning={"c": torch.rand(9)}
        )
        dataset.add_set("other", images=torch.rand(2, 8, 8, 3), conditioning={"c": torch.rand(9)})
        judge(dataset, "set 7", WINNER_0, "anna")
    return folder


def ids(rows):
    return [row.id for row in rows]


def add_row(index, name, **values):
    row = {
        "id": name,
        "created": "2025-01-31T12:00:00.000000+00:00",
        "share": share(name),
        "candidates": 4,
        "model": "net",
        "model_name": "",
        "settings": "{}",
        "trajectory_bytes": 0,
    } | values
    index.execute(f"INSERT INTO sets ({', '.join(row)}) VALUES (:{', :'.join(row)})", row)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and (a == b or a != a)


def files_of(dataset, kind):
    return sorted((dataset.folder / kind).glob("*/*"))


def file_of_set_7(dataset, kind):
    file = {
        "sets": lambda: dataset._row("set 7")["trajectory"],
        "images": lambda: dataset._image_rows("set 7")[1][0],
        "conditioning": lambda: dataset._index.read(
            "SELECT file FROM conditioning WHERE hash = ?", [dataset._row("set 7")["conditioning"]]
        )[0][0],
    }[kind]()
    return dataset.folder / file


def change(folder, *statements):
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite", isolation_level=None)) as index:
        for statement in statements:
            index.execute(*statement) if isinstance(statement, tuple) else index.execute(statement)


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def integrity(folder):
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite")) as index:
        return index.execute("PRAGMA integrity_check").fetchall()


def payload(folder):
    return sum(
        path.is_file() for kind in ("sets", "images", "conditioning") for path in (folder / kind).rglob("*")
    )
