"""The terms whose mean is an update's loss, whatever the method: a step of a trajectory (as in D3PO), a
noised draw of clean candidates (as in Diffusion-DPO), or of what a taste makes of these.

Both hold a policy against the reference by log-ratios. Diffusion-DPO's is that of unit Gaussians around the
two predictions of the target, (reference error - error) / 2 with errors as mean squares over the latent; the
margin inside its sigmoid is then beta (log-ratio of the winner - log-ratio of the loser), as in D3PO. The KL
is that of the same Gaussians.

Of candidates with a mask all these are means over its elements. What lies outside was not sampled, so it has
no log-prob.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..candidates import kernels
from ..candidates.kernels import per_candidate_mean
from ..candidates.ode import Denoise
from . import losses, metrics, tilted
from .randomness import seed

if TYPE_CHECKING:
    from .judged import JudgedSet, NoisedSet, RecordedSet

Chunk: TypeAlias = Tensor | slice  # places of some members
Asked: TypeAlias = Any  # a Tensor; None where the method does not ask for it


class Values(NamedTuple):
    """What a loss needs of the policy, of n candidates each; None is what the method does not ask for.

    With gradients:
    log_ratio          [n] log-ratio to the reference
    kl                 [n] KL to the reference
    sampler_log_ratio  [n] log-ratio to the policy that sampled, of a recorded step
    sampler_shift      [n, C, H, W] x0 - that of the policy that sampled, of a noised draw

    Without:
    sampler_error      [n, C, H, W] x0 of the policy that sampled - the clean candidate, of a noised draw
    direction          [n, C, H, W] gradient of log_ratio with respect to x0, up to a factor that is the same
                       for all candidates
    """

    log_ratio: Tensor
    kl: Asked
    sampler_log_ratio: Asked = None
    sampler_shift: Asked = None
    sampler_error: Asked = None
    direction: Asked = None

    @classmethod
    def joined(cls, parts: Sequence["Values"]) -> "Values":
        """The Values of all candidates, of those of some each."""
        return cls._make(None if field[0] is None else torch.cat(field) for field in zip(*parts))

    def with_gradients(self) -> list[Tensor]:
        return [value for value in self[:4] if value is not None]

    def weighted(self, weight: float) -> "Values":
        """The same with weighted log-ratios and KL."""
        weighted = (None if value is None else weight * value for value in self[:3])
        return Values._make((*weighted, *self[3:]))


class Term:
    """One term of a judged set's loss, over its members: the candidates of which the method learns.

    judged      the set (judged.JudgedSet), with its members and what was said of them
    denoise     the policy that is trained: denoise(x [B, C, H, W], sigma [B]) -> x0, with gradients
    sigma       the noise level that it looks at, 0-d
    mask        [1, C, H, W], the part of the latents that all means are over; None: all of it
    weight, beta, clip  of the log-ratios in the loss
    quarter     1 (least noise) to 4 (most): the part of the noise schedule that it lies in
    usual_margin  moving average of the margins, for methods that adapt to it
    """

    beta: float
    quarter: int
    weight, clip, usual_margin, shift_of_kl = 1.0, 0.0, 0.0, 1.0

    def __init__(self, judged: "JudgedSet", denoise: Denoise, sigma: Tensor) -> None:
        self.judged, self.denoise, self.sigma = judged, denoise, sigma
        self.method, self.settings = judged.method, judged.settings
        self.mask = judged.mask

    def chunks(self) -> tuple[Tensor, ...]:
        """Places of the members that go through the network together."""
        n = len(self.judged.members)
        chunks: tuple[Tensor, ...] = torch.arange(n).split(self.judged.reference.passes.per_pass or n)
        return chunks

    def values(self, chunk: Chunk) -> Values:
        """The Values of members[chunk]."""
        raise NotImplementedError

    def all_values(self, first: int = 0) -> Values:
        """The Values of all members without gradients; chunk after chunk has its own dropout, seeded from
        `first` on."""
        parts = []
        with torch.no_grad():
            for number, chunk in enumerate(self.chunks()):
                seed(first + number, self.judged.device)
                parts.append(self.values(chunk))
        return Values.joined(parts)

    def inside(self, direction: Tensor) -> Tensor:
        """What of a direction [n, C, H, W] a mean over the mask follows."""
        return direction if self.mask is None else self.mask.to(direction) * direction

    def x0(self, x: Tensor) -> Tensor:
        """What the policy makes of x at the term's noise level."""
        return self.denoise(x, self.sigma.to(x).expand(len(x)))

    def loss(self, values: Values) -> Tensor:
        """A scalar, of all members' values."""
        return self.method.loss(self, values.weighted(self.weight))

    def sides(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[n, ...] -> those of the winners and those of the losers, [pairs, ...] each."""
        places = self.judged.places.to(values.device)
        return values[places[:, 0]], values[places[:, 1]]

    def margin(self, log_ratio: Tensor) -> Tensor:
        """Difference of the implicit rewards of each pair, [pairs]."""
        return losses.d3po_margin(*self.sides(self.weight * log_ratio), self.beta)

    def metrics(self, value: Tensor, values: Values) -> dict[str, Tensor]:
        """What to log of the term, 0-d tensors by name."""
        figures, log_ratio = {metrics.LOSS: value}, values.log_ratio
        if len(self.judged.places):
            (w, l), margin = self.sides(log_ratio), self.margin(log_ratio)
            figures |= {metrics.MARGIN: margin.mean(), metrics.ACCURACY: accuracy(margin).mean()}
            if self.clip:
                clipped = losses.clip_fraction(self.weight * torch.cat([w, l]), self.clip)
                figures[metrics.CLIP_FRACTION] = clipped
            if self.method.reference:
                figures |= {metrics.WINNER: w.mean(), metrics.LOSER: l.mean()}
        else:
            sides = {metrics.WINNER: self.judged.liked, metrics.LOSER: self.judged.disliked}
            figures |= {name: log_ratio[of].mean() for name, of in sides.items() if of.any()}
        if values.sampler_log_ratio is not None:
            figures[metrics.CLIP_FRACTION] = losses.ratio_clip_fraction(
                self.weight * values.sampler_log_ratio,
                losses.advantages(self.judged.rewards),
                self.settings.ratio_clip,
            )
        if values.kl is not None:
            figures[metrics.KL] = values.kl.mean()
            figures[metrics.SHIFT] = self.shift_of_kl * figures[metrics.KL]
        return figures | {
            metrics.of_quarter(name, self.quarter): figures[name]
            for name in metrics.BY_QUARTER
            if name in figures
        }


class TrajectoryStep(Term):
    """Step i of a trajectory under D3PO (arXiv 2311.13231). sampled_x0 is that of the policy which sampled,
    where the method asks for it."""

    ref_mean: Tensor
    sampled_mean: Asked

    def __init__(self, judged: "RecordedSet", i: int, ref_x0: Tensor, sampled_x0: Tensor | None) -> None:
        trajectory, settings, members = judged.candidates, judged.settings, judged.members
        super().__init__(judged, judged.example.denoise, trajectory.sigmas[i])
        self.kernel, self.sigma_next = trajectory.kernel, trajectory.sigmas[i + 1]
        self.std = self.kernel.std(self.sigma, self.sigma_next)
        self.quarter = 4 - int(4 * trajectory.way(i))
        self.beta, self.clip = settings.beta, settings.clip if self.method.clamps else 0.0
        pull = float(self.kernel.pull(self.sigma, self.sigma_next))
        self.shift_of_kl = pull**2
        if settings.weighting == "standardised":
            self.weight = pull
        self.x, self.x_next = (trajectory.states[j][members].to(judged.device) for j in (i, i + 1))
        self.ref_mean = self._of_all(ref_x0)
        self.sampled_mean = None if sampled_x0 is None else self._of_all(sampled_x0)

    def _of_all(self, x0: Tensor) -> Tensor:
        """The mean of each member, where x0 [N, C, H, W] is of all candidates."""
        return self._mean(slice(None), x0[self.judged.members].to(self.judged.device))

    def _mean(self, chunk: Chunk, x0: Tensor) -> Tensor:
        return self.kernel.mean(self.x[chunk], x0, self.sigma, self.sigma_next)

    def values(self, chunk: Chunk) -> Values:
        x_next, mean = self.x_next[chunk], self._mean(chunk, self.x0(self.x[chunk]))
        ref_mean, sampled = self.ref_mean[chunk], self.sampled_mean
        return Values(
            kernels.log_ratio(x_next, mean, ref_mean, self.std, self.mask),
            kernels.kl(mean, ref_mean, self.std, self.mask),
            None if sampled is None else kernels.log_ratio(x_next, mean, sampled[chunk], self.std, self.mask),
            direction=self.inside(x_next - mean).detach() if self.method.direction else None,
        )


class NoisedDraw(Term):
    """Clean candidates at one noise level under Diffusion-DPO (arXiv 2311.12908): one noise for all of
    them."""

    def __init__(self, judged: "NoisedSet", sigma: Tensor, noise: Tensor, denoise: Denoise) -> None:
        super().__init__(judged, denoise, sigma)
        images = judged.candidates
        self.beta, self.scale = judged.settings.dpo_beta, images.target_scale(sigma)
        self.quarter = 1 + 4 * int((images.sigmas < sigma).sum()) // len(images.sigmas)
        self.clean = images.latents[:][judged.members].to(judged.device)
        self.x = images.noised(self.clean, sigma, noise)
        self.ref_x0: Asked = None
        self.sampled_x0: Asked = None
        self.ref_error = self.clean.new_zeros(len(self.clean))
        if self.method.reference:
            self.ref_x0 = judged.reference.denoised(denoise, self.x, sigma)
            self.ref_error = self._error(slice(None), self.ref_x0)
        if self.method.sampler:
            same = judged.sampler is judged.reference
            self.sampled_x0 = self.ref_x0 if same else judged.sampler.denoised(denoise, self.x, sigma)

    def _error(self, chunk: Chunk, x0: Tensor) -> Tensor:
        """Mean squared error of the prediction's target, [n]."""
        return per_candidate_mean(((x0 - self.clean[chunk]) / self.scale.to(self.clean)) ** 2, self.mask)

    def values(self, chunk: Chunk) -> Values:
        x0, clean = self.x0(self.x[chunk]), self.clean[chunk]
        sampled = None if self.sampled_x0 is None else self.sampled_x0[chunk]
        return Values(
            losses.error_log_ratio(self._error(chunk, x0), self.ref_error[chunk]),
            kernels.kl(x0, self.ref_x0[chunk], self.scale, self.mask) if self.method.reference else None,
            sampler_shift=None if sampled is None else x0 - sampled,
            sampler_error=None if sampled is None else sampled - clean,
            direction=self.inside(clean - x0).detach() if self.method.direction else None,
        )


class GuidedDraw(NoisedDraw):
    """The same towards what the reference would predict if liked pictures were more probable (tilted.py), in
    place of the clean candidates. `look` is Liking.gradient's draw."""

    def __init__(
        self, judged: "NoisedSet", sigma: Tensor, noise: Tensor, denoise: Denoise, look: int
    ) -> None:
        super().__init__(judged, sigma, noise, denoise)
        reference, images, taste = judged.reference, judged.candidates, judged.preferences.taste
        assert taste is not None  # else no candidate takes part

        def liked(x0: Tensor) -> Tensor:
            with reference.adapter.off():
                network, plain = reference.adapter.root, judged.example.denoise
                return self.inside(taste.gradient(network, plain, images, x0, look))

        with reference.acting():
            shifts = [
                tilted.shift(denoise, self.x[chunk], sigma, images.share(sigma), self.ref_x0[chunk], liked)
                for chunk in self.chunks()
            ]
        self.clean = self.ref_x0 + torch.cat(shifts)
        self.ref_error = self._error(slice(None), self.ref_x0)


def accuracy(margin: Tensor) -> Tensor:
    """1 where a margin is above 0, 0 below, 1/2 at 0."""
    return 0.5 + 0.5 * margin.sign()
