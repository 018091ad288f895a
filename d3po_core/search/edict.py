"""Sampling that can be undone exactly, and its gradient at the memory of one pass through the network.

EDICT (Wallace et al., arXiv 2211.12446) carries two latents, each stepped by the noise that the network
predicts at the other, and mixes them after each step. It is DDIM's step, which in the coordinates of
`denoise` (x0 + sigma noise) has the coefficients a = 1 and b = sigma_next - sigma. In the paper's, x / sqrt(1
+ sigma^2), latents of all noise levels have one size, so where the network sees a latent of the next level at
this one, it is brought to this one's size.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..candidates.ode import Denoise

MIXING = 0.93  # p: EDICT's own, and DOODL's


class Pair(NamedTuple):
    """Two latents, [n, C, H, W] each, or the gradients by them. Float64, as the inverse of each mixing makes
    what they differ by 1 / p^2 times as large."""

    x: Tensor
    y: Tensor


def predicted_noise(denoise: Denoise, x: Tensor, sigma: Tensor, size: Tensor | float = 1) -> Tensor:
    """(x - x0) / sigma, of x [n, C, H, W], times its size, and sigma 0-d."""
    x = size * x
    return (x - denoise(x, sigma.expand(len(x)))) / sigma


def mixed(x: Tensor, y: Tensor) -> Pair:
    """The paper's mixing layer."""
    x = MIXING * x + (1 - MIXING) * y
    return Pair(x, MIXING * y + (1 - MIXING) * x)


def unmixed(x: Tensor, y: Tensor) -> Pair:
    """The inverse of `mixed`."""
    y = (y - (1 - MIXING) * x) / MIXING
    return Pair((x - (1 - MIXING) * y) / MIXING, y)


def mixed_gradients(x: Tensor, y: Tensor) -> Pair:
    """The gradients by what `mixed` was given, of those by what it gave: its transpose."""
    x = x + (1 - MIXING) * y
    return Pair(MIXING * x, MIXING * y + (1 - MIXING) * x)


def sampled(denoise: Denoise, start: Tensor, sigmas: Tensor) -> Pair:
    """Both latents at sigmas[-1], from start [n, C, H, W] at sigmas[0]. Of the two the next step would begin
    with x: the roles change with each, as in the paper."""
    x = y = start
    with torch.no_grad():
        for sigma, b, size in steps(sigmas):
            x = x + b * predicted_noise(denoise, y, sigma)
            y = y + b * predicted_noise(denoise, x, sigma, size)
            y, x = mixed(x, y)
    return Pair(x, y)


def inverted(denoise: Denoise, end: Pair, sigmas: Tensor) -> Pair:
    """Both latents at sigmas[0], of those that `sampled` has brought to sigmas[-1]."""
    x, y = end
    with torch.no_grad():
        for sigma, b, size in reversed([*steps(sigmas)]):
            x, y = unmixed(y, x)
            y = y - b * predicted_noise(denoise, x, sigma, size)
            x = x - b * predicted_noise(denoise, y, sigma)
    return Pair(x, y)


def gradient(denoise: Denoise, end: Pair, by_end: Pair, sigmas: Tensor) -> tuple[Tensor, Pair]:
    """The gradient by `sampled`'s start of what has the gradients by_end by its end, and both latents at the
    start, as the inversion finds them.

    Nothing of sampling is kept. The pass through the network by which the inversion undoes half a step is
    also the one that the gradient goes back through, so memory is that of one pass, however many steps there
    are (DOODL, arXiv 2303.13703).
    """
    (x, y), (by_x, by_y) = end, by_end
    for sigma, b, size in reversed([*steps(sigmas)]):
        x, y = unmixed(y, x)
        by_x, by_y = mixed_gradients(by_y, by_x)
        noise, pulled = pulled_back(denoise, x, by_y, sigma, size)
        y, by_x = y - b * noise, by_x + b * pulled
        noise, pulled = pulled_back(denoise, y, by_x, sigma)
        x, by_y = x - b * noise, by_y + b * pulled
    return by_x + by_y, Pair(x, y)


def pulled_back(
    denoise: Denoise, x: Tensor, by_noise: Tensor, sigma: Tensor, size: Tensor | float = 1
) -> tuple[Tensor, Tensor]:
    """The noise predicted at x, and the gradient by x of what has this gradient by the noise."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        noise = predicted_noise(denoise, x, sigma, size)
        (by_x,) = torch.autograd.grad(noise, x, by_noise)
    return noise.detach(), by_x


def steps(sigmas: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(sigma, b, size) of each step."""
    for sigma, following in zip(sigmas, sigmas[1:]):
        yield sigma, following - sigma, ((1 + sigma**2) / (1 + following**2)).sqrt()
