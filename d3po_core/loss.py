"""Preference losses as pure functions of per-step quantities, [pairs] each, by mean over the pairs."""

import math

import torch
import torch.nn.functional as F


def clamp_ratio(log_ratio, clip):
    """log of the probability ratio clamped to [1 - clip, 1 + clip]; no clamp where clip is 0."""
    return log_ratio.clamp(math.log1p(-clip), math.log1p(clip)) if clip else log_ratio


def d3po_margin(log_ratio_w, log_ratio_l, beta=0.1):
    """beta (log ratio of the winner - log ratio of the loser), [pairs]: the implicit reward's difference."""
    return beta * (log_ratio_w - log_ratio_l)


def d3po(log_ratio_w, log_ratio_l, beta=0.1, clip=0.1):
    """-log sigmoid of the margin of clamped ratios (arXiv 2311.13231, eq. 13 and its code), a scalar.

    log_ratio_w and log_ratio_l are log p(x'|x) - log p_ref(x'|x) of one step, [pairs]. ln 2 where the policy is the
    reference.
    """
    return -F.logsigmoid(d3po_margin(clamp_ratio(log_ratio_w, clip), clamp_ratio(log_ratio_l, clip), beta)).mean()


def diffusion_dpo(error_w, error_l, ref_error_w, ref_error_l, beta=5000.0):
    """-log sigmoid(-beta/2 [(e_w - e_l) - (e_w - e_l)_ref]) (arXiv 2311.12908, eq. 14 and its code), a scalar.

    Errors are each image's mean squared error of the prediction target, [pairs], with the same noise and timestep
    within a pair and under both models. The sigmoid comes before the mean over pairs.
    """
    inside = -0.5 * beta * ((error_w - error_l) - (ref_error_w - ref_error_l))
    return -F.logsigmoid(inside).mean()


def clip_fraction(log_ratio, clip):
    """Share of the ratios that the clamp holds, 0...1, a 0-d tensor."""
    if not clip:
        return torch.zeros(())
    return ((log_ratio <= math.log1p(-clip)) | (log_ratio >= math.log1p(clip))).float().mean()
