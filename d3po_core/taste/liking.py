"""A learned taste as something that pictures can be led along: its gradient, by several ways of looking.

A taste that is learned from a few dozen picks also likes what merely happened to go with them, and a
gradient finds such things. Ways of looking that differ, each with a taste of its own from the same picks,
agree in what the artist meant and less in the rest.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import Module

from ..candidates.images import CleanCandidates
from ..candidates.ode import Denoise
from .features import LEVELS, Eye
from .head import Features, Taste, learned


@dataclass(frozen=True)
class Tastes:
    """tastes  learned from the same picks, one for each of an Eye's looks, in their order
    places  of the blocks that the eyes look at
    """

    tastes: tuple[Taste, ...]
    places: Sequence[tuple[int, int]]

    def __post_init__(self) -> None:
        if len(self.tastes) != len(LEVELS):
            raise ValueError(f"there are {len(self.tastes)} tastes for {len(LEVELS)} looks")

    @classmethod
    def learned(
        cls,
        first: Taste,
        places: Sequence[tuple[int, int]],
        rewards: Sequence[dict[int, float]],
        seen: Callable[[int], Sequence[Features]],
    ) -> "Tastes":
        """Of all looks, where the first look's taste is known: seen(look) gives the features of the same sets
        at another, rewards are theirs."""
        others = (learned(seen(look), rewards) for look in range(1, len(LEVELS)))
        return cls((first, *others), places)

    @cached_property
    def name(self) -> str:
        """Of what they have learned."""
        weights = torch.cat([taste.weights for taste in self.tastes])
        return hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:16]

    @cached_property
    def _copies(self) -> list[Taste]:
        """The tastes in tensors that gradients go through: they take none that was made in inference mode."""
        return [
            replace(
                taste,
                scales=[part.clone() for part in taste.scales],
                origin=[part.clone() for part in taste.origin],
                known=[part.clone() for part in taste.known],
                weights=taste.weights.clone(),
            )
            for taste in self.tastes
        ]

    def gradient(
        self, network: Module, denoise: Denoise, images: CleanCandidates, x0: Tensor, draw: int
    ) -> Tensor:
        """As candidates/preferences.py has it for Liking: draw says which look is taken."""
        look = draw % len(self.tastes)
        eye = Eye(network, x0.device, len(x0), self.places, look)
        with torch.enable_grad():
            x0 = x0.detach().requires_grad_()
            liked = self._copies[look].liking(eye.parts(images, denoise, x0))
            (gradient,) = torch.autograd.grad(liked.sum(), x0)
        return gradient
