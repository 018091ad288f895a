"""Rows of a preference dataset's index, held against what they may be: any program can write to an SQLite
file."""

import json
from dataclasses import dataclass
from datetime import datetime
from sqlite3 import Row
from typing import Any, NamedTuple

from ..candidates.judgement import Judgement, Pair

MOST_CANDIDATES = 2**16  # in a set; lists of as many are made


class SetRow(NamedTuple):
    """What the index knows of a set."""

    id: str
    created: datetime
    candidates: int
    prompt: str | None
    model: str
    model_name: str
    share: float
    has_trajectory: bool
    has_conditioning: bool
    has_images: bool


@dataclass(frozen=True)
class HistoryEntry:
    """What an annotator said of a set at a time; `judgement` is None where it was withdrawn."""

    annotator: str
    judgement: Judgement | None
    time: datetime
    tool: str


def set_row(row: Row) -> SetRow:
    """Raises ValueError or TypeError, which name the set, where the index says nonsense of it."""
    name, created, candidates, prompt, model, model_name, share, trajectory, conditioning, images = row
    if not (type(name) is type(model) is type(model_name) is str and type(share) is float):
        raise ValueError(f"set {name!r:.80}: its name, model or share is {(model, model_name, share)!r:.80}")
    if not (prompt is None or type(prompt) is str):
        raise ValueError(f"set {name!r:.80}: its prompt is {prompt!r:.80}")
    require_count(candidates)
    try:
        when = datetime.fromisoformat(created)
    except (TypeError, ValueError) as error:
        raise ValueError(f"set {name!r:.80}: it was created at {created!r:.80}") from error
    has = bool(trajectory), bool(conditioning), bool(images)
    return SetRow._make((name, when, candidates, prompt, model, model_name, share, *has))


def require_count(candidates: Any) -> None:
    """Raises ValueError for what is no number of candidates that a set can have."""
    if not isinstance(candidates, int) or not 1 <= candidates <= MOST_CANDIDATES:
        raise ValueError(f"it has {candidates!r:.80} candidates")


def judgement_in(text: str, candidates: int) -> Judgement:
    """A Judgement as the index has it. Raises ValueError or the like where it is none of such a set."""
    require_count(candidates)
    return Judgement.parse(json.loads(text), candidates)


def history_entry(row: Row) -> HistoryEntry:
    """A row of judgements, with its set's number of candidates. Raises ValueError or the like for
    nonsense."""
    return HistoryEntry(
        row["annotator"],
        row["judgement"] and judgement_in(row["judgement"], row["candidates"]),
        datetime.fromisoformat(row["time"]),
        row["tool"],
    )


def pairs_in(text: str, candidates: int) -> list[Pair]:
    """The strict pairs that the index has of a judgement. Raises ValueError or the like for anything else."""
    pairs = [tuple(pair) for pair in json.loads(text)]
    if not all(
        len(pair) == 2 and all(type(i) is int and 0 <= i < candidates for i in pair) for pair in pairs
    ):
        raise ValueError(f"its pairs are {text:.80}")
    return pairs
