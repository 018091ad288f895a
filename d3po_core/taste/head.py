"""A taste learned from judged sets: kernel ridge regression on features, calibrated by cross-validation.

Candidates of one prompt are compared with one another alone, so what is learned from is how features differ
from their set's mean. Every part of the features counts as much as any other, whatever its size. The linear
kernel makes the regression the same as ridge regression on all scaled features together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..candidates.preferences import Preferences
from ..training import implicit
from ..training.randomness import generator_of

RIDGES = (0.01, 0.1, 1.0)  # in means of the kernel's diagonal
MOST_FOLDS = 10
SHUFFLES = 199
# below which a taste is trusted: a wrong trust wastes time, as the leash holds; a wrong distrust wastes picks
CHANCE = 0.2
SIDE = 0.25  # share of a set that is preferred by a taste, and that is rejected
LEAST_SPREAD = 0.05  # of a feature, in means over all of its part's
Features = Sequence[Tensor]  # parts, [N, F] each


@dataclass(frozen=True)
class Taste:
    """scales   of each part, [F]: what its features differ from their mean by, among candidates of a set
    origin   of each part, [F]: the mean of its features over all candidates learned from
    known    of each part, [candidates learned from, F], centred and scaled
    weights  [candidates learned from] float64
    accuracy how often it tells the better of a pair of a set that it was not shown, with an interval; None
             where there are not two sets to try that on
    chance   how probable so high an accuracy is where judgements mean nothing
    """

    scales: list[Tensor]
    origin: list[Tensor]
    known: list[Tensor]
    weights: Tensor
    accuracy: implicit.Accuracy | None = None
    chance: float = 1.0

    @property
    def trusted(self) -> bool:
        """Whether chance hardly explains its accuracy."""
        return self.chance <= CHANCE

    def scores(self, features: Features) -> Tensor:
        """How much each candidate of one set is liked, [N] float64; their mean is 0."""
        return self._liked(features, [part.mean(0) for part in features])

    def liking(self, features: Features) -> Tensor:
        """How much each of any images is liked, whatever they are judged beside, [N] float64: 0 is as much as
        the candidates learned from are on average, 1 a standard deviation among those of a set more. Within a
        set it differs as `scores` do."""
        return self._liked(features, self.origin)

    def _liked(self, features: Features, origin: Features) -> Tensor:
        parts = [(part - mean) / by for part, mean, by in zip(features, origin, self.scales, strict=True)]
        liked: Tensor = kernel(parts, self.known) @ self.weights
        return liked


def learned(sets: Sequence[Features], rewards: Sequence[dict[int, float]]) -> Taste:
    """A Taste from the features of sets of candidates and each set's {candidate: reward}.

    Rewards of a set count by their differences from their mean, in standard deviations. No ridge is chosen,
    as the choice would flatter the accuracy: what is learned is the mean of what each of RIDGES gives. The
    accuracy is found by leaving out whole sets. Raises ValueError where no set has two different rewards.
    """
    judged = [
        ([part[list(given)] for part in features], list(given.values()))
        for features, given in zip(sets, rewards, strict=True)
        if len(set(given.values())) > 1
    ]
    if not judged:
        raise ValueError("preferences: nothing is preferred in them, so there is no taste to learn")
    targets = [standardised(torch.tensor(values, dtype=torch.float64)) for _, values in judged]
    centred = [[part - part.mean(0) for part in features] for features, _ in judged]
    parts = [torch.cat(of_part) for of_part in zip(*centred)]
    scales = [scale(part) for part in parts]
    origin = [torch.cat(of_part).mean(0) for of_part in zip(*(features for features, _ in judged))]
    known = [part / by for part, by in zip(parts, scales)]
    gram, target = kernel(known, known), torch.cat(targets)
    of_set = torch.cat([torch.full((len(values),), i) for i, values in enumerate(targets)])
    taste = Taste(scales, origin, known, solved(gram, target))
    if len(judged) == 1:
        return taste
    guesses = unseen(gram, of_set)
    chance = by_chance(guesses, target, of_set)
    return replace(taste, accuracy=accuracy(guesses @ target, target, of_set), chance=chance)


def best_over_worst(scores: Tensor) -> tuple[tuple[int, int], ...]:
    """(winner, loser) of the SIDE of a set with the highest scores [N] and the SIDE with the lowest: those in
    between are told apart less surely, and pull less apart."""
    order = scores.argsort(descending=True, stable=True).tolist()
    side = max(1, round(SIDE * len(order)))
    losers = order[max(side, len(order) - side) :]
    return tuple((winner, loser) for winner in order[:side] for loser in losers)


def clearest(preferences: Preferences) -> Preferences:
    """The same with the pairs of its best over its worst alone, by its rewards. Beside sets that a taste has
    judged it then weighs as they do, and not by its many pairs of neighbours."""
    members = sorted(preferences.rewards)
    scores = torch.tensor([preferences.rewards[i] for i in members], dtype=torch.float64)
    clear = {(members[winner], members[loser]) for winner, loser in best_over_worst(scores)}
    pairs = tuple(pair for pair in preferences.pairs if pair in clear)
    return replace(preferences, pairs=pairs) if pairs else preferences


def scale(part: Tensor) -> Tensor:
    """What to divide centred features [n, F] by, so that each varies alike and they weigh 1 together. What
    hardly ever varies would be noise if it did."""
    spread = part.square().mean(0).sqrt()
    floor = (LEAST_SPREAD * spread.mean()).clamp(min=torch.finfo(spread.dtype).tiny)
    return spread.maximum(floor) * math.sqrt(len(spread))


def standardised(values: Tensor) -> Tensor:
    centred = values - values.mean()
    return centred / centred.square().mean().sqrt()


def kernel(a: Features, b: Features) -> Tensor:
    """Mean over the parts of the products of a's candidates and b's, [len a, len b] float64."""
    products = [(x @ y.T).double() for x, y in zip(a, b, strict=True)]
    mean: Tensor = torch.stack(products).mean(0)
    return mean


def solved(gram: Tensor, target: Tensor) -> Tensor:
    """Weights of the candidates, [n]."""
    eye = torch.eye(len(gram), dtype=gram.dtype)
    weights: Tensor = sum(
        (torch.linalg.solve(gram + ridge * eye, target) for ridge in RIDGES), start=torch.zeros_like(target)
    )
    return weights / len(RIDGES)


def unseen(gram: Tensor, of_set: Tensor) -> Tensor:
    """[n, n]: times the targets, what each candidate is guessed to be by the sets of other folds than its
    own."""
    folds = of_set % min(MOST_FOLDS, int(of_set.max()) + 1)
    guesses = torch.zeros_like(gram)
    for fold in folds.unique():
        out = folds == fold
        known = torch.eye(int((~out).sum()), dtype=gram.dtype)
        guesses[out.nonzero(), (~out).nonzero().T] = gram[out][:, ~out] @ solved(gram[~out][:, ~out], known)
    return guesses


def by_chance(guesses: Tensor, target: Tensor, of_set: Tensor) -> float:
    """How probable it is that guesses agree so well with targets that mean nothing: by what is left of the
    agreement when rewards are shuffled within their sets, again and again (Phipson and Smyth, 2010)."""
    a, b = _within(of_set)

    def agreement(target: Tensor) -> float:
        guess = guesses @ target
        return float(((guess[a] - guess[b]).sign() * (target[a] - target[b]).sign()).sum())

    found, generator = agreement(target), generator_of("shuffles")
    as_good = 0
    for _ in range(SHUFFLES):
        places = torch.rand(len(target), generator=generator, dtype=torch.float64).add(2 * of_set).argsort()
        as_good += agreement(target[places]) >= found
    return (1 + as_good) / (1 + SHUFFLES)


def _within(of_set: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the two candidates of each pair of a set; sets follow one another."""
    pairs = (of_set[:, None] == of_set[None, :]).triu(1).nonzero()
    return pairs[:, 0], pairs[:, 1]


def accuracy(guess: Tensor, target: Tensor, of_set: Tensor) -> implicit.Accuracy:
    """How often the better of two candidates of a set is told."""
    margins = []
    for i in range(int(of_set.max()) + 1):
        own, meant = guess[of_set == i], target[of_set == i]
        better, worse = (meant[:, None] > meant[None, :]).nonzero().T
        margins.append(own[better] - own[worse])
    return implicit.accuracy(margins)
