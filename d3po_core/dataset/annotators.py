"""Several annotators' judgements of the same candidates: joined, and how far they agree."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import comb

from ..candidates.judgement import Pair

JOININGS = ("all", "majority", "unanimous")


def _require_joining(joining: str) -> None:
    if joining not in JOININGS:
        raise ValueError(f"there is no joining {joining!r}: use {', '.join(JOININGS)}")


def join(judged: Iterable[Iterable[Pair]], joining: str = "all") -> list[Pair]:
    """Strict pairs [(winner, loser), ...], sorted, of several annotators' lists of such pairs.

    Each pair comes once, however many annotators made it. Where they contradict one another,

    - "all" keeps both directions
    - "majority" keeps a direction that more annotators chose than its opposite
    - "unanimous" keeps a direction whose opposite nobody chose

    Who calls two candidates equal, or did not compare them, has no vote on that pair.
    """
    _require_joining(joining)
    votes = Counter((winner, loser) for pairs in judged for winner, loser in pairs)
    keep: dict[str, Callable[[int, int], bool]] = {
        "all": lambda w, l: True,
        "majority": lambda w, l: votes[w, l] > votes[l, w],
        "unanimous": lambda w, l: not votes[l, w],
    }
    return sorted(pair for pair in votes if keep[joining](*pair))


def join_liked(judged: Iterable[Sequence[bool | None]], joining: str = "all") -> tuple[bool | None, ...]:
    """One thumb for each of N candidates, True, False or None, of several annotators' such N-tuples, each ()
    without any thumb; () if all are.

    A candidate has but one label: "all" and "majority" take what more annotators said, and None where they
    are equally many; "unanimous" takes what nobody contradicts.
    """
    _require_joining(joining)

    def label(thumbs: tuple[bool | None, ...]) -> bool | None:
        up, down = thumbs.count(True), thumbs.count(False)
        undecided = up and down if joining == "unanimous" else up == down
        return None if undecided or not (up or down) else up > down

    return tuple(label(thumbs) for thumbs in zip(*filter(None, judged)))


def agreement(sets: Iterable[Iterable[Iterable[Pair]]]) -> float | None:
    """Share, 0 to 1, of the pairs of annotators who agree, over all pairs of candidates that two or more of
    them judged strictly; None if there are none. `sets` holds for each set its annotators' lists of pairs."""
    agreeing = all_pairs = 0
    for judged in sets:
        votes = Counter((winner, loser) for pairs in judged for winner, loser in pairs)
        for (a, b), votes_for in votes.items():
            if a < b or not votes[b, a]:
                against = votes[b, a]
                agreeing += comb(votes_for, 2) + comb(against, 2)
                all_pairs += comb(votes_for + against, 2)
    return agreeing / all_pairs if all_pairs else None
