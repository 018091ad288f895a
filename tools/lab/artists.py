"""Simulated artists, who answer in the pack's own forms.

They see their taste's scores and nothing else. A comparison comes out wrong with a fixed probability; what
differs less than they can tell is a tie.
"""

import math
import random
from dataclasses import dataclass

MODES = ("ranking", "pairs", "best", "stars", "thumbs")
STARS = 5


@dataclass(frozen=True)
class Artist:
    """mode    how they are asked, one of MODES
    error   share of the answers that are wrong
    blur    what differs by less than this share of the candidates' standard deviation is a tie to them
    """

    mode: str = "ranking"
    error: float = 0.0
    blur: float = 0.0

    def judge(self, scores, rng):
        """(what is said of candidates of these scores, as a picker's value has it; how many answers that
        took)."""
        return getattr(self, f"_{self.mode}")(list(map(float, scores)), rng)

    def _compare(self, scores, a, b, rng):
        """1: a is better, -1: b is, 0: a tie."""
        middle = sum(scores) / len(scores)
        spread = math.sqrt(sum((score - middle) ** 2 for score in scores) / len(scores))
        if abs(scores[a] - scores[b]) <= self.blur * spread:
            return 0
        said = 1 if scores[a] > scores[b] else -1
        return -said if rng.random() < self.error else said

    def _ranking(self, scores, rng):
        """By inserting one after the other, as the picker asks: few questions imply the rest."""
        levels, answers = [], 0
        for candidate in rng.sample(range(len(scores)), len(scores)):
            low, high, equal = 0, len(levels), None
            while low < high and equal is None:
                middle = (low + high) // 2
                said = self._compare(scores, candidate, levels[middle][0], rng)
                answers += 1
                if said == 0:
                    equal = middle
                elif said > 0:
                    high = middle
                else:
                    low = middle + 1
            if equal is None:
                levels.insert(low, [candidate])
            else:
                levels[equal].append(candidate)
        return {"ranking": [level if len(level) > 1 else level[0] for level in levels]}, answers

    def _pairs(self, scores, rng):
        said = {"pairs": [], "ties": []}
        for a in range(len(scores)):
            for b in range(a + 1, len(scores)):
                better = self._compare(scores, a, b, rng)
                said["pairs" if better else "ties"].append([b, a] if better < 0 else [a, b])
        return said, len(scores) * (len(scores) - 1) // 2

    def _best(self, scores, rng):
        best = max(range(len(scores)), key=scores.__getitem__)
        if rng.random() < self.error:
            best = rng.choice([i for i in range(len(scores)) if i != best])
        return {"pairs": [[best, i] for i in range(len(scores)) if i != best]}, 1

    def _stars(self, scores, rng):
        low, high = min(scores), max(scores)
        stars = [1 + round((STARS - 1) * (score - low) / (high - low or 1)) for score in scores]
        stars = [rng.randint(1, STARS) if rng.random() < self.error else star for star in stars]
        return {"scores": stars}, len(scores)

    def _thumbs(self, scores, rng):
        middle = sorted(scores)[len(scores) // 2]
        up = [(score >= middle) != (rng.random() < self.error) for score in scores]
        thumbs = {True: [], False: []}
        for i, good in enumerate(up):
            thumbs[good].append(i)
        return {"good": thumbs[True], "bad": thumbs[False]}, len(scores)


def chance(*parts):
    """Random numbers of their own for each part of a session."""
    return random.Random(repr(parts))
