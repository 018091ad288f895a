"""Preference losses as pure functions of per-step quantities. Each is a scalar, by mean over pairs or candidates.

A log-ratio is log p(x'|x) - log p_ref(x'|x) of one step, by mean over the latent's elements (transition.log_ratio), or
error_log_ratio of a noised image. Papers that sum over the latent reach the same loss with beta divided by the number
of elements. Every loss of pairs takes (log-ratio of the winner, log-ratio of the loser), [pairs] each; every loss of
single candidates takes their log-ratios, [N].
"""

import math

import torch
import torch.nn.functional as F

USUAL = 0.9  # momentum of the moving average of the margins (beta-DPO)


def clamp_ratio(log_ratio, clip):
    """log of the probability ratio clamped to [1 - clip, 1 + clip]; no clamp where clip is 0."""
    return log_ratio.clamp(math.log1p(-clip), math.log1p(clip)) if clip else log_ratio


def clip_fraction(log_ratio, clip):
    """Share of the ratios that the clamp holds, 0...1, a 0-d tensor."""
    return ((log_ratio <= math.log1p(-clip)) | (log_ratio >= math.log1p(clip))).float().mean()


def error_log_ratio(error, ref_error):
    """(reference error - error) / 2: the log-ratio of unit Gaussians around the two predictions of the target.

    Errors are mean squared errors over the latent, with the same noise and timestep. Diffusion-DPO's beta / 2 before
    errors (arXiv 2311.12908, eq. 14) is beta before these log-ratios.
    """
    return 0.5 * (ref_error - error)


# --- pairs ---


def d3po_margin(log_ratio_w, log_ratio_l, beta=0.1):
    """beta (log ratio of the winner - log ratio of the loser), [pairs]: the implicit reward's difference."""
    return beta * (log_ratio_w - log_ratio_l)


def dpo(log_ratio_w, log_ratio_l, beta=0.1, label_smoothing=0.0):
    """-(1 - s) log sigmoid(margin) - s log sigmoid(-margin): DPO (arXiv 2305.18290, eq. 7) with label smoothing s.

    s is the share of picks that are believed to be wrong (conservative DPO, Mitchell 2023, "A note on DPO with noisy
    preferences", eq. 3): the loss then has its minimum at the margin log((1 - s) / s). ln 2 where the policy is the
    reference.
    """
    margin = d3po_margin(log_ratio_w, log_ratio_l, beta)
    return -((1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)).mean()


def d3po(log_ratio_w, log_ratio_l, beta=0.1, clip=0.1):
    """DPO of clamped ratios (arXiv 2311.13231, eq. 13 and its code). ln 2 where the policy is the reference."""
    return dpo(clamp_ratio(log_ratio_w, clip), clamp_ratio(log_ratio_l, clip), beta)


def diffusion_dpo(error_w, error_l, ref_error_w, ref_error_l, beta=5000.0):
    """-log sigmoid(-beta/2 [(e_w - e_l) - (e_w - e_l)_ref]) (arXiv 2311.12908, eq. 14 and its code).

    Errors are each image's mean squared error of the prediction target, [pairs], with the same noise and timestep
    within a pair and under both models. The sigmoid comes before the mean over pairs.
    """
    return dpo(error_log_ratio(error_w, ref_error_w), error_log_ratio(error_l, ref_error_l), beta)


def ipo(log_ratio_w, log_ratio_l, beta=0.1):
    """(margin - 1/2)^2, least where the log-ratios differ by 1 / (2 beta): a target instead of a push without end.

    beta^2 times the loss of arXiv 2310.12036, eq. 17, where beta is tau: the minimum is the same, and the slope stays
    near DPO's at any beta. The paper's own falls with 1 / beta^2 and drowns in AdamW's epsilon at beta 5000.
    1/4 where the policy is the reference.
    """
    return (d3po_margin(log_ratio_w, log_ratio_l, beta) - 0.5).square().mean()


def mapo(error_w, error_l, beta=0.1, snr=0.5, timesteps=1000):
    """e_w - beta log sigmoid(timesteps [f(e_w) - f(e_l)]), f(e) = snr e / (exp(snr e) - 1): no reference is needed.

    MaPO (arXiv 2406.06424, in the form and with the values of its code). Errors are mean squared errors of the
    prediction target, [pairs], with the same noise and timestep within a pair; they are above 0.
    """

    def likelihood(error):
        return -snr * error * torch.exp(-snr * error) / torch.expm1(-snr * error)

    margin = timesteps * (likelihood(error_w) - likelihood(error_l))
    return (error_w - beta * F.logsigmoid(margin)).mean()


def moving_average(usual, value):
    """What is usual, with one more value in it."""
    return USUAL * usual + (1 - USUAL) * value


def adaptive_beta(margin, usual_margin, beta=0.1, alpha=0.6, bound=2.0):
    """beta [1 + alpha (mean margin - usual margin)] of a batch, a 0-d tensor without gradient.

    beta-DPO (arXiv 2407.08639): where pairs are told apart more easily than usual, the pull back to the reference is
    stronger. margin is that of `beta`, [pairs]; usual_margin is its moving average over the updates before (momentum 0.9),
    and takes this batch in first, as in its code, so that the difference is 0.9 of that to the updates before. Its code
    takes log-ratios summed over tokens and without beta for the margin, and only keeps beta above 0.001: alpha 0.6 and
    the bounds [1 / bound, bound] belong to margins as they are here. Its filter of outlying pairs is left out.
    """
    here = margin.detach().mean()
    return beta * (1 + alpha * (here - moving_average(usual_margin, here))).clamp(1 / bound, bound)


