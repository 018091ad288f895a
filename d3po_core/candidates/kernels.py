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


def per_candidate_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over every axis but the first, weighted by a mask [1, ...] where there is one: [N, ...] -> [N]."""
    if mask is None:
        return values.flatten(1).mean(1)
    mask = mask.to(values)
    # sum(mask values) / sum(mask), and with a mask of ones the plain mean to the bit
    return (mask * values).flatten(1).mean(1) / mask.mean()


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
        _require_share("eta", self.eta)

    def std(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """The noise level that the step adds, a 0-d tensor."""
        sigma, sigma_next = _scalars(sigma, sigma_next)
        up = self.eta * sigma_next * (1 - (sigma_next / sigma) ** 2).clamp_min(0).sqrt()
        return torch.minimum(sigma_next, up)

    def kept(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """sigma_down / sigma, a 0-d tensor: the share of the noise in x that is still there afterwards."""
        sigma, sigma_next = _scalars(sigma, sigma_next)
        return (sigma_next**2 - self.std(sigma, sigma_next) ** 2).clamp_min(0).sqrt() / sigma

    def drift(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """1 - sigma_down / sigma, a 0-d tensor."""
        return 1 - self.kept(sigma, sigma_next)

    def mean(self, x: Tensor, x0: Tensor, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """x0 + (sigma_down / sigma) (x - x0), shaped as x."""
        x0 = _wide(x0)
        return x0 + (1 - self.drift(sigma, sigma_next)).to(x0) * (x - x0)

    def pull(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """As `pull_of`."""
        return pull_of(self, sigma, sigma_next)


@dataclass(frozen=True)
class Consistency:
    """The lcm step for epsilon- and v-prediction: x0, and all noise anew (multistep consistency sampling,
    Song et al., arXiv 2303.01469, algorithm 1). For flow models it is FlowCPS(1)."""

    name: ClassVar[str] = "consistency"

    def std(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """sigma_next, a 0-d tensor."""
        (sigma_next,) = _scalars(sigma_next)
        return sigma_next

    def drift(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """1, a 0-d tensor."""
        (sigma,) = _scalars(sigma)
        return torch.ones_like(sigma)

    def mean(self, x: Tensor, x0: Tensor, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """x0, shaped as x."""
        return _wide(x0)

    def pull(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """As `pull_of`."""
        return pull_of(self, sigma, sigma_next)


class _Flow:
    """A step of a flow model, where x = (1 - sigma) x0 + sigma * noise and the network predicts the velocity
    (x - x0) / sigma. mean = keep x + drift x0; the step to sigma 0 is x0 itself."""

    def linear(self: "FlowKernel", sigma: Scalar, sigma_next: Scalar) -> tuple[Tensor, Tensor]:
        """(keep, drift), 0-d tensors: d mean / d x where x0 stays as it is, and d mean / d x0."""
        sigma, sigma_next = _scalars(sigma, sigma_next)
        if sigma_next > 0:
            return self._keep_and_drift(sigma, sigma_next)
        return torch.zeros_like(sigma), torch.ones_like(sigma)

    def drift(self: "FlowKernel", sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """d mean / d x0, a 0-d tensor."""
        return self.linear(sigma, sigma_next)[1]

    def mean(self: "FlowKernel", x: Tensor, x0: Tensor, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """keep x + drift x0, shaped as x."""
        x0 = _wide(x0)
        keep, drift = self.linear(sigma, sigma_next)
        return keep.to(x0) * x + drift.to(x0) * x0

    def pull(self: "FlowKernel", sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """As `pull_of`."""
        return pull_of(self, sigma, sigma_next)


class FlowKernel(Kernel, Protocol):
    """What _Flow is made for."""

    def linear(self, sigma: Scalar, sigma_next: Scalar) -> tuple[Tensor, Tensor]: ...

    def _keep_and_drift(self, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class FlowAncestral(_Flow):
    """The euler_ancestral step of ComfyUI for flow models: an Euler step to a lower noise level, and noise up
    again to the next. It keeps the marginal. eta lies in (0, 1]."""

    name: ClassVar[str] = "flow ancestral"
    eta: float = 1.0

    def __post_init__(self) -> None:
        _require_share("eta", self.eta)

    def std(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """The noise that the step adds, a 0-d tensor."""
        sigma, sigma_next = _scalars(sigma, sigma_next)
        down = self._down(sigma, sigma_next)
        return (sigma_next**2 - (down * (1 - sigma_next) / (1 - down)) ** 2).clamp_min(0).sqrt()

    def _down(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return sigma_next * (1 + (sigma_next / sigma - 1) * self.eta)

    def _keep_and_drift(self, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
        down = self._down(sigma, sigma_next)
        scale = (1 - sigma_next) / (1 - down)
        return scale * down / sigma, scale * (1 - down / sigma)


@dataclass(frozen=True)
class FlowSDE(_Flow):
    """Flow-GRPO's step (arXiv 2505.05470, eq. 9): Euler-Maruyama of the SDE that has the flow's marginals.

    a       how much noise; 0.7 in the paper's code
    second  the schedule's second noise level: as in that code it takes sigma's place where sigma is 1 and
            the noise would be infinite

    The code's last step adds noise that nothing takes off again, and is not trained on. Here it is x0.
    """

    name: ClassVar[str] = "flow sde"
    a: float = 0.7
    second: float = 0.95

    def __post_init__(self) -> None:
        _require_share("a", self.a)

    def std(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """g sqrt(sigma - sigma_next), a 0-d tensor."""
        sigma, sigma_next = _scalars(sigma, sigma_next)
        return (self._variance_rate(sigma) * (sigma - sigma_next)).sqrt() * (sigma_next > 0)

    def _variance_rate(self, sigma: Tensor) -> Tensor:
        """g^2"""
        below_one = sigma if sigma < 1 else torch.full_like(sigma, self.second)
        return self.a**2 * sigma / (1 - below_one)

    def _keep_and_drift(self, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
        half, step = self._variance_rate(sigma) / (2 * sigma), sigma_next - sigma
        velocity = (1 + half * (1 - sigma)) * step
        return 1 + half * step + velocity / sigma, -velocity / sigma


@dataclass(frozen=True)
class FlowCPS(_Flow):
    """Coefficients-preserving sampling (arXiv 2509.05952): of the noise that remains, a part is drawn anew.
    x stays at its noise level in any step. a lies in (0, 1]; 0.8 in the paper's code, and at 1 all noise is
    new."""

    name: ClassVar[str] = "flow cps"
    a: float = 0.8

    def __post_init__(self) -> None:
        _require_share("a", self.a)

    def std(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """sigma_next sin(a pi / 2), a 0-d tensor."""
        (sigma_next,) = _scalars(sigma_next)
        return sigma_next * math.sin(self.a * math.pi / 2)

    def _keep_and_drift(self, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
        old = sigma_next * math.cos(self.a * math.pi / 2)
        return old / sigma, (1 - sigma_next) - old * (1 - sigma) / sigma


@dataclass(frozen=True)
class FlowDDIM(_Flow):
    """DDIM(eta) of a flow model: Ancestral in the coordinates x / (1 - sigma), whose noise level is sigma /
    (1 - sigma). It is the step of ComfyUI's euler_ancestral_cfg_pp. At sigma 1 all noise is new, whatever
    eta, as there. eta lies in (0, 1]."""

    name: ClassVar[str] = "flow ddim"
    eta: float = 1.0

    def __post_init__(self) -> None:
        _require_share("eta", self.eta)

    def std(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """The noise that the step adds, a 0-d tensor."""
        (sigma_next,) = _scalars(sigma_next)
        step, *levels = self._ancestral(sigma, sigma_next)
        return (1 - sigma_next) * step.std(*levels)

    def kept(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        """The share of the noise in x / (1 - sigma) that is still there afterwards, a 0-d tensor."""
        step, *levels = self._ancestral(sigma, sigma_next)
        return step.kept(*levels)

    def _ancestral(self, sigma: Scalar, sigma_next: Scalar) -> tuple[Ancestral, Tensor, Tensor]:
        sigma, sigma_next = _scalars(sigma, sigma_next)
        return Ancestral(1.0 if sigma == 1 else self.eta), sigma / (1 - sigma), sigma_next / (1 - sigma_next)

    def _keep_and_drift(self, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.kept(sigma, sigma_next)
        keep = torch.zeros_like(kept) if kept == 0 else kept * (1 - sigma_next) / (1 - sigma)
        return keep, (1 - sigma_next) * (1 - kept)


def pull_of(kernel: Kernel, sigma: Scalar, sigma_next: Scalar) -> Tensor:
    """std / |d mean / d prediction|, a 0-d tensor. Times this, log-ratios give each step an equal gradient.

    The gradient of a step's log-ratio with respect to what the network predicts, noise or velocity, is
    z |d mean / d prediction| / std with z ~ N(0, I). Over a schedule this factor varies by more than an order
    of magnitude.
    """
    sigma, sigma_next = _scalars(sigma, sigma_next)
    return kernel.std(sigma, sigma_next) / (sigma * kernel.drift(sigma, sigma_next).abs())


def _require_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(
            f"{name} is {value:g}, but must lie in (0, 1]: at 0 a step is deterministic, and a deterministic "
            "step has no log-probability to train on"
        )


KERNELS: dict[str, Callable[..., Kernel]] = {
    kernel.name: kernel for kernel in (Ancestral, FlowAncestral, Consistency, FlowDDIM, FlowSDE, FlowCPS)
}


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


def log_prob(x_next: Tensor, mean: Tensor, std: Scalar, mask: Tensor | None = None) -> Tensor:
    """log N(x_next; mean, std^2) by mean over the latent's elements, [N].

    Here and below a mask [1, C, H, W] weighs the elements: of ones and zeros it is the mean over those inside
    of it, the log-prob of the Gaussian of these alone.
    """
    (std,) = _scalars(std)
    z = (_wide(x_next) - _wide(mean)) / std.to(x_next.device)
    return per_candidate_mean(-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi), mask)


def log_ratio(
    x_next: Tensor, mean: Tensor, ref_mean: Tensor, std: Scalar, mask: Tensor | None = None
) -> Tensor:
    """log p(x_next | mean) - log p(x_next | ref_mean) by mean over the latent's elements, [N].

    It is factored so that no two large numbers are subtracted, and is exactly 0 where the means are equal.
    """
    (std,) = _scalars(std)
    x_next, mean, ref_mean = _wide(x_next), _wide(mean), _wide(ref_mean)
    product = (mean - ref_mean) * ((x_next - mean) + (x_next - ref_mean))
    return per_candidate_mean(product, mask) / (2 * std**2).to(product)


def kl(mean: Tensor, ref_mean: Tensor, std: Scalar, mask: Tensor | None = None) -> Tensor:
    """KL(N(mean, std^2) || N(ref_mean, std^2)) by mean over the latent's elements, [N]."""
    (std,) = _scalars(std)
    squared = (_wide(mean) - _wide(ref_mean)).square()
    return per_candidate_mean(squared, mask) / (2 * std**2).to(squared)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _scalars(*values: Scalar) -> list[Tensor]:
    """0-d float64 tensors: schedule arithmetic is exact enough for any latent's dtype."""
    return [torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in values]
