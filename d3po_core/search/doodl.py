"""DOODL (Wallace et al., arXiv 2303.13703): a picture's initial noise, led along the gradient of a score."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

MOMENTUM = 0.9  # the paper's


class Look(NamedTuple):
    """A picture of some noise: its score, what was made, and gradient(), of the score by the noise but for
    its size, which takes as long as sampling and more."""

    score: float
    made: Any
    gradient: Callable[[], Tensor]


class Ascent(NamedTuple):
    """noise    of the best picture
    made     what was made of it
    history  each picture's score: the first is before any update
    """

    noise: Tensor
    made: Any
    history: list[float]

    @property
    def score(self) -> float:
        return max(self.history)


View: TypeAlias = Callable[[Tensor], Look]


class NonFinite(ValueError):
    """A score or a gradient is not a finite number."""


def ascended(noise: Tensor, look: View, updates: int, step: float) -> Ascent:
    """The best picture on a way of so many updates from noise [1, C, H, W].

    Each update goes by `step`, a share of the noise's norm, along the gradients so far (momentum), and then
    back to the norm that the noise began with, as noise of another norm makes no good pictures. Gradients
    count by their direction: the paper's clip at 1e-3 also takes their size away. Where there is none, the
    way ends. Raises NonFinite, naming the update.
    """
    norm, velocity, best = noise.norm(), torch.zeros_like(noise), (noise, None)
    history: list[float] = []
    for number in range(updates + 1):
        seen = look(noise)
        require_finite(torch.tensor(seen.score), "score", number)
        if seen.score > max(history, default=-math.inf):
            best = noise, seen.made
        history.append(seen.score)
        if number == updates:
            break
        gradient = seen.gradient()
        require_finite(gradient, "gradient", number)
        if not gradient.any():
            break
        velocity = MOMENTUM * velocity + gradient / gradient.norm()
        noise = noise + step * norm * velocity / velocity.norm()
        noise = noise * (norm / noise.norm())
    return Ascent(*best, history)


def require_finite(values: Tensor, what: str, number: int) -> None:
    if not values.isfinite().all():
        raise NonFinite(
            f"the {what} after {number} updates is not a finite number. Run the model and the VAE in bf16 or "
            "fp32, or choose another scorer"
        )
