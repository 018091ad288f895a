"""DOODL (Wallace et al., arXiv 2303.13703): a picture's initial noise, led along the gradient of a score."""

import torch
from torch import Tensor

from .ascent import Ascent, View, followed

MOMENTUM = 0.9  # the paper's


def ascended(noise: Tensor, look: View, updates: int, step: float) -> Ascent:
    """The best picture on a way of so many updates from noise [1, C, H, W].

    Each update goes by `step`, a share of the noise's norm, along the gradients so far (momentum), and then
    back to the norm that the noise began with, as noise of another norm makes no good pictures. Gradients
    count by their direction: the paper's clip at 1e-3 also takes their size away. Raises NonFinite, naming
    the update.
    """
    norm, velocity = noise.norm(), torch.zeros_like(noise)

    def moved(noise: Tensor, gradient: Tensor) -> Tensor:
        nonlocal velocity
        velocity = MOMENTUM * velocity + gradient / gradient.norm()
        noise = noise + step * norm * velocity / velocity.norm()
        noise = noise * (norm / noise.norm())
        return noise

    return followed(noise, look, updates, moved)