def safeguard(log_ratio_l, gradient_w, gradient_l, mu=0.9):
    """The loser's log-ratios, the same values with a scaled gradient: a step on the loss cannot harm the winner.

    Diffusion-SDPO (arXiv 2511.03317): scale = min(1, (1 - mu) |g_w|^2 / <g_w, g_l>) where <g_w, g_l> > 0, else 1, so
    that the winner's log-likelihood does not fall to first order; mu in [0, 1] is the share of its own gain that it
    keeps at least (0.9 for SD1.5, 0.6 for SDXL).

    gradient_w and gradient_l are the log-ratios' gradients, [pairs, ...]. With respect to the network's output this is
    the paper's approximation, exact where both images have the same Jacobian. With respect to its parameters it is
    exact, for plain gradient descent on one pair and for losses that pull on winner and loser alike: a clamp of the
    winner's ratio alone voids it. The paper's code takes one scale for a batch.
    """
    aligned = (gradient_w * gradient_l).flatten(1).sum(1)
    limit = (1 - mu) * gradient_w.square().flatten(1).sum(1) / aligned
    scale = torch.where(aligned > 0, limit.clamp(max=1), 1.0).detach()
    return log_ratio_l.detach() + scale * (log_ratio_l - log_ratio_l.detach())


# --- single candidates ---


def sft(log_ratio):
    """-log-ratio: the negative log-likelihood of preferred candidates, up to the reference's constant, which makes it 0
    where the policy is the reference.

    A baseline by itself. Added to a loss of pairs it anchors the winner: loss + weight * sft(log_ratio_w), as in
    arXiv 2404.19733 and 2405.16436. A weight of beta / 2 pulls the winner as hard as DPO does at first; theirs, by mean
    over some hundred tokens, is about a tenth of that.
    """
    return -log_ratio.mean()


def kto(log_ratio, liked, reference_point, beta=0.1):
    """1 - sigmoid(beta (log-ratio - z)) of liked candidates, 1 - sigmoid(beta (z - log-ratio)) of disliked ones.

    KTO (arXiv 2402.01306) as in Diffusion-KTO (arXiv 2404.04465), with both weights 1. liked is a bool tensor, [N]. z
    is the reference point, any shape, by mean and without gradient: KL(policy || reference), which is known exactly per
    step (kernels.kl); the papers estimate it from a batch, by max(0, mean log-ratio). Diffusion-KTO's code sets 1000
    before the whole difference of errors, which is a beta of 2000 here, before error_log_ratio. 1/2 where the policy is the
    reference.
    """
    gain = log_ratio - reference_point.detach().mean()
    return torch.sigmoid(-beta * torch.where(liked, gain, -gain)).mean()


def advantages(scores, clip=5.0):
    """(score - mean) / (standard deviation + 1e-6) within one prompt's set, [N], held within [-clip, clip]; 0 if all are
    equal.

    DDPO's per-prompt advantage (arXiv 2305.13301; 1e-6 and clip as in its PyTorch code), over the candidates of one set
    instead of a prompt's history.
    """
    if (scores == scores[0]).all():
        return torch.zeros_like(scores)
    return ((scores - scores.mean()) / (scores.std(correction=0) + 1e-6)).clamp(-clip, clip)


def ratio_clip_fraction(log_ratio, advantage, clip):
    """Share of the candidates that PPO's clip holds, so that `ddpo` pulls on them no more, 0...1, a 0-d tensor."""
    held = torch.where(advantage >= 0, log_ratio >= math.log1p(clip), log_ratio <= math.log1p(-clip))
    return (held & (advantage != 0)).float().mean()


def ddpo(log_ratio, advantage, clip=1e-4):
    """-min(A r, A clamp(r, 1 - clip, 1 + clip)), r = exp(log-ratio): DDPO's policy gradient with PPO's clipping.

    arXiv 2305.13301 and its code. The log-ratio is to the policy that sampled the candidates, [N]; the code's too is by
    mean over the latent, and its clip of 1e-4 belongs to that. advantage [N] passes no gradient.
    """
    advantage = advantage.detach()
    held = torch.where(
        advantage >= 0, log_ratio.clamp(max=math.log1p(clip)), log_ratio.clamp(min=math.log1p(-clip))
    )
    return -(advantage * held.exp()).mean()


def dpok(log_ratio, advantage, kl, kl_weight=1e-4, clip=1e-4):
    """DDPO's loss + kl_weight KL(policy || reference): DPOK (arXiv 2305.16381).

    kl is the step's, with gradient, [N]. Their code weighs the reward 100 and the KL 0.01 by default, hence 1e-4, and
    10 and 0.01 in its recipe for one prompt; it takes the squared difference of the predicted noise for the KL, learns
    a value function for the advantage, which it does not standardise, and clamps ratios whatever the advantage's sign.
    """
    return ddpo(log_ratio, advantage, clip) + kl_weight * kl.mean()


def rwr(log_ratio, scores, beta=0.2):
    """-w log-ratio, w = N softmax(beta scores): reward-weighted likelihood, with DDPO's exponential weights.

    arXiv 2305.13301 with its code's 0.2, which that calls a temperature and multiplies the reward by, as here. The softmax
    is over one prompt's set: theirs is so for the aesthetic reward, and over the whole data set for JPEG size. arXiv
    2302.12192 weighs by the reward itself. scores [N] pass no gradient. Where all are equal, every candidate is imitated
    alike.
    """
    return -(len(scores) * torch.softmax(beta * scores.detach(), 0) * log_ratio).mean()
