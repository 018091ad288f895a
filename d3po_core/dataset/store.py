"""Preferences on disk: sets of candidates recorded now, judged days later by several people, trained on together.

A dataset is a folder that holds all it needs and can be moved or copied as a whole while nobody writes to it.

    index.sqlite                SQLite 3, rollback journal; application_id 0x4433504F ("D3PO"), user_version 1
    sets/ab/NAME.safetensors    one set's trajectory (trajectory.py): states, denoised, sigmas; metadata "d3po": JSON, with
                                a checksum of each step
    images/ab/NAME.png          one candidate, 8 bits RGB
    conditioning/ab/NAME.safetensors    a tree of tensors and JSON (tree.py), shared by all sets that have the same

The index names the files by "/"-separated paths relative to the folder. NAME begins with a hash (of the set's id, or of
the conditioning) and ab is that hash's first two digits, so that no folder grows large; only the index says which file
is whose. A file is on disk as a whole before the index names it and never changes afterwards; one that the index does
not name is left over from a writer that was stopped, and means nothing.

Tables (times are UTC, as in 2025-01-31T18:30:00.000000+00:00):

    sets          id; created; share (the first 53 bits of the id's sha256 / 2^53: a set is held out where this is
                  below the share to hold out); candidates (how many); prompt or NULL; model (fingerprint of the base
                  model's weights) and model_name; settings (JSON object); conditioning (a hash) or NULL; trajectory (a
                  file) or NULL; trajectory_bytes
    images        set_id; candidate (from 0); file; bytes
    conditioning  hash (sha256 of the tree, tree.tree_name); file; bytes
    judgements    rows are only ever added: number (rising); set_id; annotator; judgement (JSON as in
                  preference.pairs_from_judgement, NULL: withdrawn); finished (0: withdrawn, or still "open"); pairs
                  (JSON: [[winner, loser], ...], the strict pairs it implies); strict (how many); ties (how many pairs
                  it calls equal); time; tool (what took it down)

Of an annotator's judgements of a set the newest, by number, counts, if it is finished: the view `counting` has these
rows. The view `files` has every file's kind, path and size in bytes.
"""

import hashlib
import json
import math
import os
import time
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

import torch

from ..candidates.judgement import (
    is_finished,
    liked_from_judgement,
    pairs_from_judgement,
    scores_from_judgement,
)
from ..candidates.trajectory import Trajectory
from ..files import make_folder
from . import tree
from .annotators import count_ties, join, join_liked
from .files import Files, load_png, save_png
from .index import NONSENSE, DatasetError, Index, each_readable, failure
from .rows import MOST_CANDIDATES, Judgement, judgement_in, pairs_in, require_count, set_row
from .statistics import statistics

INDEX = "index.sqlite"
SPLITS = ("train", "held_out")
DAY = 24 * 60 * 60

_tidied = {}  # folder -> when this process last did


ROWS = """SELECT id, created, candidates, prompt, model, model_name, share, trajectory IS NOT NULL AS has_trajectory,
    conditioning IS NOT NULL AS has_conditioning, EXISTS (SELECT 1 FROM images WHERE set_id = id) AS has_images,
    (SELECT count(*) FROM counting WHERE set_id = id) AS judged_by FROM sets"""
JUDGED = (
    "EXISTS (SELECT 1 FROM counting WHERE set_id = id AND (:annotator IS NULL OR annotator = :annotator))"
)


