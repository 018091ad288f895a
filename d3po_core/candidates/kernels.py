"""Gaussian transition kernels p(x'|x) = N(mean, std^2 I) of stochastic samplers, and what a loss needs of
them.

x is the latent at noise level sigma, x0 the denoiser's estimate there, x_next the latent at sigma_next <
sigma. Latents are [N, C, H, W], or [N, C, F, H, W] for video. Sigmas are scalars (0-d tensors or floats).
Everything computed from a mean is float32 or float64.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = Tensor | float
Description: TypeAlias = Mapping[str, Any]  # JSON: {"name": a kernel's name, parameter: number, ...}


def per_candidate_mean(values: Tensor) -> Tensor:
    """Mean over every axis but the first: [N, ...] -> [N]."""
    return values.flatten(1).mean(1)


class Kernel(Protocol):
    """A Gaussian step between noise levels: a frozen dataclass whose fields are its parameters.

    name  what files call it, a key of KERNELS
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    name: ClassVar[str]

    def mean(self, x: Tensor, x0: Tensor, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """Where the step leads without its noise, shaped as x."""

    def std(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """Standard deviation of the step, a 0-d tensor. It is 0 where the step is deterministic."""

    def drift(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """d mean / d x0, a 0-d tensor: how far the step follows the denoiser."""

    def pull(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """std / |d mean / d epsilon|, a 0-d tensor. Times this, log-ratios give each step an equal
        gradient."""


@dataclass(frozen=True)
class Ancestral:
    """The euler_ancestral step for epsilon- and v-prediction, in coordinates where x = x0 + sigma * noise.

    In the coordinates x / sqrt(1 + sigma^2) it equals DDIM(eta) (Song et al., arXiv 2010.02502, eq. 12 and
    16). eta = 1 is the setting of D3PO (arXiv 2311.13231). eta lies in (0, 1]: at 0 a step is deterministic
    and has no log-prob.
    """

    name: ClassVar[str] = "ancestral"
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise ValueError(
                f"eta is {self.eta:g}, but must lie in (0, 1]: at 0 a step is deterministic, and a "
                "deterministic step has no log-probability to train on"
            )

    def std(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """The noise level that the step adds, a 0-d tensor."""
        sigma, sigma_next = _scalars(sigma, sigma_next)
        up = self.eta * sigma_next * (1 - (sigma_next / sigma) ** 2).clamp_min(0).sqrt()
        return torch.minimum(sigma_next, up)

    def drift(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """1 - sigma_down / sigma, a 0-d tensor."""
        sigma, sigma_next = _scalars(sigma, sigma_next)
        down = (sigma_next**2 - self.std(sigma, sigma_next) ** 2).clamp_min(0).sqrt()
        return 1 - down / sigma

    def mean(self, x: Tensor, x0: Tensor, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """x0 + (sigma_down / sigma) (x - x0), shaped as x."""
        x0 = _wide(x0)
        return x0 + (1 - self.drift(sigma, sigma_next)).to(x0) * (x - x0)

    def pull(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """std / |d mean / d epsilon|, a 0-d tensor. Times this, log-ratios give each step an equal gradient.

        The gradient of a step's log-ratio with respect to the predicted noise is z |d mean / d epsilon| / std
        with z ~ N(0, I). Over a schedule this factor varies by more than an order of magnitude.
        """
        sigma, sigma_next = _scalars(sigma, sigma_next)
        return self.std(sigma, sigma_next) / (sigma * self.drift(sigma, sigma_next))


KERNELS: dict[str, Callable[..., Kernel]] = {kernel.name: kernel for kernel in (Ancestral,)}


def described(kernel: Kernel) -> Description:
    """{"name": its name, parameter: value, ...}, as JSON keeps it."""
    return {"name": kernel.name, **asdict(kernel)}


def kernel_of(description: Description) -> Kernel:
    """The kernel that `described` was given. Raises ValueError for an unknown one."""
    name = description["name"]
    if name not in KERNELS:
        raise ValueError(
            f"its steps are of the kind {name!r}, and this version of the pack knows {', '.join(KERNELS)}: "
            "update the pack"
        )
    return KERNELS[name](**{key: value for key, value in description.items() if key != "name"})


def log_prob(x_next: Tensor, mean: Tensor, std: Scalar) -> Tensor:
    """log N(x_next; mean, std^2) by mean over the latent's elements, [N]."""
    (std,) = _scalars(std)
    z = (_wide(x_next) - _wide(mean)) / std.to(x_next.device)
    return per_candidate_mean(-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi))


def log_ratio(x_next: Tensor, mean: Tensor, ref_mean: Tensor, std: Scalar) -> Tensor:
    """log p(x_next | mean) - log p(x_next | ref_mean) by mean over the latent's elements, [N].

    It is factored so that no two large numbers are subtracted, and is exactly 0 where the means are equal.
    """
    (std,) = _scalars(std)
    x_next, mean, ref_mean = _wide(x_next), _wide(mean), _wide(ref_mean)
    product = (mean - ref_mean) * ((x_next - mean) + (x_next - ref_mean))
    return per_candidate_mean(product) / (2 * std**2).to(product)


def kl(mean: Tensor, ref_mean: Tensor, std: Scalar) -> Tensor:
    """KL(N(mean, std^2) || N(ref_mean, std^2)) by mean over the latent's elements, [N]."""
    (std,) = _scalars(std)
    squared = (_wide(mean) - _wide(ref_mean)).square()
    return per_candidate_mean(squared) / (2 * std**2).to(squared)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _scalars(*values: Scalar) -> list[Tensor]:
    """0-d float64 tensors: schedule arithmetic is exact enough for any latent's dtype."""
    return [torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in values]
