"""The sets of a preference dataset: candidates that were recorded, or images alone, and their files."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from ..candidates.trajectory import Trajectory
from ..files import make_folder
from . import tree
from .files import Files, Pixels, Stored, load_png, save_png
from .index import NONSENSE, DatasetError, Index, each_readable, failure, uncollected
from .rows import MOST_CANDIDATES, SetRow, require_count, set_row

S = TypeVar("S", bound="Sets")
Write: TypeAlias = Callable[[str, str, str, Callable[[Path], None]], Stored]  # Files.write

INDEX = "index.sqlite"
SPLITS = ("train", "held_out")

ROWS = """SELECT id, created, candidates, prompt, model, model_name, share,
    trajectory IS NOT NULL AS has_trajectory, conditioning IS NOT NULL AS has_conditioning,
    EXISTS (SELECT 1 FROM images WHERE set_id = id) AS has_images FROM sets"""
JUDGED = (
    "EXISTS (SELECT 1 FROM counting WHERE set_id = id AND (:annotator IS NULL OR annotator = :annotator))"
)


class Sets:
    """What a Dataset holds beside judgements."""

    def __init__(self, folder: str | Path, create: bool = True) -> None:
        self.folder = Path(os.path.abspath(folder))
        self._files = Files(self.folder)
        index = self._files.require_inside(self.folder / INDEX)
        if not create and not index.exists():
            raise DatasetError(f"{index} does not exist, so there is no dataset in this folder")
        try:
            make_folder(self.folder)
        except OSError as error:
            raise failure(error, self.folder) from error
        self._index = Index(index)

    def close(self) -> None:
        self._index.close()

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- sets ---

    def add_set(
        self,
        set_id: str,
        *,
        trajectory: Trajectory | None = None,
        images: Pixels | None = None,
        conditioning: object = None,
        candidates: int | None = None,
        prompt: str | None = None,
        settings: Mapping[str, Any] | None = None,
        model: str | None = None,
        model_name: str = "",
        created: datetime | None = None,
    ) -> bool:
        """Add a set: True, or False if it is there already; then only a missing prompt or images are filled
        in.

        trajectory    the set's Trajectory, whose model and settings are then the defaults; its own
                      conditioning is not stored
        images        [N, H, W, 3], 0...1, or uint8
        conditioning  dicts, lists, tuples, JSON scalars and tensors, nested (TypeError, with the path inside,
                      for anything else); alike ones are stored once
        candidates    how many, where neither trajectory nor images tell
        settings      how the candidates were made; JSON object
        model         fingerprint of the base model's weights
        created       datetime, now if None; one without a time zone is local time

        Raises ValueError if these do not fit one another or the set that is there.
        """
        candidates = _agreed_candidates(trajectory, images, candidates)
        _check_name(set_id, trajectory)
        known = self.find(set_id)
        if known and known.candidates != candidates:
            raise ValueError(f"set {set_id!r} has {known.candidates} candidates, not {candidates}")
        row = {
            "id": set_id,
            "created": utc(created),
            "share": share(set_id),
            "candidates": candidates,
            "prompt": prompt,
            "model": model if model is not None else trajectory.model if trajectory else "",
            "model_name": model_name,
            "settings": as_json(
                settings if settings is not None else trajectory.settings if trajectory else {}
            ),
        }
        packed = tree.pack(None if known else conditioning, "conditioning")
        new_images = () if images is None or known and known.has_images else images
        with self._writing() as write:
            files = self._write_files(write, set_id, new_images, None if known else trajectory)
            return self._index.write(lambda index: self._insert(index, write, row, packed, *files))

    def _write_files(
        self, write: Write, set_id: str, images: Iterable[Pixels], trajectory: Trajectory | None
    ) -> tuple[list[Stored], tuple[str | None, int]]:
        """(file, bytes) of each image, and of the trajectory or (None, 0)."""
        name = _sha(set_id)
        pngs = [write("images", name, ".png", lambda path: save_png(image, path)) for image in images]
        if trajectory is None:
            return pngs, (None, 0)
        return pngs, write("sets", name, ".safetensors", trajectory.save)

    def _insert(
        self,
        index: Connection,
        write: Write,
        row: dict[str, Any],
        packed: tuple[tree.Structure, dict[str, Tensor]],
        pngs: list[Stored],
        trajectory: tuple[str | None, int],
    ) -> bool:
        """Add a set's rows, as far as they are missing: whether the set itself was."""
        set_id, (structure, tensors) = row["id"], packed
        added = not index.execute("SELECT 1 FROM sets WHERE id = ?", [set_id]).fetchone()
        if added:
            new = row | {"conditioning": None} | dict(zip(("trajectory", "trajectory_bytes"), trajectory))
            if structure is not None:
                new["conditioning"] = self._add_conditioning(index, write, structure, tensors)
            insert_row(index, "sets", new)
        elif row["prompt"] is not None:
            index.execute(
                "UPDATE sets SET prompt = ? WHERE id = ? AND prompt IS NULL", [row["prompt"], set_id]
            )
        if pngs and not index.execute("SELECT 1 FROM images WHERE set_id = ?", [set_id]).fetchone():
            index.executemany(
                "INSERT INTO images (set_id, candidate, file, bytes) VALUES (?, ?, ?, ?)",
                [(set_id, i, *png) for i, png in enumerate(pngs)],
            )
        return added

    def delete(self, set_ids: str | Iterable[str]) -> int:
        """Remove sets with their judgements and files, and conditioning that no other set has: how many there
        were."""

        def forget(index: Connection) -> tuple[int, set[str]]:
            before = {row["file"] for row in index.execute("SELECT file FROM files")}
            removed = sum(
                index.execute("DELETE FROM sets WHERE id = ?", [name]).rowcount for name in many(set_ids)
            )
            index.execute(
                "DELETE FROM conditioning WHERE hash NOT IN "
                "(SELECT conditioning FROM sets WHERE conditioning IS NOT NULL)"
            )
            return removed, before - {row["file"] for row in index.execute("SELECT file FROM files")}

        removed, files = self._index.write(forget)
        self._files.remove(files)
        return removed

    def find(self, set_id: str) -> SetRow | None:
        """The SetRow of a set, or None."""
        rows = self._index.read(f"{ROWS} WHERE id = ?", [set_id])
        with self._telling(set_id):
            return set_row(rows[0]) if rows else None

    def sets(
        self,
        judged: bool | None = None,
        annotator: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        model: str | None = None,
        split: str | None = None,
        held_out: float = 0.1,
        limit: int | None = None,
    ) -> list[SetRow]:
        """SetRows, oldest first, of the sets that are all of

        - judged (True), or not judged (False), by `annotator`, or by anyone; an annotator alone means judged
        - created at or after `since` and before `until` (datetimes; one without a time zone is local time)
        - recorded on the base model with the fingerprint `model`
        - of the split "train" or "held_out", where a share `held_out` of all sets, by their ids alone, is
          held out

        One of which the index says nonsense, as another program altered it, is left out, and the log says so.
        """
        if split not in (None, *SPLITS):
            raise ValueError(f"there is no split {split!r}: use {' or '.join(SPLITS)}")
        conditions = [
            condition
            for condition, wanted in (
                (JUDGED, judged or (judged is None and annotator is not None)),
                (f"NOT {JUDGED}", judged is False),
                ("created >= :since", since),
                ("created < :until", until),
                ("model = :model", model is not None),
                ("share >= :held_out", split == "train"),
                ("share < :held_out", split == "held_out"),
            )
            if wanted
        ]
        where = " AND ".join(conditions) or "TRUE"
        query = f"{ROWS} WHERE {where} ORDER BY created, id LIMIT :limit"
        values = {
            "annotator": annotator,
            "since": since and utc(since),
            "until": until and utc(until),
            "model": model,
            "held_out": held_out,
            "limit": -1 if limit is None else limit,
        }
        with uncollected():
            return self._index.together(lambda index: [*each_readable(index.execute(query, values), set_row)])

    # --- what a set holds ---

    def trajectory(self, set_id: str) -> Trajectory | None:
        """A set's Trajectory, its states and denoised read where they are indexed; None if it has none."""
        row = self._row(set_id)
        if row["trajectory"] is None:
            return None
        with self._files.reading(set_id, row["trajectory"], row["trajectory_bytes"]) as path:
            trajectory = Trajectory.open(path)
            if (trajectory.set_id, trajectory.count) != (set_id, row["candidates"]):
                raise ValueError(f"it holds {trajectory.count} candidates of set {trajectory.set_id!r}")
        return trajectory

    def conditioning(self, set_id: str) -> Any:
        """A set's conditioning as it was given to `add_set`, in main memory; None if it has none."""
        name, *file = self._conditioning_row(set_id)
        if name is None:
            return None
        with self._files.reading(set_id, *file) as path:
            return tree.load_tree(path, name)

    def require_conditioning(self, set_id: str) -> None:
        """Raises DatasetError where the file of a set's conditioning is missing or cut off; it is not
        read."""
        name, *file = self._conditioning_row(set_id)
        if name is not None:
            with self._files.reading(set_id, *file):
                pass

    def _conditioning_row(self, set_id: str) -> Row:
        """(hash, file, bytes) of a set's conditioning, each None if it has none."""
        rows = self._index.read(
            "SELECT hash, file, bytes FROM sets LEFT JOIN conditioning ON hash = conditioning WHERE id = ?",
            [set_id],
        )
        if not rows:
            raise self._unknown(set_id)
        return rows[0]

    def images(self, set_id: str) -> Tensor | None:
        """A set's candidates, a tensor [N, H, W, 3] of float32 in 0...1; None if it has no images."""
        images = []
        for file in self._image_rows(set_id):
            with self._files.reading(set_id, *file) as path:
                images.append(load_png(path))
        return torch.stack(images) if images else None

    def image_files(self, set_id: str) -> list[Path]:
        """Paths of a set's PNG files, candidate by candidate; [] if it has no images."""
        return [self._files.path(file) for file, _ in self._image_rows(set_id)]

    def settings(self, set_id: str) -> dict[str, Any]:
        """How a set's candidates were made."""
        row = self._row(set_id)
        with self._telling(set_id):
            return dict(json.loads(row["settings"]))

    # --- rows and files ---

    def _row(self, set_id: str) -> Row:
        rows = self._index.read("SELECT * FROM sets WHERE id = ?", [set_id])
        if not rows:
            raise self._unknown(set_id)
        with self._telling(set_id):
            require_count(rows[0]["candidates"])
        return rows[0]

    def _image_rows(self, set_id: str) -> list[Row]:
        self._row(set_id)
        return self._index.read(
            "SELECT file, bytes FROM images WHERE set_id = ? ORDER BY candidate", [set_id]
        )

    @contextmanager
    def _telling(self, set_id: str) -> Iterator[None]:
        """Nonsense in the index about a set, as a DatasetError."""
        try:
            yield
        except DatasetError:
            raise
        except NONSENSE as error:
            raise DatasetError(
                f"set {set_id!r}: what {self.folder / INDEX} says of it makes no sense ({error}), as another "
                "program altered it. The other sets are not affected: put a copy of the index back"
            ) from error

    def _unknown(self, set_id: str) -> DatasetError:
        return DatasetError(f"there is no set {set_id!r} in {self.folder}")

    @contextmanager
    def _writing(self) -> Iterator[Write]:
        """Files.write; in the end, what it wrote and the index does not name is removed."""
        written: list[Stored] = []

        def write(kind: str, name: str, ending: str, save: Callable[[Path], None]) -> Stored:
            written.append(self._files.write(kind, name, ending, save))
            return written[-1]

        try:
            yield write
        finally:
            with suppress(DatasetError):
                self._files.remove(
                    [
                        file
                        for file, _ in written
                        if not self._index.read("SELECT 1 FROM files WHERE file = ?", [file])
                    ]
                )

    def _add_conditioning(
        self, index: Connection, write: Write, structure: tree.Structure, tensors: dict[str, Tensor]
    ) -> str:
        """Its name. It is written inside the transaction, so that two writers do not both, and no deletion
        comes between."""
        name = tree.tree_name(structure)
        if not index.execute("SELECT 1 FROM conditioning WHERE hash = ?", [name]).fetchone():
            stored = write(
                "conditioning", name, ".safetensors", lambda path: tree.save_tree(structure, tensors, path)
            )
            index.execute("INSERT INTO conditioning (hash, file, bytes) VALUES (?, ?, ?)", [name, *stored])
        return name


