"""The terms whose mean is an update's loss, whatever the method: a step of a trajectory (as in D3PO), a noised draw of
clean candidates (as in Diffusion-DPO).

Both hold a policy against the reference by log-ratios. Diffusion-DPO's is that of unit Gaussians around the two
predictions of the target, (reference error - error) / 2 with errors as mean squares over the latent; the margin inside
its sigmoid is then beta (log-ratio of the winner - log-ratio of the loser), as in D3PO. The KL is that of the same
Gaussians.
"""

from typing import NamedTuple

import torch

from ..candidates import kernels
from ..candidates.kernels import per_candidate_mean
from . import losses
from . import metrics as named
from .methods import LIKED


class Values(NamedTuple):
    """What a loss needs of the policy, of n candidates each; with gradients but for the direction.

    log_ratio          [n] log-ratio to the reference
    kl                 [n] KL to the reference; None where the method has no reference
    sampler_log_ratio  [n] log-ratio to the policy that sampled; None where the method does not ask for it
    direction          [n, C, H, W] gradient of log_ratio with respect to x0, up to a factor that is the same for all
                       candidates; None where the method does not ask for it
    """

    log_ratio: torch.Tensor
    kl: torch.Tensor | None
    sampler_log_ratio: torch.Tensor | None = None
    direction: torch.Tensor | None = None

    @classmethod
    def joined(cls, parts):
        """The Values of all candidates, of those of some each."""
        return cls(*(None if field[0] is None else torch.cat(field) for field in zip(*parts)))

    def weighted(self, weight):
        return self._replace(
            **{
                name: weight * value
                for name, value in self._asdict().items()
                if value is not None and name != "direction"
            }
        )


class Term:
    """One term of a set's loss, over those of its candidates of which the method learns.

    candidates  [n] their indices, each once, however many pairs it is in
    places      [pairs, 2] winner and loser of each pair of these, as places in `candidates`
    weight, beta, clip  of the log-ratios in the loss
    quarter     1 (least noise) to 4 (most): the part of the noise schedule that it lies in
    usual_margin  moving average of the margins, for methods that adapt to it
    """

    weight, clip, usual_margin = 1.0, 0.0, 0.0

    def __init__(self, preferences, method, settings):
        self.preferences, self.method, self.settings = preferences, method, settings
        names = method.candidates(preferences)
        place = {name: i for i, name in enumerate(names)}
        pairs = (
            []
            if method.of == LIKED
            else [(place[w], place[l]) for w, l in preferences.pairs if w in place and l in place]
        )
        self.candidates, self.places = (
            torch.tensor(names),
            torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        )

    def values(self, chunk):
        """The Values of candidates[chunk]."""
        raise NotImplementedError

    def loss(self, values):
        """A scalar, of all candidates' values."""
        return self.method.loss(self, values.weighted(self.weight))

    def sides(self, values):
        """[n, ...] -> those of the winners and those of the losers, [pairs, ...] each."""
        return (values[self.places[:, side].to(values.device)] for side in (0, 1))

    def margin(self, log_ratio):
        """Difference of the implicit rewards of each pair, [pairs]."""
        return losses.d3po_margin(*self.sides(self.weight * log_ratio), self.beta)

    @property
    def rewards(self):
        """[n]"""
        rewards = self.preferences.rewards
        return torch.tensor([rewards[i] for i in self.candidates.tolist()], device=self.device)

    @property
    def liked(self):
        """[n] bool"""
        labels = self.preferences.labels
        return torch.tensor([labels[i] for i in self.candidates.tolist()], device=self.device)

    def metrics(self, value, values):
        """What to log of the term, 0-d tensors by name."""
        told, log_ratio = {named.LOSS: value}, values.log_ratio
        if len(self.places):
            (w, l), margin = self.sides(log_ratio), self.margin(log_ratio)
            told |= {named.MARGIN: margin.mean(), named.ACCURACY: accuracy(margin).mean()}
            if self.clip:
                told[named.CLIP_FRACTION] = losses.clip_fraction(self.weight * torch.cat([w, l]), self.clip)
            told |= {named.WINNER: w.mean(), named.LOSER: l.mean()} if self.method.reference else {}
        else:
            liked = self.preferences.labels
            for name, wanted in ((named.WINNER, True), (named.LOSER, False)):
                of = [
                    i
                    for i, candidate in enumerate(self.candidates.tolist())
                    if liked.get(candidate) is wanted
                ]
                told |= {name: log_ratio[of].mean()} if of else {}
        if values.sampler_log_ratio is not None:
            told[named.CLIP_FRACTION] = losses.ratio_clip_fraction(
                self.weight * values.sampler_log_ratio,
                losses.advantages(self.rewards),
                self.settings.ratio_clip,
            )
        if values.kl is not None:
            told[named.KL] = values.kl.mean()
        return told | {
            named.of_quarter(name, self.quarter): told[name] for name in named.BY_QUARTER if name in told
        }


