"""Preference losses as pure functions of per-step quantities. Each is a mean over pairs or candidates, 0-d.

A log-ratio is log p(x'|x) - log p_ref(x'|x) of one step, by mean over the latent's elements
(kernels.log_ratio), or error_log_ratio of a noised image. Papers that sum over the latent reach the same loss
with beta divided by the number of elements. A loss of pairs takes the log-ratios of the winners and of the
losers, [pairs] each. A loss of single candidates takes their log-ratios, [N].
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..candidates.kernels import Scalar, per_candidate_mean

Number = TypeVar("Number", float, Tensor)

USUAL = 0.9  # momentum of the moving average of the margins (beta-DPO)
LARGEST_ADVANTAGE = 5.0  # in standard deviations (DDPO, DiffusionNFT)


def clamp_ratio(log_ratio: Tensor, clip: float) -> Tensor:
    """log of the probability ratio, clamped to [1 - clip, 1 + clip]. A clip of 0 clamps nothing."""
    return log_ratio.clamp(math.log1p(-clip), math.log1p(clip)) if clip else log_ratio


def clip_fraction(log_ratio: Tensor, clip: float) -> Tensor:
    """Share of the ratios that the clamp holds, 0...1, a 0-d tensor."""
    return ((log_ratio <= math.log1p(-clip)) | (log_ratio >= math.log1p(clip))).float().mean()


def error_log_ratio(error: Tensor, ref_error: Tensor) -> Tensor:
    """(reference error - error) / 2: the log-ratio of unit Gaussians around the two predictions.

    Errors are mean squared errors over the latent, with the same noise and timestep. Diffusion-DPO's factor
    beta / 2 on errors (arXiv 2311.12908, eq. 14) is a factor beta on these log-ratios.
    """
    return 0.5 * (ref_error - error)


# --- pairs ---


def d3po_margin(log_ratio_w: Tensor, log_ratio_l: Tensor, beta: Scalar = 0.1) -> Tensor:
    """beta (log ratio of the winner - log ratio of the loser), [pairs]: the implicit reward's difference."""
    return beta * (log_ratio_w - log_ratio_l)


