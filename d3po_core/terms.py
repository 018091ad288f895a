"""The terms whose mean is an update's loss: a step of a trajectory (D3PO), a noised draw of clean candidates
(Diffusion-DPO).

Both hold a policy against the reference by log-ratios. Diffusion-DPO's is that of unit Gaussians around the two
predictions of the target, (reference error - error) / 2 with errors as mean squares over the latent; the margin inside
its sigmoid is then beta (log-ratio of the winner - log-ratio of the loser), as in D3PO. The KL is that of the same
Gaussians.
"""

import torch

from . import loss, transition
from .transition import per_candidate_mean


class Term:
    """One term over the pairs of a set, [(winner, loser), ...]. Candidates outside every pair are left out.

    candidates  [n] indices of those that take part, each once, however many pairs it is in
    weight, beta, clip  of the log-ratios in the loss
    """

    weight, clip = 1.0, 0.0

    def __init__(self, pairs):
        self.candidates, self.places = torch.tensor(pairs).unique(return_inverse=True)

    def values(self, chunk):
        """(what the loss needs of the policy, with gradients; KL to the reference) of candidates[chunk], [n] each."""
        raise NotImplementedError

    def loss(self, values):
        """Mean over the pairs, a scalar, of all candidates' values."""
        raise NotImplementedError

    def log_ratio(self, values):
        """Of policy to reference, [n], of all candidates' values."""
        raise NotImplementedError

    def winners_and_losers(self, values):
        """[n] -> [pairs] and [pairs]."""
        return (values[self.places[:, side].to(values.device)] for side in (0, 1))

    def margin(self, log_ratio):
        """Difference of the implicit rewards of each pair, [pairs]."""
        return loss.d3po_margin(*self.winners_and_losers(self.weight * log_ratio), self.beta)


class TrajectoryStep(Term):
    """Step i of a trajectory under D3PO (arXiv 2311.13231)."""

    def __init__(self, pairs, trajectory, i, ref_x0, denoise, settings, device):
        super().__init__(pairs)
        self.kernel, self.denoise = trajectory.kernel, denoise
        self.sigma, self.sigma_next = trajectory.sigmas[i], trajectory.sigmas[i + 1]
        self.std = self.kernel.std(self.sigma, self.sigma_next)
        self.beta, self.clip = settings.beta, settings.clip
        if settings.weighting == "standardised":
            self.weight = float(self.kernel.pull(self.sigma, self.sigma_next))
        self.x, self.x_next, ref_x0 = (t[self.candidates].to(device) for t in (
            trajectory.states[i], trajectory.states[i + 1], ref_x0))
        self.ref_mean = self._mean(slice(None), ref_x0)

    def _mean(self, chunk, x0):
        return self.kernel.mean(self.x[chunk], x0, self.sigma, self.sigma_next)

    def values(self, chunk):
        mean, ref_mean = self._mean(chunk, self.denoise(self.x[chunk], self.sigma)), self.ref_mean[chunk]
        return (transition.log_ratio(self.x_next[chunk], mean, ref_mean, self.std),
                transition.kl(mean.detach(), ref_mean, self.std))

    def loss(self, log_ratio):
        return loss.d3po(*self.winners_and_losers(self.weight * log_ratio), self.beta, self.clip)

    def log_ratio(self, log_ratio):
        return log_ratio


class NoisedDraw(Term):
    """Clean candidates at one noise level under Diffusion-DPO (arXiv 2311.12908): one noise for all of them."""

    def __init__(self, pairs, clean, sigma, noise, ref_denoise, denoise, settings, device):
        super().__init__(pairs)
        self.sigma, self.denoise, self.beta = sigma, denoise, settings.dpo_beta
        self.scale = clean.target_scale(sigma)
        self.x0 = clean.latents[:][self.candidates].to(device)
        self.x = clean.noised(self.x0, sigma, noise)
        self.ref_x0 = ref_denoise(self.x, sigma)
        self.ref_error = self._error(slice(None), self.ref_x0)

    def _error(self, chunk, x0):
        """Mean squared error of the prediction's target, [n]."""
        return per_candidate_mean(((x0 - self.x0[chunk]) / self.scale.to(self.x0)) ** 2)

    def values(self, chunk):
        x0 = self.denoise(self.x[chunk], self.sigma)
        return self._error(chunk, x0), transition.kl(x0.detach(), self.ref_x0[chunk], self.scale)

    def loss(self, error):
        return loss.diffusion_dpo(*self.winners_and_losers(error), *self.winners_and_losers(self.ref_error), self.beta)

    def log_ratio(self, error):
        return 0.5 * (self.ref_error - error)