class Dataset:
    """A preference dataset in a folder; made where there is none, unless `create` is False.

    Any thread may use it (one connection behind a lock), and any number of processes, each with a Dataset of its own.
    Every method raises DatasetError, a ValueError that names the file, for what is damaged, full or may not be written,
    and for a set that is not there.
    """

    def __init__(self, folder, create=True):
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

    def close(self):
        self._index.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- sets ---

    def add_set(
        self,
        set_id,
        *,
        trajectory=None,
        images=None,
        conditioning=None,
        candidates=None,
        prompt=None,
        settings=None,
        model=None,
        model_name="",
        created=None,
    ):
        """Add a set: True, or False if it is there already, and then only a missing prompt or images are filled in.

        trajectory    the set's Trajectory, whose model and settings are then the defaults; its own conditioning is not
                      stored
        images        [N, H, W, 3], 0...1, or uint8
        conditioning  dicts, lists, tuples, JSON scalars and tensors, nested (TypeError, with the path inside, for
                      anything else); alike ones are stored once
        candidates    how many, where neither trajectory nor images tell
        settings      how the candidates were made; JSON object
        model         fingerprint of the base model's weights
        created       datetime, now if None; one without a time zone is local time

        Raises ValueError if these do not fit one another or the set that is there.
        """
        candidates = _agreed_candidates(trajectory, images, candidates)
        if not isinstance(set_id, str) or not set_id:
            raise ValueError(f"a set is named by text, not by {set_id!r}")
        if trajectory is not None and trajectory.set_id != set_id:
            raise ValueError(f"the trajectory is of set {trajectory.set_id!r}, not of {set_id!r}")
        known = self.find(set_id)
        if known and known.candidates != candidates:
            raise ValueError(f"set {set_id!r} has {known.candidates} candidates, not {candidates}")
        row = {
            "id": set_id,
            "created": _utc(created),
            "share": share(set_id),
            "candidates": candidates,
            "prompt": prompt,
            "model": model if model is not None else trajectory.model if trajectory else "",
            "model_name": model_name,
            "settings": _json(
                settings if settings is not None else trajectory.settings if trajectory else {}
            ),
            "conditioning": None,
            "trajectory": None,
            "trajectory_bytes": 0,
        }
        structure, tensors = tree.pack(None if known else conditioning, "conditioning")
        name, pngs = _sha(set_id), []
        with self._writing() as write:
            if images is not None and not (known and known.has_images):
                pngs = [write("images", name, ".png", lambda path: save_png(image, path)) for image in images]
            if trajectory is not None and not known:
                row["trajectory"], row["trajectory_bytes"] = write(
                    "sets", name, ".safetensors", trajectory.save
                )

            def insert(index):
                added = not index.execute("SELECT 1 FROM sets WHERE id = ?", [set_id]).fetchone()
                if added:
                    if structure is not None:
                        row["conditioning"] = self._add_conditioning(index, write, structure, tensors)
                    index.execute(f"INSERT INTO sets ({', '.join(row)}) VALUES (:{', :'.join(row)})", row)
                elif prompt is not None:
                    index.execute(
                        "UPDATE sets SET prompt = ? WHERE id = ? AND prompt IS NULL", [prompt, set_id]
                    )
                if pngs and not index.execute("SELECT 1 FROM images WHERE set_id = ?", [set_id]).fetchone():
                    index.executemany(
                        "INSERT INTO images (set_id, candidate, file, bytes) VALUES (?, ?, ?, ?)",
                        [(set_id, i, *png) for i, png in enumerate(pngs)],
                    )
                return added

            return self._index.write(insert)

    def delete(self, set_ids):
        """Remove sets with their judgements and files, and conditioning that no other set has: how many were there."""

        def forget(index):
            before = {row["file"] for row in index.execute("SELECT file FROM files")}
            removed = sum(
                index.execute("DELETE FROM sets WHERE id = ?", [name]).rowcount for name in _many(set_ids)
            )
            index.execute(
                "DELETE FROM conditioning WHERE hash NOT IN "
                "(SELECT conditioning FROM sets WHERE conditioning IS NOT NULL)"
            )
            return removed, before - {row["file"] for row in index.execute("SELECT file FROM files")}

        removed, files = self._index.write(forget)
        self._files.remove(files)
        return removed

    def find(self, set_id):
        """The SetRow of a set, or None."""
        rows = self._index.read(f"{ROWS} WHERE id = ?", [set_id])
        with self._telling(set_id):
            return set_row(rows[0]) if rows else None

    def sets(
        self,
        judged=None,
        annotator=None,
        since=None,
        until=None,
        model=None,
        split=None,
        held_out=0.1,
        limit=None,
    ):
        """SetRows, oldest first, of the sets that are all of

        - judged (True), or not judged (False), by `annotator`, or by anyone; an annotator alone means judged
        - created at or after `since` and before `until` (datetimes; one without a time zone is local time)
        - recorded on the base model with the fingerprint `model`
        - of the split "train" or "held_out", where a share `held_out` of all sets, by their ids alone, is held out

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
        rows = self._index.read(
            f"{ROWS} WHERE {where} ORDER BY created, id LIMIT :limit",
            {
                "annotator": annotator,
                "since": since and _utc(since),
                "until": until and _utc(until),
                "model": model,
                "held_out": held_out,
                "limit": -1 if limit is None else limit,
            },
        )
        return [*each_readable(rows, set_row)]

    # --- what a set holds ---

    def trajectory(self, set_id):
        """A set's Trajectory, whose states and denoised are read where they are indexed; None if it has none."""
        row = self._row(set_id)
        if row["trajectory"] is None:
            return None
        with self._files.reading(set_id, row["trajectory"], row["trajectory_bytes"]) as path:
            trajectory = Trajectory.open(path)
            if (trajectory.set_id, trajectory.count) != (set_id, row["candidates"]):
                raise ValueError(f"it holds {trajectory.count} candidates of set {trajectory.set_id!r}")
        return trajectory

    def conditioning(self, set_id):
        """A set's conditioning as it was given to `add_set`, in main memory; None if it has none."""
        rows = self._index.read(
            "SELECT hash, file, bytes FROM sets LEFT JOIN conditioning ON hash = conditioning WHERE id = ?",
            [set_id],
        )
        if not rows:
            raise self._unknown(set_id)
        name, *file = rows[0]
        if name is None:
            return None
        with self._files.reading(set_id, *file) as path:
            return tree.load_tree(path, name)

    def images(self, set_id):
        """A set's candidates, a tensor [N, H, W, 3] of float32 in 0...1; None if it has no images."""
        images = []
        for file in self._image_rows(set_id):
            with self._files.reading(set_id, *file) as path:
                images.append(load_png(path))
        return torch.stack(images) if images else None

    def image_files(self, set_id):
        """Paths of a set's PNG files, candidate by candidate; [] if it has no images."""
        return [self._files.path(file) for file, _ in self._image_rows(set_id)]

    def settings(self, set_id):
        """How a set's candidates were made."""
        row = self._row(set_id)
        with self._telling(set_id):
            return dict(json.loads(row["settings"]))

    # --- judgements ---

    def judge(self, set_id, judgement, annotator, tool="", time=None, again=True):
        """Add a judgement, a mapping as in preference.pairs_from_judgement; None withdraws the annotator's earlier one.
        With `again` False nothing is added where the annotator's newest says the same.

        Returns once it is on disk. Raises ValueError if it is malformed or does not fit the set.
        """
        pairs, ties = [], 0
        if judgement is not None:
            pairs = pairs_from_judgement(judgement, self._row(set_id)["candidates"])
            ties = count_ties(judgement, pairs)
        row = {
            "set_id": set_id,
            "annotator": annotator,
            "judgement": judgement and _json(judgement),
            "finished": is_finished(judgement),
            "pairs": json.dumps(pairs),
            "strict": len(pairs),
            "ties": ties,
            "time": _utc(time),
            "tool": tool,
        }

        def is_said(index):
            newest = index.execute(
                "SELECT judgement FROM judgements WHERE set_id = ? AND annotator = ? "
                "ORDER BY number DESC LIMIT 1",
                [set_id, annotator],
            ).fetchone()
            return not again and newest is not None and newest["judgement"] == row["judgement"]

        def insert(index):
            if not index.execute("SELECT 1 FROM sets WHERE id = ?", [set_id]).fetchone():
                raise self._unknown(set_id)
            if is_said(index):  # asked again: another may have been quicker
                return
            index.execute(f"INSERT INTO judgements ({', '.join(row)}) VALUES (:{', :'.join(row)})", row)

        if not self._index.together(
            is_said
        ):  # what need not be written can be said of an index that cannot be
            self._index.write(insert)

    def judgements(self, set_id):
        """Every Judgement that a set ever had, oldest first."""
        candidates = self._row(set_id)["candidates"]
        rows = self._index.read("SELECT * FROM judgements WHERE set_id = ? ORDER BY number", [set_id])
        with self._telling(set_id):
            return [
                Judgement(
                    row["annotator"],
                    row["judgement"] and judgement_in(row["judgement"], candidates),
                    datetime.fromisoformat(row["time"]),
                    row["tool"],
                )
                for row in rows
            ]

    def pairs(self, set_id, annotators=None, joining="all"):
        """Strict pairs [(winner, loser), ...] of a set by those judgements that count, of all annotators or of some.

        joining: "all", "majority" or "unanimous", as in annotators.join.
        """
        rows = self._counting(set_id, annotators)
        with self._telling(set_id):
            return join([pairs_in(row["pairs"], row["candidates"]) for row in rows], joining)

    def scores(self, set_id, annotators=None):
        """A set's scores, as Preferences has them, where one annotator's judgement counts; () where several do."""
        rows = self._counting(set_id, annotators)
        with self._telling(set_id):
            return (
                scores_from_judgement(judgement_in(rows[0]["judgement"], rows[0]["candidates"]))
                if len(rows) == 1
                else ()
            )

    def liked(self, set_id, annotators=None, joining="all"):
        """A set's thumbs, as Preferences has them, by those judgements that count; joined as in join_liked."""
        rows = self._counting(set_id, annotators)
        with self._telling(set_id):
            return join_liked(
                [
                    liked_from_judgement(judgement_in(row["judgement"], row["candidates"]), row["candidates"])
                    for row in rows
                ],
                joining,
            )

    # --- the whole ---

    def statistics(self, held_out=0.1):
        """What the dataset holds, JSON values by name; no file but the index is read.

        sets, judged, unjudged; judgements (those that count), annotators {name: how many of these}, pairs (strict),
        ties and thumbs {"up", "down"} in them; models {fingerprint: {"name", "sets"}}; split {"train", "held_out"};
        bytes {"sets", "images", "conditioning", "index"}; agreement (annotators.agreement); oldest, newest (when a set
        was created, or None)
        """
        return self._index.together(lambda index: statistics(index, held_out))

    def tidy(self, older_than=DAY):
        """Remove what stopped writers left over: files in the payload folders, named as ours are, that the index does
        not name and that are older than `older_than` seconds. Returns how many.

        Do not call it with an index older than the files, such as one that was put back.
        """
        stale = self._files.stale(older_than) - {
            row["file"] for row in self._index.read("SELECT file FROM files")
        }
        self._files.remove(stale)
        return len(stale)

    def tidy_daily(self):
        """As `tidy`, once a day in this process, for who opens a dataset to write. Files that are newer than all sets of
        the index stay: it may be one that was put back. What goes wrong here is in nobody's way."""
        now = time.time()
        if now - _tidied.get(self.folder, -math.inf) < DAY:
            return
        _tidied[self.folder] = now
        with suppress(DatasetError, OSError, *NONSENSE):
            newest = self._index.read("SELECT max(created) AS newest FROM sets")[0]["newest"]
            self.tidy(max(DAY, now - datetime.fromisoformat(newest).timestamp()))

    # --- rows and files ---

    def _counting(self, set_id, annotators):
        self._row(set_id)
        rows = self._index.read(
            "SELECT * FROM counting JOIN sets ON sets.id = set_id WHERE set_id = ?", [set_id]
        )
        return [row for row in rows if annotators is None or row["annotator"] in _many(annotators)]

    def _row(self, set_id):
        rows = self._index.read("SELECT * FROM sets WHERE id = ?", [set_id])
        if not rows:
            raise self._unknown(set_id)
        with self._telling(set_id):
            require_count(rows[0]["candidates"])
        return rows[0]

    def _image_rows(self, set_id):
        self._row(set_id)
        return self._index.read(
            "SELECT file, bytes FROM images WHERE set_id = ? ORDER BY candidate", [set_id]
        )

    @contextmanager
    def _telling(self, set_id):
        """Nonsense in the index about a set, as a DatasetError."""
        try:
            yield
        except DatasetError:
            raise
        except NONSENSE as error:
            raise DatasetError(
                f"set {set_id!r}: what {self.folder / INDEX} says of it makes no sense ({error}), as another "
                "program altered it. The other sets are not affected: put a copy of the index back, or "
                "delete the set"
            ) from error

    def _unknown(self, set_id):
        return DatasetError(f"there is no set {set_id!r} in {self.folder}")

    @contextmanager
    def _writing(self):
        """Files.write; in the end, what it wrote and the index does not name is removed."""
        written = []

        def write(*what):
            written.append(self._files.write(*what))
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

    def _add_conditioning(self, index, write, structure, tensors):
        """Its name; written inside the transaction, so that two writers do not both, and no deletion comes between."""
        name = tree.tree_name(structure)
        if not index.execute("SELECT 1 FROM conditioning WHERE hash = ?", [name]).fetchone():
            stored = write(
                "conditioning", name, ".safetensors", lambda path: tree.save_tree(structure, tensors, path)
            )
            index.execute("INSERT INTO conditioning (hash, file, bytes) VALUES (?, ?, ?)", [name, *stored])
        return name


def share(set_id):
    """Where a set lies in [0, 1), by its id alone: below the share that is held out, it is held out."""
    return (int(_sha(set_id)[:16], 16) >> 11) / 2**53


def _agreed_candidates(trajectory, images, candidates):
    if images is not None and (len(images.shape) != 4 or images.shape[-1] != 3):
        raise ValueError(f"images must be [N, H, W, 3], got {list(images.shape)}")
    counts = {
        "candidates": candidates,
        "trajectory": trajectory and trajectory.count,
        "images": None if images is None else len(images),
    }
    given = {name: count for name, count in counts.items() if count is not None}
    if len(set(given.values())) != 1 or not 1 <= min(given.values()) <= MOST_CANDIDATES:
        raise ValueError(f"a set needs one number of candidates, 1 or more, got {given or 'none'}")
    return min(given.values())


def _utc(time):
    """A datetime, or now, as text that sorts by time."""
    return (time or datetime.now(timezone.utc)).astimezone(timezone.utc).isoformat(timespec="microseconds")


def _json(value):
    try:
        return json.dumps(value, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"this is not JSON: {error}") from error


def _many(names):
    return [names] if isinstance(names, str) else list(names)


def _sha(text):
    return hashlib.sha256(text.encode()).hexdigest()
