"""Judgements of the candidates of one set, and the strict preference pairs that they imply.

Candidates are named by their index, 0 to N - 1. A pair is (winner, loser). Ties make no pair: their D3PO loss
is a constant.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

Pair: TypeAlias = tuple[int, int]

# the fields of a judgement that name candidates or score them
LISTS = ("pairs", "ties", "ranking", "scores", "good", "bad")
LARGEST_SCORE = 1e30  # training computes in float32, which ends at 3e38
DEEPEST = 100  # lists and objects inside one another in a log: far from where Python's JSON gives up


@dataclass(frozen=True)
class Judgement:
    """What a judge said of the N candidates of one set. `parse` makes one of a mapping with any of

    - "pairs": [[winner, loser], ...]
    - "ties": [[a, b], ...]            (kept for the record; no pair)
    - "ranking": [best, ..., worst]    (an entry may be a list of candidates that tie)
    - "scores": [s0, ..., sN-1]        (higher is better; null where there is none)
    - "good": [a, ...] and "bad": [b, ...]    (thumbs up and down, whatever they are compared with: each good
                                               one is preferred to each bad one)

    in that order of precedence for a pair judged twice, and of these, which make no pair,

    - "open": true                     (not finished yet)
    - "log": {...}                     (the answers as they were given; the judge's own notes: JSON that can
                                        be written down again as it was read)

    as_json  this mapping as it was given: files, names and workflows keep it to the byte
    pairs    the strict ones, (winner, loser), each once
    scores   one for each candidate, or None; () where it has none at all, or several for a candidate
    liked    True (thumb up), False (thumb down) or None for each candidate; () where it has no thumbs
    """

    as_json: dict[str, Any]
    candidates: int
    pairs: tuple[Pair, ...]
    scores: tuple[float | None, ...]
    liked: tuple[bool | None, ...]

    @classmethod
    def parse(cls, said: Any, candidates: int) -> "Judgement":
        """The judgement that a mapping makes of a set with so many candidates.

        Raises ValueError where it is malformed, names a candidate that does not exist, scores another number
        of candidates, or calls one both good and bad.
        """
        _check_fields(said)
        _check_log(said.get("log"))
        scores, levels = said.get("scores", []), _levels(said.get("ranking", []))
        if scores and len(scores) != candidates:
            raise ValueError(f"{len(scores)} scores for {candidates} candidates")
        placed = [candidate for level in levels for candidate in level]
        _check_numbers(placed, candidates)
        liked = _thumbs(said.get("good", []), said.get("bad", []), candidates)
        if len(set(placed)) < len(placed):
            raise ValueError("the ranking places a candidate twice, as if it were two different ones")
        try:
            given = [tuple(pair) for pair in said.get("pairs", [])]
            ties = [tuple(pair) for pair in said.get("ties", [])]
            scored = _scored_pairs(scores)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the picks cannot be read: {error}") from error
        check_candidates(given + ties, candidates)
        ranked = pairs_from_ranking([level for level in levels if level])
        good, bad = ([i for i, thumb in enumerate(liked) if thumb is wanted] for wanted in (True, False))
        pairs = _by_precedence(given, ties, [*ranked, *scored, *product(good, bad)])
        return cls(said, candidates, pairs, _single(scores), liked)

    @classmethod
    def parse_finished(cls, said: Any, candidates: int) -> "Judgement | None":
        """As `parse`; None where nothing was said yet, or not all: what is still open is not looked at."""
        unfinished = said is None or isinstance(said, dict) and said.get("open")
        return None if unfinished else cls.parse(said, candidates)

    @classmethod
    def of_pairs(cls, pairs: Iterable[Pair], candidates: int) -> "Judgement":
        """The judgement that says just these strict pairs."""
        return cls.parse({"pairs": [list(pair) for pair in pairs]}, candidates)

    @property
    def is_finished(self) -> bool:
        """Whether its judge has answered all they meant to."""
        return not self.as_json.get("open")

    @property
    def ties(self) -> set[frozenset[int]]:
        """The pairs of candidates that it calls equal, {frozenset, ...}: its "ties", those who share a place
        in its "ranking" and equal "scores", but none that it judges strictly."""
        scores = self.as_json.get("scores", [])
        equal = [(a, b) for a, b in combinations(range(len(scores)), 2) if None is not scores[a] == scores[b]]
        level = [
            pair for level in _levels(self.as_json.get("ranking", [])) for pair in combinations(level, 2)
        ]
        called = {*map(frozenset, [*self.as_json.get("ties", []), *level, *equal])}
        return called - {*map(frozenset, self.pairs)}


def dominates(a: ArrayLike, b: ArrayLike) -> bool:
    """a is no worse than b in any objective and better in one (Pareto; arXiv 2311.13231, section 5)."""
    a, b = np.atleast_1d(a), np.atleast_1d(b)
    return bool((a >= b).all() and (a > b).any())


def pairs_from_scores(scores: ArrayLike) -> list[Pair]:
    """All strict pairs of N scores (higher is better), [N] or [N, objectives] with Pareto dominance.

    Raises ValueError for a score that is not finite, or too large to learn from.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not (np.abs(scores) <= LARGEST_SCORE).all():
        raise ValueError(f"a score is not a finite number up to {LARGEST_SCORE:.0e}")
    pairs = []
    for a, b in combinations(range(len(scores)), 2):
        if dominates(scores[a], scores[b]):
            pairs.append((a, b))
        elif dominates(scores[b], scores[a]):
            pairs.append((b, a))
    return pairs