def dpo(log_ratio_w: Tensor, log_ratio_l: Tensor, beta: Scalar = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - s) log sigmoid(margin) - s log sigmoid(-margin): DPO with label smoothing s.

    DPO is arXiv 2305.18290, eq. 7. s is the share of picks that are believed to be wrong (conservative DPO,
    Mitchell 2023, "A note on DPO with noisy preferences", eq. 3). The loss then has its minimum at the margin
    log((1 - s) / s). It is ln 2 where the policy is the reference.
    """
    margin = d3po_margin(log_ratio_w, log_ratio_l, beta)
    return -((1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)).mean()


def d3po(log_ratio_w: Tensor, log_ratio_l: Tensor, beta: float = 0.1, clip: float = 0.1) -> Tensor:
    """DPO of clamped ratios (arXiv 2311.13231, eq. 13 and its code). ln 2 where policy is reference."""
    return dpo(clamp_ratio(log_ratio_w, clip), clamp_ratio(log_ratio_l, clip), beta)


def diffusion_dpo(
    error_w: Tensor, error_l: Tensor, ref_error_w: Tensor, ref_error_l: Tensor, beta: float = 5000.0
) -> Tensor:
    """-log sigmoid(-beta/2 [(e_w - e_l) - (e_w - e_l)_ref]) (arXiv 2311.12908, eq. 14 and its code).

    Errors are each image's mean squared error of the prediction target, [pairs]. Noise and timestep are the
    same within a pair and under both models. The sigmoid comes before the mean over pairs.
    """
    return dpo(error_log_ratio(error_w, ref_error_w), error_log_ratio(error_l, ref_error_l), beta)


def ipo(log_ratio_w: Tensor, log_ratio_l: Tensor, beta: float = 0.1) -> Tensor:
    """(margin - 1/2)^2: the log-ratios have a target, a difference of 1 / (2 beta), not a push without end.

    It is beta^2 times the loss of arXiv 2310.12036, eq. 17, where beta is tau. The minimum is the same, and
    the slope stays near DPO's at any beta. The paper's own loss falls with 1 / beta^2 and is lost in AdamW's
    epsilon at beta 5000. It is 1/4 where the policy is the reference.
    """
    return (d3po_margin(log_ratio_w, log_ratio_l, beta) - 0.5).square().mean()


def mapo(
    error_w: Tensor, error_l: Tensor, beta: float = 0.1, snr: float = 0.5, timesteps: int = 1000
) -> Tensor:
    """e_w - beta log sigmoid(timesteps [f(e_w) - f(e_l)]), f(e) = snr e / (exp(snr e) - 1).

    MaPO (arXiv 2406.06424, in the form and with the values of its code) needs no reference. Errors are mean
    squared errors of the prediction target, [pairs], above 0, with the same noise and timestep within a pair.
    """

    def likelihood(error: Tensor) -> Tensor:
        return -snr * error * torch.exp(-snr * error) / torch.expm1(-snr * error)

    margin = timesteps * (likelihood(error_w) - likelihood(error_l))
    return (error_w - beta * F.logsigmoid(margin)).mean()


def moving_average(usual: float, value: Number) -> Number:
    """The moving average `usual` after one more value."""
    return USUAL * usual + (1 - USUAL) * value


def adaptive_beta(
    margin: Tensor, usual_margin: float, beta: float = 0.1, alpha: float = 0.6, bound: float = 2.0
) -> Tensor:
    """beta [1 + alpha (mean margin - usual margin)] of a batch, a 0-d tensor without gradient.

    beta-DPO (arXiv 2407.08639): where pairs are told apart more easily than usual, the pull back to the
    reference is stronger. margin is that of `beta`, [pairs]. usual_margin is its moving average over the
    updates before (momentum 0.9). As in the paper's code it takes this batch in first, so that the difference
    is 0.9 of that to the updates before. The code's margin sums log-ratios over tokens, without beta, and it
    only keeps beta above 0.001. alpha 0.6 and the bounds [1 / bound, bound] belong to margins as they are
    here. The paper's filter of outlying pairs is left out.
    """
    here = margin.detach().mean()
    factor = 1 + alpha * (here - moving_average(usual_margin, here))
    return beta * factor.clamp(1 / bound, bound)


def safeguard(log_ratio_l: Tensor, gradient_w: Tensor, gradient_l: Tensor, mu: float = 0.9) -> Tensor:
    """The losers' log-ratios with a scaled gradient, so that a step on the loss cannot harm the winner.

    Diffusion-SDPO (arXiv 2511.03317): scale = min(1, (1 - mu) |g_w|^2 / <g_w, g_l>) where <g_w, g_l> > 0,
    else 1. To first order the winner's log-likelihood then does not fall. mu in [0, 1] is the share of its
    own gain that the winner keeps at least (0.9 for SD1.5, 0.6 for SDXL).

    gradient_w and gradient_l are the log-ratios' gradients, [pairs, ...]. With gradients with respect to the
    network's output this is the paper's approximation, exact where both images have the same Jacobian. With
    gradients with respect to its parameters it is exact for plain gradient descent on one pair, and for
    losses that pull equally on winner and loser: a clamp of the winner's ratio alone voids it. The paper's
    code takes one scale for a batch.
    """
    aligned = (gradient_w * gradient_l).flatten(1).sum(1)
    limit = (1 - mu) * gradient_w.square().flatten(1).sum(1) / aligned
    scale = torch.where(aligned > 0, limit.clamp(max=1), 1.0).detach()
    return log_ratio_l.detach() + scale * (log_ratio_l - log_ratio_l.detach())


# --- single candidates ---


def sft(log_ratio: Tensor) -> Tensor:
    """-log-ratio: the negative log-likelihood of preferred candidates, up to a constant of the reference.

    The constant makes it 0 where the policy is the reference. By itself it is a baseline. Added to a loss of
    pairs it anchors the winner: loss + weight * sft(log_ratio_w), as in arXiv 2404.19733 and 2405.16436. A
    weight of beta / 2 pulls the winner as hard as DPO does at first. The papers' weight, by mean over some
    hundred tokens, is about a tenth of that.
    """
    return -log_ratio.mean()


def kto(log_ratio: Tensor, liked: Tensor, reference_point: Tensor, beta: float = 0.1) -> Tensor:
    """sigmoid(-beta (log-ratio - z)) of liked candidates, sigmoid(beta (log-ratio - z)) of disliked ones.

    KTO (arXiv 2402.01306) as in Diffusion-KTO (arXiv 2404.04465), with both weights 1. liked is a bool
    tensor, [N]. z is the mean of reference_point (any shape), without gradient: KL(policy || reference),
    which is known exactly per step (kernels.kl). The papers estimate it from a batch, by max(0, mean
    log-ratio). Diffusion-KTO's code has a factor 1000 on the whole difference of errors, which is a beta of
    2000 on error_log_ratio here. The loss is 1/2 where the policy is the reference.
    """
    gain = log_ratio - reference_point.detach().mean()
    return torch.sigmoid(-beta * torch.where(liked, gain, -gain)).mean()


def advantages(scores: Tensor, clip: float = LARGEST_ADVANTAGE) -> Tensor:
    """(score - mean) / (standard deviation + 1e-6) within one prompt's set, clamped to [-clip, clip], [N].

    All are 0 if all scores are equal. It is DDPO's per-prompt advantage (arXiv 2305.13301; 1e-6 and clip as
    in its PyTorch code), over the candidates of one set instead of a prompt's history.
    """
    if (scores == scores[0]).all():
        return torch.zeros_like(scores)
    return ((scores - scores.mean()) / (scores.std(correction=0) + 1e-6)).clamp(-clip, clip)


def ratio_clip_fraction(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Share of the candidates that PPO's clip holds, so that `ddpo` stops pulling on them, 0-d."""
    held = torch.where(advantage >= 0, log_ratio >= math.log1p(clip), log_ratio <= math.log1p(-clip))
    return (held & (advantage != 0)).float().mean()


