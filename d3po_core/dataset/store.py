"""Preferences on disk: sets of candidates recorded now, judged days later by several people, trained on
together.

A dataset is a folder that holds all it needs and can be moved or copied as a whole while nobody writes to it.

    index.sqlite                SQLite 3, rollback journal; application_id 0x4433504F ("D3PO"), user_version 2
    sets/ab/NAME.safetensors    one set's trajectory (trajectory.py): states, denoised, sigmas; metadata
                                "d3po": JSON, with a checksum of each step
    images/ab/NAME.png          one candidate, 8 bits RGB
    conditioning/ab/NAME.safetensors    a tree of tensors and JSON (tree.py), shared by all sets that have it

The index names the files by "/"-separated paths relative to the folder. NAME begins with a hash (of the set's
id, or of the conditioning) and ab is that hash's first two digits, so that no folder grows large; only the
index says which file is whose. A file is on disk as a whole before the index names it and never changes
afterwards; one that the index does not name is left over from a writer that was stopped, and means nothing.

Tables (times are UTC, as in 2025-01-31T18:30:00.000000+00:00):

    sets          id; created; share (the first 53 bits of the id's sha256 / 2^53: a set is held out where
                  this is below the share to hold out); candidates (how many); prompt or NULL; model
                  (fingerprint of the base model's weights) and model_name; settings (JSON object);
                  conditioning (a hash) or NULL; trajectory (a file) or NULL; trajectory_bytes
    images        set_id; candidate (from 0); file; bytes
    conditioning  hash (sha256 of the tree, tree.tree_name); file; bytes
    judgements    rows are only ever added: number (rising); set_id; annotator; judgement (JSON as in
                  judgement.Judgement, NULL: withdrawn); finished (0: withdrawn, or still "open"); pairs
                  (JSON: [[winner, loser], ...], the strict pairs it implies); strict (how many); ties (how
                  many pairs it calls equal); time; tool (what took it down); counts (a trigger sees to it)

Of an annotator's judgements of a set the newest, by number, counts, if it is finished: the view `counting`
has these rows. The view `files` has every file's kind, path and size in bytes.
"""

import json
import math
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Any

from ..candidates.judgement import Judgement, Pair
from .annotators import join, join_liked
from .browsing import Shown, browse, count, overview
from .index import NONSENSE, DatasetError
from .rows import HistoryEntry, history_entry, judgement_in, pairs_in
from .sets import Sets, as_json, insert_row, many, utc
from .statistics import statistics

DAY = 24 * 60 * 60

_tidied: dict[Path, float] = {}  # folder -> when this process last did


