"""ReNO (Eyring et al., arXiv 2406.04312): the initial noise of a picture of one step or few, led along the
gradient of a score, and kept as long as noise is."""

import torch
from torch import Tensor

from .ascent import Ascent, View, followed

# the paper's
MOMENTUM, LONGEST = 0.9, 0.1  # LONGEST is the norm to which gradients are cut
WEIGHT = 0.01  # of the norm's log-likelihood


def by_likelihood(noise: Tensor) -> Tensor:
    """The gradient of log p(r), r = |noise|, by the noise.

    The norm of d numbers of unit Gaussian noise has the chi distribution: log p(r) = (d - 1) log r - r^2 / 2,
    but for a constant. It is highest at r = sqrt(d - 1).
    """
    return noise * ((noise.numel() - 1) / noise.square().sum() - 1)


def ascended(noise: Tensor, look: View, updates: int, learning_rate: float) -> Ascent:
    """The best picture on a way of so many updates from noise [1, C, H, W].

    What rises is score + WEIGHT log p(|noise|), by SGD with Nesterov's momentum; the best picture is that of
    the highest score. Gradients count by their size, up to LONGEST. Raises NonFinite, naming the update.
    """
    velocity = torch.zeros_like(noise)

    def moved(noise: Tensor, gradient: Tensor) -> Tensor:
        nonlocal velocity
        gradient = gradient + WEIGHT * by_likelihood(noise)
        gradient = gradient * (LONGEST / gradient.norm()).clamp(max=1)
        velocity = MOMENTUM * velocity + gradient
        return noise + learning_rate * (gradient + MOMENTUM * velocity)

    return followed(noise, look, updates, moved)
