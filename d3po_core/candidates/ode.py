"""Sampling without noise in its steps."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

Denoise: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (x [n, C, H, W], sigma [n]) -> x0


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """x [n, C, H, W] at sigmas[0], brought to sigmas[-1] along the probability-flow ODE by Euler's steps
    (arXiv 2206.00364, algorithm 1 without its correction)."""
    for sigma, following in zip(sigmas.to(x), sigmas[1:].to(x)):
        x = x + (x - denoise(x, sigma.expand(len(x)))) / sigma * (following - sigma)
    return x
