"""Judged images that come without a trajectory: latents, and the noise that Diffusion-DPO puts on them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from .kernels import Scalar
from .trajectory import LazyTensor, require_mask

PREDICTIONS = ("epsilon", "v", "flow")


@dataclass
class CleanCandidates:
    """N images of one prompt as latents, wherever they come from. Preferences take them like a Trajectory.

    latents     [N, C, H, W] float32 in the model's own latent space, as its sampler ends at sigma 0; may be a
                LazyTensor
    sigmas      [K] float32, above 0: the noise levels of the model; for flow not above 1
    prediction  what the network predicts, one of PREDICTIONS: "epsilon", "v" or "flow" (rectified flow's
                velocity, noise - x0, as in SD3 and Flux). It sets the weight of the error and how x0 and
                noise are mixed
    noise       [1 or N, C, H, W], the noise that the candidates were sampled from, the same for all. `draws`
                then gives it instead of fresh noise. None where it is not known or not wanted
    mask        [1, C, H, W] float32, 0...1: the part of the latents that is judged, and learned from. None:
                all of it

    set_id, model, settings and conditioning are those of a Trajectory.

    Images noised with the noise they came from lie nearer to the states that sampling went through (PNAPO,
    arXiv 2605.09433, made for flow models, whose paths are nearly straight). The less noise the sampler's
    steps add, the better this holds.
    """

    recorded: ClassVar[bool] = False

    latents: Tensor | LazyTensor
    sigmas: Tensor
    prediction: str
    set_id: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    conditioning: object = None
    noise: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction is {self.prediction!r}, but must be one of: {', '.join(PREDICTIONS)}"
            )
        if not len(self.sigmas) or not (self.sigmas > 0).all():
            raise ValueError("noise levels must be above 0, and there must be one at least")
        if self.prediction == "flow" and self.sigmas.max() > 1 + 1e-6:  # a shift may round the last one up
            raise ValueError(
                f"the noise levels of a flow model must not be above 1, but one is {self.sigmas.max():g}"
            )
        if self.noise is not None:
            if len(self.noise) not in (1, self.count) or self.noise.shape[1:] != self.latents.shape[1:]:
                raise ValueError(
                    f"noise {list(self.noise.shape)} does not fit latents {list(self.latents.shape)}"
                )
            if (self.noise != self.noise[:1]).any():
                raise ValueError("the candidates of a set must have been sampled from the same noise")
            self.noise = self.noise[:1].clone()
        if self.mask is not None:
            require_mask(self.mask, self.latent_shape)

    @property
    def count(self) -> int:
        """N"""
        return self.latents.shape[0]

    @property
    def latent_shape(self) -> torch.Size:
        """[N, C, H, W] of the candidates."""
        return self.latents.shape

    @property
    def levels(self) -> Tensor:
        """sigmas"""
        return self.sigmas

    def looked_at(self) -> tuple[Tensor, Tensor]:
        """(x [1, C, H, W], sigma 0-d): the first one as it is, at the noise level halfway."""
        return self.latents[:1], self.sigmas[len(self.sigmas) // 2]

    def noised(self, x0: Tensor, sigma: Scalar, noise: Tensor) -> Tensor:
        """x at noise level sigma (0-d), in the coordinates of the model's denoiser and shaped as x0.

        epsilon and v: x0 + sigma noise. flow: (1 - sigma) x0 + sigma noise (arXiv 2209.03003, eq. 1).
        """
        sigma = torch.as_tensor(sigma).to(x0)
        return (1 - sigma if self.prediction == "flow" else 1) * x0 + sigma * noise.to(x0)

    def share(self, sigma: Scalar) -> Tensor:
        """How much of x0 is in x at noise level sigma, 0-d float64: 1, or 1 - sigma for flow."""
        return self.noised(torch.ones((), dtype=torch.float64), sigma, torch.zeros(()))

    def target_scale(self, sigma: Scalar) -> Tensor:
        """|d x0 / d prediction| at a fixed x, a 0-d tensor. x0's error divided by it is the prediction's.

        epsilon: x0 = x - sigma epsilon. flow: x0 = x - sigma v. v (arXiv 2202.00512, appendix D, in the
        coordinates x / sqrt(1 + sigma^2)): x0 = x / (1 + sigma^2) - v sigma / sqrt(1 + sigma^2).
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        return sigma / (1 + sigma**2).sqrt() if self.prediction == "v" else sigma

    def draws(self, count: int, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """`count` pairs of a sigma, 0-d, and a noise [1, C, H, W] that all candidates share.

        The levels are uniform over `sigmas` and stratified, one from each of `count` equal parts. Their mean
        is that of independent draws, with less variance. Uniform is Diffusion-DPO's choice. A flow model's
        levels include its shift, so training looks where its sampler spends its steps. SD3 was trained on
        logit-normal levels, and some preference trainers (Flow-GRPO's DPO) keep to these; they seldom look at
        the first steps, where an image as a whole is decided. Every level's error has the same weight, which
        Flow-DPO (arXiv 2501.13918) found better than the weights of its bound.
        """
        places = (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / count
        for place in places.tolist():
            sigma = self.sigmas[min(int(place * len(self.sigmas)), len(self.sigmas) - 1)]
            noise = self.noise
            if noise is None:
                noise = torch.randn(1, *self.latents.shape[1:], generator=generator, dtype=self.latents.dtype)
            yield sigma, noise
