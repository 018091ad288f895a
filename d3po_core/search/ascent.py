"""A picture's initial noise, led along the gradient of a score."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor


class Look(NamedTuple):
    """A picture of some noise: its score, what was made, and gradient(), of the score by the noise, which
    takes as long as sampling and more."""

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
Move: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (noise, the score's gradient there) -> the next noise


class NonFinite(ValueError):
    """A score or a gradient is not a finite number."""


def followed(noise: Tensor, look: View, updates: int, moved: Move) -> Ascent:
    """The best picture on a way of so many updates from noise [1, C, H, W]. Where there is no gradient, the
    way ends. Raises NonFinite, naming the update."""
    best: tuple[Tensor, Any] = noise, None
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
        noise = moved(noise, gradient)
    return Ascent(*best, history)


def require_finite(values: Tensor, what: str, number: int) -> None:
    if not values.isfinite().all():
        raise NonFinite(
            f"the {what} after {number} updates is not a finite number. Run the model and the VAE in bf16 or "
            "fp32, or choose another scorer"
        )