def share(set_id: str) -> float:
    """Where a set lies in [0, 1), by its id alone: below the share that is held out, it is held out."""
    return (int(_sha(set_id)[:16], 16) >> 11) / 2**53


def insert_row(index: Connection, table: str, row: Mapping[str, Any]) -> None:
    index.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES (:{', :'.join(row)})", row)


def utc(time: datetime | None) -> str:
    """A datetime, or now, as text that sorts by time."""
    return (time or datetime.now(timezone.utc)).astimezone(timezone.utc).isoformat(timespec="microseconds")


def as_json(value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"this is not JSON: {error}") from error


def many(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _check_name(set_id: str, trajectory: Trajectory | None) -> None:
    if not isinstance(set_id, str) or not set_id:
        raise ValueError(f"a set is named by text, not by {set_id!r}")
    if trajectory is not None and trajectory.set_id != set_id:
        raise ValueError(f"the trajectory is of set {trajectory.set_id!r}, not of {set_id!r}")


def _agreed_candidates(trajectory: Trajectory | None, images: Pixels | None, candidates: int | None) -> int:
    if images is not None and (len(images.shape) != 4 or images.shape[-1] != 3):
        raise ValueError(f"images must be [N, H, W, 3], got {list(images.shape)}")
    counts = {
        "candidates": candidates,
        "trajectory": None if trajectory is None else trajectory.count,
        "images": None if images is None else len(images),
    }
    given = {name: count for name, count in counts.items() if count is not None}
    if len(set(given.values())) != 1 or not 1 <= min(given.values()) <= MOST_CANDIDATES:
        raise ValueError(f"a set needs one number of candidates, 1 or more, got {given or 'none'}")
    return min(given.values())


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
