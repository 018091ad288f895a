"""The implicit reward of a tuned model (Diffusion-DPO, arXiv 2311.12908): how much likelier tuning made an image.

Tuning by preferences makes a model its own reward model: r(x0) = beta E[log p(x0) - log p_ref(x0)] up to a constant of
the prompt, so rewards rank images of one prompt only. By the paper's eq. 14 the expectation is over noised draws, whose
log-ratio is loss.error_log_ratio. The paper estimates it by 10 draws.
"""

from dataclasses import dataclass

import torch

from ..candidates.kernels import per_candidate_mean
from .losses import error_log_ratio
from .terms import accuracy as ranked_right

BETA = 5000.0  # of Diffusion-DPO's launchers. It sets the rewards' unit and never their order
NORMAL_95 = 1.959964  # standard deviations that hold 95 % of a normal distribution


def errors(clean, denoise, draws, generator, device="cpu", per_pass=4):
    """Mean squared errors of the prediction's target, [draws, N] float64, of CleanCandidates.

    denoise(x [B, C, H, W], sigma [B]) -> x0 is the model under the candidates' prompt, without guidance; B is at most
    `per_pass`. Noise levels rise from draw to draw, and all candidates share each draw's noise. The draws depend on
    the generator's state alone, so that they can be the same for two models.
    """
    x0, rows = clean.latents[:].to(device), []
    with torch.no_grad():
        for sigma, noise in clean.draws(draws, generator):
            x = clean.noised(x0, sigma, noise)
            denoised = torch.cat(
                [denoise(part, sigma.to(part).expand(len(part))) for part in x.split(per_pass)]
            )
            rows.append(
                per_candidate_mean(((denoised - x0) / clean.target_scale(sigma).to(x0)) ** 2).cpu().double()
            )
    return torch.stack(rows)


def rewards(error, ref_error, beta=BETA):
    """beta (reference error - error) / 2, [draws, N]; an image's reward is its mean over the draws.

    Raises ValueError if one is not finite.
    """
    values = beta * error_log_ratio(error, ref_error)
    if not values.isfinite().all():
        raise ValueError(
            "the implicit reward is not a finite number: the network overflowed, or the images have no "
            "finite latents. Run the model and the VAE in bf16 or fp32"
        )
    return values


def standard_error(values):
    """Of the mean over stratified draws in their order, [draws, ...] -> [...], from two draws on.

    sqrt(mean squared difference of neighbours / (2 draws)) (Wolter, Introduction to Variance Estimation, 2007, section
    8.2, v2). Independent draws give what their sample variance would; of stratified ones this leaves out what the
    noise levels differ by, which does not make their mean uncertain.
    """
    return (values.diff(dim=0).square().mean(0) / (2 * len(values))).sqrt()


def differences(values):
    """(mean, standard error) of reward a - reward b for all a and b, [N, N] each.

    The error is that of the draws' differences, less than the two rewards' own: they share their noise.
    """
    apart = values[:, :, None] - values[:, None, :]
    return apart.mean(0), standard_error(apart)


def strict_pairs(values, least=0.0):
    """[(winner, loser), ...] of candidates whose rewards differ by more than `least` standard errors of that."""
    apart, error = differences(values)
    return [tuple(pair) for pair in (apart > least * error).nonzero().tolist()]


# --- accuracy ---


@dataclass(frozen=True)
class Accuracy:
    """How often the winner of a pair has the higher implicit reward.

    share      of the pairs, ties counting half
    low, high  95 % interval of the share
    worth      how many independent pairs they are worth
    margin     mean of the winners' rewards less the losers'
    """

    share: float
    low: float
    high: float
    worth: float
    margin: float


def accuracy(margins):
    """Accuracy of margins, reward of the winner - reward of the loser: one tensor [pairs] for each set of candidates.

    Every pair weighs alike. Pairs of one set share images and a prompt, so they are not independent: the interval is
    Wilson's for as many pairs as they are worth.
    """
    right = [ranked_right(margin.double()) for margin in margins]
    share, worth = float(torch.cat(right).mean()), effective_pairs(right)
    return Accuracy(share, *wilson(share, worth), worth, float(torch.cat(list(margins)).mean()))


def effective_pairs(right):
    """How many independent pairs are known as well as these, 1 for a right one and 0 for a wrong one, [pairs] of a set.

    Pairs / design effect (Kish, Survey Sampling, 1965), at most all: the variance of the mean with sets as clusters
    over that of independent pairs. Where there is one set, or all pairs are right or all wrong, nothing tells how
    alike the pairs of a set are: then each set is worth one.
    """
    sets, pairs, mean = len(right), sum(map(len, right)), float(torch.cat(right).mean())
    if sets == 1 or mean in (0.0, 1.0):
        return float(sets)
    clustered = sets / (sets - 1) * sum(float((one - mean).sum()) ** 2 for one in right) / pairs**2
    independent = mean * (1 - mean) / (pairs - 1)
    return min(float(pairs), pairs * independent / clustered) if clustered else float(pairs)


def wilson(share, n):
    """95 % interval (low, high) of a share seen in n independent trials (Wilson 1927); n need not be whole."""
    z2 = NORMAL_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 / (1 + z2 / n) * (share * (1 - share) / n + z2 / (4 * n**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