class Dataset(Sets):
    """A preference dataset in a folder; made where there is none, unless `create` is False.

    Any thread may use it (one connection behind a lock), and any number of processes, each with a Dataset of
    its own. Every method raises DatasetError, a ValueError that names the file, for what is damaged, full or
    may not be written, and for a set that is not there.
    """

    # --- judgements ---

    def judge(
        self,
        set_id: str,
        judgement: Judgement | None,
        annotator: str,
        tool: str = "",
        time: datetime | None = None,
        again: bool = True,
    ) -> None:
        """Add a Judgement; None withdraws the annotator's earlier one. With `again` False nothing is added
        where the annotator's newest says the same.

        Returns once it is on disk. Raises ValueError if it is of another number of candidates than the set
        has.
        """
        if judgement is not None:
            candidates = self._row(set_id)["candidates"]
            if judgement.candidates != candidates:
                raise ValueError(
                    f"set {set_id!r} has {candidates} candidates, and {judgement.candidates} were judged"
                )
        pairs = judgement.pairs if judgement else ()
        row = {
            "set_id": set_id,
            "annotator": annotator,
            "judgement": judgement and as_json(judgement.as_json),
            "finished": judgement is not None and judgement.is_finished,
            "pairs": json.dumps(pairs),
            "strict": len(pairs),
            "ties": len(judgement.ties) if judgement else 0,
            "time": utc(time),
            "tool": tool,
        }

        def is_said(index: Connection) -> bool:
            newest = index.execute(
                "SELECT judgement FROM judgements WHERE set_id = ? AND annotator = ? "
                "ORDER BY number DESC LIMIT 1",
                [set_id, annotator],
            ).fetchone()
            return not again and newest is not None and newest["judgement"] == row["judgement"]

        def insert(index: Connection) -> None:
            if not index.execute("SELECT 1 FROM sets WHERE id = ?", [set_id]).fetchone():
                raise self._unknown(set_id)
            if is_said(index):  # asked again: another may have been quicker
                return
            insert_row(index, "judgements", row)

        # what need not be written can be said of an index that cannot be
        if not self._index.together(is_said):
            self._index.write(insert)

    def judgements(self, set_id: str) -> list[HistoryEntry]:
        """A set's history of judgements, HistoryEntries, oldest first."""
        self._row(set_id)
        rows = self._index.read(
            "SELECT judgements.*, candidates FROM judgements JOIN sets ON sets.id = set_id "
            "WHERE set_id = ? ORDER BY number",
            [set_id],
        )
        with self._telling(set_id):
            return [history_entry(row) for row in rows]

    def pairs(
        self, set_id: str, annotators: str | Iterable[str] | None = None, joining: str = "all"
    ) -> list[Pair]:
        """Strict pairs [(winner, loser), ...] of a set by those judgements that count, of all annotators or
        some.

        joining: "all", "majority" or "unanimous", as in annotators.join.
        """
        rows = self._counting(set_id, annotators)
        with self._telling(set_id):
            return join([pairs_in(row["pairs"], row["candidates"]) for row in rows], joining)

    def scores(self, set_id: str, annotators: str | Iterable[str] | None = None) -> tuple[float | None, ...]:
        """A set's scores, as Preferences has them, where one annotator's judgement counts; () where several
        do."""
        rows = self._counting(set_id, annotators)
        with self._telling(set_id):
            return _judgement_in(rows[0]).scores if len(rows) == 1 else ()

    def liked(
        self, set_id: str, annotators: str | Iterable[str] | None = None, joining: str = "all"
    ) -> tuple[bool | None, ...]:
        """A set's thumbs, as Preferences has them, by those judgements that count, joined as in
        join_liked."""
        rows = self._counting(set_id, annotators)
        with self._telling(set_id):
            return join_liked([_judgement_in(row).liked for row in rows], joining)

    def _counting(self, set_id: str, annotators: str | Iterable[str] | None) -> list[Row]:
        self._row(set_id)
        rows = self._index.read(
            "SELECT * FROM counting JOIN sets ON sets.id = set_id WHERE set_id = ?", [set_id]
        )
        return [row for row in rows if annotators is None or row["annotator"] in many(annotators)]

    # --- the whole ---

    def statistics(self, held_out: float = 0.1) -> dict[str, Any]:
        """What the dataset holds, JSON values by name; no file but the index is read.

        sets, judged, unjudged; judgements (those that count), annotators {name: how many of these}, pairs
        (strict), ties and thumbs {"up", "down"} in them; models {fingerprint: {"name", "sets"}}; split
        {"train", "held_out"}; bytes {"sets", "images", "conditioning", "index"}; agreement
        (annotators.agreement), of very many sets by some; oldest, newest (when a set was created, or None)
        """
        return self._index.together(lambda index: statistics(index, held_out))

    def overview(self, annotator: str) -> dict[str, Any]:
        """What there is at a glance, JSON values by name; no file but the index is read, and of that little.

        sets; unjudged (how many of those with images `annotator` has not judged); annotators {name: how many
        judgements count}; newest (when the last set was created, or None)
        """
        return self._index.together(lambda index: overview(index, annotator))

    def browse(
        self,
        annotator: str,
        which: str = "all",
        search: str = "",
        order: str = "newest",
        limit: int = 24,
        offset: int = 0,
    ) -> list[Shown]:
        """A page of sets to look at; no file but the index is read.

        which   "all", "judged" by `annotator`, or "unjudged", which are those with images
        search  only sets whose prompt has this text in it, capital letters or not; "" all
        order   "newest" or "oldest" first
        """
        return self._index.together(
            lambda index: browse(index, annotator, which, search, order, limit, offset)
        )

    def count(self, annotator: str, which: str = "all", search: str = "") -> int:
        """How many sets there are to `browse`."""
        return self._index.together(lambda index: count(index, annotator, which, search))

    def tidy(self, older_than: float = DAY) -> int:
        """Remove what stopped writers left over: files in the payload folders, named as ours are, that the
        index does not name and that are older than `older_than` seconds. Returns how many.

        Do not call it with an index older than the files, such as one that was put back.
        """
        stale = self._files.stale(older_than) - {
            row["file"] for row in self._index.read("SELECT file FROM files")
        }
        self._files.remove(stale)
        return len(stale)

    def tidy_daily(self) -> None:
        """As `tidy`, once a day in this process, for who opens a dataset to write. Files that are newer than
        all sets of the index stay: it may be one that was put back. What goes wrong here is in nobody's
        way."""
        now = time.time()
        if now - _tidied.get(self.folder, -math.inf) < DAY:
            return
        _tidied[self.folder] = now
        with suppress(DatasetError, OSError, *NONSENSE):
            newest = self._index.read("SELECT max(created) AS newest FROM sets")[0]["newest"]
            self.tidy(max(DAY, now - datetime.fromisoformat(newest).timestamp()))


def _judgement_in(row: Row) -> Judgement:
    return judgement_in(row["judgement"], row["candidates"])