def ddpo(log_ratio: Tensor, advantage: Tensor, clip: float = 1e-4) -> Tensor:
    """-min(A r, A clamp(r, 1 - clip, 1 + clip)), r = exp(log-ratio): DDPO's policy gradient, PPO's clipping.

    arXiv 2305.13301 and its code. The log-ratio is to the policy that sampled the candidates, [N]. In the
    code, too, it is a mean over the latent, and the clip of 1e-4 belongs to that. advantage [N] passes no
    gradient.
    """
    advantage = advantage.detach()
    held = torch.where(
        advantage >= 0, log_ratio.clamp(max=math.log1p(clip)), log_ratio.clamp(min=math.log1p(-clip))
    )
    return -(advantage * held.exp()).mean()


def dpok(
    log_ratio: Tensor, advantage: Tensor, kl: Tensor, kl_weight: float = 1e-4, clip: float = 1e-4
) -> Tensor:
    """DDPO's loss + kl_weight KL(policy || reference): DPOK (arXiv 2305.16381).

    kl is the step's, with gradient, [N]. By default the paper's code weighs the reward 100 and the KL 0.01,
    hence 1e-4. Its recipe for one prompt has 10 and 0.01. It also differs in what follows: the KL is the
    squared difference of the predicted noise, a value function is learned for the advantage, which is not
    standardised, and ratios are clamped whatever the advantage's sign.
    """
    return ddpo(log_ratio, advantage, clip) + kl_weight * kl.mean()


def rwr(log_ratio: Tensor, scores: Tensor, beta: float = 0.2) -> Tensor:
    """-w log-ratio, w = N softmax(beta scores): reward-weighted likelihood, with DDPO's exponential weights.

    arXiv 2305.13301 with its code's 0.2, which the code calls a temperature and multiplies the reward by, as
    here. The softmax is over one prompt's set. The paper does so for the aesthetic reward, and takes the
    whole data set for JPEG size. arXiv 2302.12192 weighs by the reward itself. scores [N] pass no gradient.
    Where all scores are equal, all candidates are imitated equally.
    """
    return -(len(scores) * torch.softmax(beta * scores.detach(), 0) * log_ratio).mean()


def nft(
    shift: Tensor,
    sampler_error: Tensor,
    advantage: Tensor,
    kl: Tensor,
    beta: float = 1.0,
    kl_weight: float = 1e-4,
    mask: Tensor | None = None,
) -> Tensor:
    """5 / beta [r |e + beta d|^2 / w+ + (1 - r) |e - beta d|^2 / w-] + kl_weight |v - v_ref|^2: DiffusionNFT.

    arXiv 2509.16117 and its code. With v the policy's x0 of a noised image, o that of the policy that sampled
    and x0 the image, shift [N, C, H, W] is d = v - o and sampler_error is e = o - x0, without gradient. So
    e + beta d is the error of the positive prediction, beta v + (1 - beta) o, and e - beta d that of the
    implicit negative one, (1 + beta) o - beta v. The code mixes velocities, which comes to the same.
    r = 1/2 + advantage / 10 in [0, 1], where 5 is the largest advantage, [N], which passes no gradient.
    |.|^2 is the mean square over the latent, or a mask of it [1, C, H, W]. w is the mean of the same error's
    absolute values, without gradient and not below 1e-5. The pull to the reference is on predictions, whose
    kl [N] is half their mean square distance.

    By itself a candidate's loss is least where d = (2 r - 1) (x0 - o) / beta, but for w: a target and not a
    push without end, and further for a lower beta. The paper's code takes 1, and 0.1 for two of its rewards.
    In the paper o <- decay o + (1 - decay) v once a round, with a decay that begins at 0. Here it is 0
    throughout: o is the LoRA as it was when the round began. The paper's code standardises rewards by the
    standard deviation over all prompts, `advantages` by the set's.
    """
    r = 0.5 + 0.5 * (advantage.detach() / LARGEST_ADVANTAGE).clamp(-1, 1)

    def normalised(error: Tensor) -> Tensor:
        size = per_candidate_mean(error.detach().abs(), mask).clamp(min=1e-5)
        return per_candidate_mean(error.square(), mask) / size

    positive, negative = normalised(sampler_error + beta * shift), normalised(sampler_error - beta * shift)
    improvement = LARGEST_ADVANTAGE / beta * (r * positive + (1 - r) * negative)
    return improvement.mean() + 2 * kl_weight * kl.mean()
