"""Search by any score: the best of several pictures, and step by step towards better initial noise.

The search is the zeroth-order one of Ma et al., "Inference-time scaling for diffusion models beyond scaling
denoising steps" (arXiv 2501.09732).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor

from ..candidates.objectives import Numbers

# noises [n, C, H, W] -> their pictures' scores [n], NaN where there is none, and what was made of each
Judge: TypeAlias = Callable[[Tensor], tuple[Numbers, Sequence[Any]]]


class NoScore(ValueError):
    """Nothing that was made has a score that is a finite number."""


class Found(NamedTuple):
    """noise    [1, C, H, W], the last pivot
    made     what was made of it
    history  the pivot's score before the first round, NaN where it has none, and after each
    """

    noise: Tensor
    made: Any
    history: list[float]


def best_first(scores: Numbers) -> list[int]:
    """Places of the scores [N] from the highest on; those that are not finite are left out."""
    order = np.argsort(-scores, kind="stable")
    return [int(place) for place in order if np.isfinite(scores[place])]


def gain(scores: Numbers) -> float:
    """How far the best of scores [N] lies above their mean, in their standard deviations; 0 where they are
    equal, or there are not two."""
    known = scores[np.isfinite(scores)]
    spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return float(known.max() - known.mean()) / spread if spread else 0.0


def neighbours(pivot: Tensor, count: int, step: float, generator: Generator) -> Tensor:
    """[count, C, H, W] at a distance from a pivot [1, C, H, W]: sqrt(1 - step^2) pivot + step noise, which
    is unit Gaussian as the pivot is. step is in 0...1; at 1 nothing is left of the pivot."""
    noise = torch.randn((count, *pivot.shape[1:]), generator=generator, dtype=pivot.dtype)
    return math.sqrt(1 - step**2) * pivot + step * noise


def searched(
    pivot: Tensor, judge: Judge, rounds: int, count: int, step: float, generator: Generator
) -> Found:
    """Walk from a pivot [1, C, H, W] to the best of its neighbours, as long as that is better, for so many
    rounds. The first round judges the pivot beside them. Raises NoScore."""
    near = neighbours(pivot, count, step, generator)
    scores, made = judge(torch.cat([pivot, near]))
    found = Found(pivot, made[0], [float(scores[0])])
    for number in range(rounds):
        if number == 0:
            scores, made = scores[1:], made[1:]
        else:
            near = neighbours(found.noise, count, step, generator)
            scores, made = judge(near)
        best, now = best_first(scores)[:1], found.history[-1]
        if best and not scores[best[0]] <= now:  # also where the pivot has none
            place = best[0]
            found = Found(near[place : place + 1], made[place], [*found.history, float(scores[place])])
        else:
            found.history.append(now)
    if not np.isfinite(found.history[-1]):
        raise NoScore("no picture has a score that is a finite number, so there is nothing to search by")
    return found
