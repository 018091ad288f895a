"""Judgements of the candidates of one set, and the strict preference pairs that they imply.

Candidates are named by their index, 0 to N - 1. A pair is (winner, loser). Ties make no pair: their D3PO loss is a
constant.
"""

import math
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, product

import numpy as np

# the fields of a judgement that name candidates or score them
LISTS = ("pairs", "ties", "ranking", "scores", "good", "bad")
DEEPEST = 100  # lists and objects inside one another in a log: far from where Python's JSON gives up


def dominates(a, b):
    """a is at least as good as b in every objective and better in one (Pareto; arXiv 2311.13231, section 5)."""
    a, b = np.atleast_1d(a), np.atleast_1d(b)
    return bool((a >= b).all() and (a > b).any())


def pairs_from_scores(scores):
    """All strict pairs of N scores (higher is better), [N] or [N, objectives] with Pareto dominance.

    Raises ValueError for a score that is not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("a score is not a finite number")
    pairs = []
    for a, b in combinations(range(len(scores)), 2):
        if dominates(scores[a], scores[b]):
            pairs.append((a, b))
        elif dominates(scores[b], scores[a]):
            pairs.append((b, a))
    return pairs


def pairs_from_ranking(ranking):
    """All pairs of a ranking, best first. An entry is a candidate, or a list of candidates that tie."""
    return [(w, l) for better, worse in combinations(_levels(ranking), 2) for w in better for l in worse]


def cycle_in(pairs):
    """Candidates [a, b, ..., z] of which each is picked over the next and z over a, from the lowest number on; [] where the
    pairs contradict themselves nowhere."""
    winners = {}
    for winner, loser in pairs:
        winners.setdefault(loser, []).append(winner)
    try:
        TopologicalSorter(winners).prepare()
    except CycleError as error:
        cycle = error.args[1][:-1]
        first = cycle.index(min(cycle))
        return cycle[first:] + cycle[:first]
    return []


def is_finished(judgement):
    """Whether there is a judgement and its judge has answered all they meant to."""
    return judgement is not None and not (isinstance(judgement, dict) and judgement.get("open"))


def is_text(value):
    """Whether a string can be written as UTF-8. JSON can name half a character, a lone surrogate, which cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _levels(ranking):
    return [level if isinstance(level, (list, tuple)) else [level] for level in ranking]


def pairs_from_judgement(judgement, candidates):
    """Strict pairs of one set's judgement, a mapping with any of

    - "pairs": [[winner, loser], ...]
    - "ties": [[a, b], ...]            (kept for the record; no pair)
    - "ranking": [best, ..., worst]    (an entry may be a list of candidates that tie)
    - "scores": [s0, ..., sN-1]        (higher is better; null where there is none)
    - "good": [a, ...] and "bad": [b, ...]    (thumbs up and down, whatever they are compared with: each good one is
                                               preferred to each bad one)

    in that order of precedence for a pair judged twice, and of these, which make no pair,

    - "open": true                     (not finished yet)
    - "log": {...}                     (the answers as they were given; the judge's own notes: JSON that can be written
                                        down again as it was read)

    Raises ValueError where the judgement is malformed, names a candidate that does not exist, scores another number of
    candidates, or calls one both good and bad.
    """
    if not isinstance(judgement, dict) or not judgement:
        raise ValueError(
            'a set\'s picks must be an object with "pairs", "ties", "ranking", "scores", "good" or "bad"'
        )
    unknown = set(judgement) - {*LISTS, "open", "log"}
    if unknown:
        raise ValueError(
            f"picks have no field {sorted(unknown)[0]!r}: use pairs, ties, ranking, scores, good or bad"
        )
    for field in LISTS:
        if not isinstance(judgement.get(field, []), (list, tuple)):
            raise ValueError(f"the picks cannot be read: {field} is not a list")
    _check_log(judgement.get("log"))
    scores, levels = judgement.get("scores", []), _levels(judgement.get("ranking", []))
    if scores and len(scores) != candidates:
        raise ValueError(f"{len(scores)} scores for {candidates} candidates")
    placed = [candidate for level in levels for candidate in level]
    _check_numbers(placed, candidates)
    liked = liked_from_judgement(judgement, candidates)
    if len(set(placed)) < len(placed):
        raise ValueError("the ranking places a candidate twice, as if it were two different ones")
    try:
        given = [tuple(pair) for pair in judgement.get("pairs", [])]
        ties = [tuple(pair) for pair in judgement.get("ties", [])]
        rated = [i for i, score in enumerate(scores) if score is not None]
        scored = [(rated[w], rated[l]) for w, l in pairs_from_scores([_number(scores[i]) for i in rated])]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the picks cannot be read: {error}") from error
    check_candidates(given + ties, candidates)
    ranked = pairs_from_ranking([level for level in levels if level])
    good, bad = ([i for i, thumb in enumerate(liked) if thumb is wanted] for wanted in (True, False))
    judged = {}
    for pair in given:
        if judged.setdefault(frozenset(pair), pair) != pair:
            raise ValueError(f"candidates {pair[0]} and {pair[1]} are each picked over the other")
    for tie in ties:
        judged.setdefault(frozenset(tie), None)
    for pair in [*ranked, *scored, *product(good, bad)]:
        judged.setdefault(frozenset(pair), pair)
    return [pair for pair in judged.values() if pair is not None]


def scores_from_judgement(judgement):
    """Its "scores" as Preferences has them; () where it has none, or has several for a candidate."""
    scores = judgement.get("scores", [])
    several = any(isinstance(score, (list, tuple)) for score in scores)
    return () if several or not any(score is not None for score in scores) else tuple(scores)


def liked_from_judgement(judgement, candidates):
    """Its thumbs, up (True) for "good" and down (False) for "bad", for each of N candidates; () where it has none.

    Raises ValueError where they name a candidate that does not exist, or one is both.
    """
    good, bad = judgement.get("good", []), judgement.get("bad", [])
    _check_numbers([*good, *bad], candidates)
    if both := {*good} & {*bad}:
        raise ValueError(f"candidate {min(both)} is called both good and bad")
    thumbs = dict.fromkeys(good, True) | dict.fromkeys(bad, False)
    return tuple(map(thumbs.get, range(candidates))) if thumbs else ()


def _check_log(log):
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


def _number(score):
    """A score, or a list of them, that JSON has as numbers."""
    for value in score if isinstance(score, (list, tuple)) else [score]:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"the score {value!r} is not a number")
    return score


def check_candidates(pairs, candidates):
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"{list(pair)} is not a pair of two different candidates")
        _check_numbers(pair, candidates)


def _check_numbers(indices, candidates):
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < candidates:
            raise ValueError(
                f"there is no candidate {index!r}: this set has {candidates}, numbered 0 to {candidates - 1}"
            )
