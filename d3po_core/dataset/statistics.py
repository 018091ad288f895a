"""Figures about a preference dataset, from its index alone."""

import json
from itertools import groupby
from sqlite3 import Connection
from typing import Any

from .annotators import agreement
from .index import PAYLOAD, each_readable
from .rows import judgement_in

LOOKED_AT = 5_000  # sets by which it is told how far annotators agree


def statistics(index: Connection, held_out: float) -> dict[str, Any]:
    """As Dataset.statistics says, over a connection to the index. Judgements of which it says nonsense are
    left out."""
    sets, held, oldest, newest = index.execute(
        "SELECT count(*), count(CASE WHEN share < ? THEN 1 END), min(created), max(created) FROM sets",
        [held_out],
    ).fetchone()
    (judged,) = index.execute(
        "SELECT count(*) FROM sets WHERE EXISTS (SELECT 1 FROM counting WHERE set_id = id)"
    ).fetchone()
    annotators = index.execute(
        "SELECT annotator, count(*) AS judgements, sum(strict) AS strict, sum(ties) AS ties "
        "FROM counting GROUP BY annotator ORDER BY annotator"
    ).fetchall()
    models = index.execute(
        "SELECT model, max(model_name) AS name, count(*) AS sets FROM sets GROUP BY model"
    ).fetchall()
    sizes = {
        kind: index.execute("SELECT sum(bytes) FROM files WHERE kind = ?", [kind]).fetchone()[0]
        for kind in PAYLOAD
    }
    (index_bytes,) = index.execute(
        "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    ).fetchone()
    liked = each_readable(
        index.execute(
            # in the order that they lie on disk: nearly all must be looked at
            "SELECT judgement, candidates FROM judgements NOT INDEXED JOIN sets ON sets.id = set_id "
            """WHERE counts AND (judgement LIKE '%"good"%' OR judgement LIKE '%"bad"%')"""
        ),
        lambda row: judgement_in(row["judgement"], row["candidates"]).liked,
    )
    thumbs = [thumb for answer in liked for thumb in answer]
    return {
        "sets": sets,
        "judged": judged,
        "unjudged": sets - judged,
        "judgements": sum(row["judgements"] for row in annotators),
        "annotators": {str(row["annotator"]): row["judgements"] for row in annotators},
        "pairs": sum(row["strict"] for row in annotators),
        "ties": sum(row["ties"] for row in annotators),
        "thumbs": {"up": thumbs.count(True), "down": thumbs.count(False)},
        "models": {str(row["model"]): {"name": str(row["name"]), "sets": row["sets"]} for row in models},
        "split": {"train": sets - held, "held_out": held},
        "bytes": {kind: sizes[kind] or 0 for kind in PAYLOAD} | {"index": index_bytes},
        "agreement": _agreement(index, sets),
        "oldest": oldest and str(oldest),
        "newest": newest and str(newest),
    }


def _agreement(index: Connection, sets: int) -> float | None:
    """How far annotators agree, by about LOOKED_AT of the sets: shares are spread evenly over 0 to 1."""
    rows = index.execute(
        "SELECT set_id, pairs FROM counting WHERE strict > 0 "
        "AND set_id IN (SELECT id FROM sets WHERE share < ?) ORDER BY set_id",
        [LOOKED_AT / max(sets, 1)],
    )
    by_set = (list(own) for _, own in groupby(rows, key=lambda row: row["set_id"]))
    return agreement(
        each_readable(
            (own for own in by_set if len(own) > 1),
            lambda own: [
                [(int(winner), int(loser)) for winner, loser in json.loads(row["pairs"])] for row in own
            ],
        )
    )