class TrajectoryStep(Term):
    """Step i of a trajectory under D3PO (arXiv 2311.13231). sampled_x0 is that of the policy which sampled, where the
    method asks for it."""

    def __init__(self, example, i, ref_x0, sampled_x0, denoise, method, settings, device):
        super().__init__(example.preferences, method, settings)
        trajectory, self.device = example.trajectory, device
        self.kernel, self.denoise = trajectory.kernel, denoise
        self.sigma, self.sigma_next = trajectory.sigmas[i], trajectory.sigmas[i + 1]
        self.std = self.kernel.std(self.sigma, self.sigma_next)
        self.quarter = 4 - 4 * i // (len(trajectory.sigmas) - 1)
        self.beta, self.clip = settings.beta, settings.clip if method.clamps else 0.0
        if settings.weighting == "standardised":
            self.weight = float(self.kernel.pull(self.sigma, self.sigma_next))
        self.x, self.x_next = (trajectory.states[j][self.candidates].to(device) for j in (i, i + 1))
        self.ref_mean, self.sampled_mean = (
            None if x0 is None else self._mean(slice(None), x0[self.candidates].to(device))
            for x0 in (ref_x0, sampled_x0)
        )

    def _mean(self, chunk, x0):
        return self.kernel.mean(self.x[chunk], x0, self.sigma, self.sigma_next)

    def values(self, chunk):
        x_next, mean = self.x_next[chunk], self._mean(chunk, self.denoise(self.x[chunk], self.sigma))
        sampled = self.sampled_mean
        return Values(
            kernels.log_ratio(x_next, mean, self.ref_mean[chunk], self.std),
            kernels.kl(mean, self.ref_mean[chunk], self.std),
            None if sampled is None else kernels.log_ratio(x_next, mean, sampled[chunk], self.std),
            (x_next - mean).detach() if self.method.direction else None,
        )


class NoisedDraw(Term):
    """Clean candidates at one noise level under Diffusion-DPO (arXiv 2311.12908): one noise for all of them."""

    def __init__(self, example, sigma, noise, ref_denoise, denoise, method, settings, device):
        super().__init__(example.preferences, method, settings)
        clean, self.device = example.trajectory, device
        self.sigma, self.denoise, self.beta = sigma, denoise, settings.dpo_beta
        self.scale = clean.target_scale(sigma)
        self.quarter = 1 + 4 * int((clean.sigmas < sigma).sum()) // len(clean.sigmas)
        self.x0 = clean.latents[:][self.candidates].to(device)
        self.x = clean.noised(self.x0, sigma, noise)
        self.ref_x0, self.ref_error = None, torch.zeros(len(self.x0), device=device, dtype=self.x0.dtype)
        if method.reference:
            self.ref_x0 = ref_denoise(self.x, sigma)
            self.ref_error = self._error(slice(None), self.ref_x0)

    def _error(self, chunk, x0):
        """Mean squared error of the prediction's target, [n]."""
        return per_candidate_mean(((x0 - self.x0[chunk]) / self.scale.to(self.x0)) ** 2)

    def values(self, chunk):
        x0 = self.denoise(self.x[chunk], self.sigma)
        return Values(
            losses.error_log_ratio(self._error(chunk, x0), self.ref_error[chunk]),
            kernels.kl(x0, self.ref_x0[chunk], self.scale) if self.method.reference else None,
            direction=(self.x0[chunk] - x0).detach() if self.method.direction else None,
        )


def accuracy(margin):
    """1 where a margin is above 0, 0 below, 1/2 at 0."""
    return 0.5 + 0.5 * margin.sign()
