"""The implicit reward of a tuned model (Diffusion-DPO, arXiv 2311.12908): how it ranks images.

Tuning by preferences makes a model its own reward model: r(x0) = beta E[log p(x0) - log p_ref(x0)] up to a
constant of the prompt. Rewards therefore rank images of one prompt only. By the paper's eq. 14 the
expectation is over noised draws, whose log-ratio is losses.error_log_ratio. The paper estimates it by 10
draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..candidates.images import CleanCandidates
from ..candidates.kernels import per_candidate_mean
from .losses import error_log_ratio
from .randomness import Device
from .terms import accuracy as ranked_right

BETA = 5000.0  # from Diffusion-DPO's launchers. It sets the rewards' unit, never their order
NORMAL_95 = 1.959964  # standard deviations that hold 95 % of a normal distribution


def errors(
    clean: CleanCandidates,
    denoise: Callable[[Tensor, Tensor], Tensor],
    draws: int,
    generator: Generator,
    device: Device = "cpu",
    per_pass: int = 4,
) -> Tensor:
    """Mean squared errors of the prediction's target for CleanCandidates, [draws, N] float64.

    denoise(x [B, C, H, W], sigma [B]) -> x0 is the model under the candidates' prompt, without guidance. B is
    at most `per_pass`. Noise levels rise from draw to draw, and all candidates share each draw's noise. The
    draws depend on the generator's state alone, so they can be the same for two models.
    """
    x0, rows = clean.latents[:].to(device), []
    with torch.no_grad():
        for sigma, noise in clean.draws(draws, generator):
            x = clean.noised(x0, sigma, noise)
            denoised = torch.cat(
                [denoise(part, sigma.to(part).expand(len(part))) for part in x.split(per_pass)]
            )
            squared = ((denoised - x0) / clean.target_scale(sigma).to(x0)) ** 2
            rows.append(per_candidate_mean(squared, clean.mask).cpu().double())
    return torch.stack(rows)


def rewards(error: Tensor, ref_error: Tensor, beta: float = BETA) -> Tensor:
    """beta (reference error - error) / 2, [draws, N]. An image's reward is its mean over the draws.

    Raises ValueError if one is not finite.
    """
    values = beta * error_log_ratio(error, ref_error)
    if not values.isfinite().all():
        raise ValueError(
            "the implicit reward is not a finite number: the network overflowed, or the images have no "
            "finite latents. Run the model and the VAE in bf16 or fp32"
        )
    return values


def standard_error(values: Tensor) -> Tensor:
    """Standard error of the mean over stratified draws in their order, [draws, ...] -> [...].

    There must be two draws at least. sqrt(mean squared difference of neighbours / (2 draws)) (Wolter,
    Introduction to Variance Estimation, 2007, section 8.2, v2). For independent draws it agrees with the
    sample variance. For stratified draws it leaves out the difference between noise levels, which does not
    make their mean uncertain.
    """
    return (values.diff(dim=0).square().mean(0) / (2 * len(values))).sqrt()


def differences(values: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, standard error) of reward a - reward b for all a and b, [N, N] each.

    The error is that of the draws' differences. It is smaller than the two rewards' own, as they share their
    noise.
    """
    apart = values[:, :, None] - values[:, None, :]
    return apart.mean(0), standard_error(apart)


def strict_pairs(values: Tensor, least: float = 0.0) -> list[tuple[int, int]]:
    """[(winner, loser), ...] of candidates whose rewards differ by more than `least` standard errors."""
    apart, error = differences(values)
    return [(winner, loser) for winner, loser in (apart > least * error).nonzero().tolist()]


# --- accuracy ---


@dataclass(frozen=True)
class Accuracy:
    """How often the winner of a pair has the higher implicit reward.

    share      of the pairs, ties counting half
    low, high  95 % interval of the share
    worth      how many independent pairs they are worth
    margin     mean difference between the winner's reward and the loser's
    """

    share: float
    low: float
    high: float
    worth: float
    margin: float


def accuracy(margins: Sequence[Tensor]) -> Accuracy:
    """Accuracy by margins, reward of the winner - reward of the loser: one tensor [pairs] for each set.

    Every pair has the same weight. Pairs of one set share images and a prompt, so they are not independent.
    The interval is therefore Wilson's for as many pairs as they are worth.
    """
    right = [ranked_right(margin.double()) for margin in margins]
    share, worth = float(torch.cat(right).mean()), effective_pairs(right)
    return Accuracy(share, *wilson(share, worth), worth, float(torch.cat(list(margins)).mean()))


def effective_pairs(right: list[Tensor]) -> float:
    """How many independent pairs these are worth, [pairs] of each set: 1 for right, 0 for wrong.

    Pairs / design effect (Kish, Survey Sampling, 1965), at most all pairs. The design effect is the variance
    of the mean with sets as clusters over that of independent pairs. With one set, or all pairs right or all
    wrong, nothing shows how alike the pairs of a set are. Then each set is worth one pair.
    """
    sets, pairs, mean = len(right), sum(map(len, right)), float(torch.cat(right).mean())
    if sets == 1 or mean in (0.0, 1.0):
        return float(sets)
    clustered = sets / (sets - 1) * sum(float((of_set - mean).sum()) ** 2 for of_set in right) / pairs**2
    independent = mean * (1 - mean) / (pairs - 1)
    return min(float(pairs), pairs * independent / clustered) if clustered else float(pairs)


def wilson(share: float, n: float, normal: float = NORMAL_95) -> tuple[float, float]:
    """Interval (low, high) of a share seen in n trials, where n may be fractional (Wilson 1927): of 95 %, or
    as the normal quantile says."""
    z2 = normal**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = normal / (1 + z2 / n) * (share * (1 - share) / n + z2 / (4 * n**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
