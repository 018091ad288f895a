"""Several scores of each candidate, joined to strict pairs.

Scores are [N, K] float64, higher is better, NaN where there is none. A difference of `least` [K] or less is
none. A candidate that lacks a score is in no pair, as nobody knows how it compares.
"""

from collections.abc import Callable
from itertools import permutations
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .judgement import Pair, dominates
from .objectives import Numbers

Joining: TypeAlias = Callable[[Numbers, Numbers], bool]


def no_worse_in_any(difference: Numbers, weights: Numbers) -> bool:
    """Pareto dominance (arXiv 2311.13231, section 5), of a winner's scores [K] less a loser's."""
    return dominates(difference, np.zeros_like(difference))


def better_in_sum(difference: Numbers, weights: Numbers) -> bool:
    """By the weighted sum."""
    return bool(difference @ weights > 0)


def better_in_the_first(difference: Numbers, weights: Numbers) -> bool:
    """In lexical order: the first score that differs decides."""
    (apart,) = difference.nonzero()
    return bool(len(apart) and difference[apart[0]] > 0)


PARETO, SUM, LEXICAL = "no worse in any", "weighted sum", "first that differs"
JOININGS: dict[str, Joining] = {
    PARETO: no_worse_in_any,
    SUM: better_in_sum,
    LEXICAL: better_in_the_first,
}


def joined(name: str, scores: ArrayLike, least: ArrayLike, weights: ArrayLike) -> list[Pair]:
    """The pairs that scores [N, K] make by a name of JOININGS. weights [K] count for SUM alone, there in
    standard deviations among the candidates."""
    scores, least = np.asarray(scores, np.float64), np.asarray(least, np.float64)
    weighed = np.asarray(weights, np.float64) / spread(scores)

    def beats(a: int, b: int) -> bool:
        difference = scores[a] - scores[b]
        difference[np.abs(difference) <= least] = 0
        return JOININGS[name](difference, weighed)

    known = complete(scores).nonzero()[0].tolist()
    return [(a, b) for a, b in permutations(known, 2) if beats(a, b)]


def complete(scores: Numbers) -> NDArray[np.bool_]:
    """Which candidates have all of their scores, [N]."""
    return np.asarray(np.isfinite(scores).all(1))


def sums(scores: ArrayLike, weights: ArrayLike) -> Numbers:
    """Each candidate's weighted sum, [N], in standard deviations from the candidates' mean; NaN for one that
    lacks a score."""
    scores = np.asarray(scores, np.float64)
    known = complete(scores)
    made = np.full(len(scores), np.nan)
    if known.any():
        apart = scores[known] - scores[known].mean(0)
        made[known] = apart / spread(scores) @ np.asarray(weights, np.float64)
    return made


def spread(scores: Numbers) -> Numbers:
    """Standard deviation of each score among the candidates that have all of them, [K]; 1 where these are
    equal, or so near to one another that it is 0."""
    known = scores[complete(scores)]
    if not len(known):
        return np.ones(scores.shape[1])
    own = known.std(0)  # of equal numbers it may be a rounding error
    return np.where((known == known[0]).all(0) | (own == 0), 1.0, own)
