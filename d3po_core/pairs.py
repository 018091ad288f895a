"""Judged images that come without a trajectory: latents, and the noise that Diffusion-DPO puts on them."""

from dataclasses import dataclass, field

import torch

from .trajectory import LazyTensor

PREDICTIONS = ("epsilon", "v")


@dataclass
class CleanCandidates:
    """N images of one prompt as latents, wherever they come from. Stands where a Trajectory does in Preferences.

    latents  [N, C, H, W] float32 in the model's own latent space: what its sampler ends with at sigma 0
    sigmas   [K] float32, above 0: the noise levels that the model was trained on
    prediction  what the network predicts, one of PREDICTIONS: "epsilon" or "v". It only weighs the error
    set_id, model, settings, conditioning  as a Trajectory's

    latents may be a LazyTensor.
    """

    latents: torch.Tensor | LazyTensor
    sigmas: torch.Tensor
    prediction: str
    set_id: str
    model: str
    settings: dict = field(default_factory=dict)
    conditioning: object = None

    def __post_init__(self):
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction is {self.prediction!r}, but must be one of: {', '.join(PREDICTIONS)}")
        if not len(self.sigmas) or not (self.sigmas > 0).all():
            raise ValueError("noise levels must be above 0, and there must be one at least")

    @property
    def candidates(self):
        return self.latents.shape[0]

    def noised(self, x0, sigma, noise):
        """x at noise level sigma (0-d), in the coordinates of the model's denoiser and shaped as x0.

        epsilon and v: x0 + sigma noise.
        """
        return x0 + sigma.to(x0) * noise.to(x0)

    def target_scale(self, sigma):
        """|d x0 / d prediction| at x = x0 + sigma noise, a 0-d tensor: x0's error divided by it is the prediction's.

        epsilon: x0 = x - sigma epsilon. v (arXiv 2202.00512, appendix D, in the coordinates x / sqrt(1 + sigma^2)):
        x0 = x / (1 + sigma^2) - v sigma / sqrt(1 + sigma^2).
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        return sigma if self.prediction == "epsilon" else sigma / (1 + sigma ** 2).sqrt()

    def draws(self, count, generator):
        """`count` times (sigma, 0-d; noise [1, C, H, W] for all candidates alike).

        The levels are uniform over `sigmas` and stratified, one from each of `count` equal parts: their mean is that of
        independent draws with less variance.
        """
        places = (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / count
        for place in places.tolist():
            sigma = self.sigmas[min(int(place * len(self.sigmas)), len(self.sigmas) - 1)]
            yield sigma, torch.randn(1, *self.latents.shape[1:], generator=generator, dtype=self.latents.dtype)