def pairs_from_ranking(ranking: Sequence[Any]) -> list[Pair]:
    """All pairs of a ranking, best first. An entry is a candidate, or a list of candidates that tie."""
    return [(w, l) for better, worse in combinations(_levels(ranking), 2) for w in better for l in worse]


def cycle_in(pairs: Iterable[Pair]) -> list[int]:
    """Candidates [a, b, ..., z], from the lowest number on, of which each is picked over the next and z over
    a; [] where the pairs contradict themselves nowhere."""
    winners: dict[int, list[int]] = {}
    for winner, loser in pairs:
        winners.setdefault(loser, []).append(winner)
    try:
        TopologicalSorter(winners).prepare()
    except CycleError as error:
        cycle: list[int] = error.args[1][:-1]
        first = cycle.index(min(cycle))
        return cycle[first:] + cycle[:first]
    return []


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8. A lone surrogate, half a character, is JSON but cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_candidates(pairs: Iterable[Pair], candidates: int) -> None:
    """Raise ValueError unless each pair is of two different ones of so many candidates."""
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"{list(pair)} is not a pair of two different candidates")
        _check_numbers(pair, candidates)


# --- the parts of a judgement ---


def _levels(ranking: Sequence[Any]) -> list[Sequence[int]]:
    return [level if isinstance(level, (list, tuple)) else [level] for level in ranking]


def _thumbs(good: Sequence[int], bad: Sequence[int], candidates: int) -> tuple[bool | None, ...]:
    """A thumb, up, down or None, for each of N candidates; () where there is none."""
    _check_numbers([*good, *bad], candidates)
    if both := {*good} & {*bad}:
        raise ValueError(f"candidate {min(both)} is called both good and bad")
    thumbs = dict.fromkeys(good, True) | dict.fromkeys(bad, False)
    return tuple(map(thumbs.get, range(candidates))) if thumbs else ()


def _single(scores: Sequence[Any]) -> tuple[float | None, ...]:
    several = any(isinstance(score, (list, tuple)) for score in scores)
    return () if several or not any(score is not None for score in scores) else tuple(scores)


def _scored_pairs(scores: Sequence[Any]) -> list[Pair]:
    rated = [i for i, score in enumerate(scores) if score is not None]
    return [(rated[w], rated[l]) for w, l in pairs_from_scores([_number(scores[i]) for i in rated])]


def _by_precedence(given: Sequence[Pair], ties: Sequence[Pair], others: Iterable[Pair]) -> tuple[Pair, ...]:
    """Each strict pair once: those given as such, then of two that do not tie what is said first."""
    judged: dict[frozenset[int], Pair | None] = {}
    for pair in given:
        if judged.setdefault(frozenset(pair), pair) != pair:
            raise ValueError(f"candidates {pair[0]} and {pair[1]} are each picked over the other")
    for tie in ties:
        judged.setdefault(frozenset(tie), None)
    for pair in others:
        judged.setdefault(frozenset(pair), pair)
    return tuple(pair for pair in judged.values() if pair is not None)


# --- what cannot be read ---


def _check_fields(picks: Any) -> None:
    if not isinstance(picks, dict) or not picks:
        raise ValueError(
            'a set\'s picks must be an object with "pairs", "ties", "ranking", "scores", "good" or "bad"'
        )
    unknown = set(picks) - {*LISTS, "open", "log"}
    if unknown:
        raise ValueError(
            f"picks have no field {sorted(unknown)[0]!r}: use pairs, ties, ranking, scores, good or bad"
        )
    for field in LISTS:
        if not isinstance(picks.get(field, []), (list, tuple)):
            raise ValueError(f"the picks cannot be read: {field} is not a list")


def _check_log(log: Any) -> None:
    level = [log]
    for _ in range(DEEPEST + 1):
        texts = [value for value in level if isinstance(value, str)]
        texts += [key for value in level if isinstance(value, dict) for key in value]
        if any(isinstance(value, float) and not math.isfinite(value) for value in level):
            raise ValueError("the log has what is not a finite number, such as 1e999: answer this set again")
        if not all(map(is_text, texts)):
            raise ValueError("the log has what is no whole text, but half a character: answer this set again")
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError(f"the log is nested more than {DEEPEST} deep: answer this set again")


def _number(score: Any) -> Any:
    """A score, or a list of them, that JSON has as numbers."""
    for value in score if isinstance(score, (list, tuple)) else [score]:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"the score {value!r} is not a number")
    return score


def _check_numbers(indices: Iterable[int], candidates: int) -> None:
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < candidates:
            raise ValueError(
                f"there is no candidate {index!r}: this set has {candidates}, numbered 0 to {candidates - 1}"
            )
