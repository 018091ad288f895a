"""What a run is trained with."""

from dataclasses import dataclass

WEIGHTINGS = ("paper", "standardised")
REFERENCES = ("base", "round start")


@dataclass(frozen=True)
class Settings:
    """Defaults are D3PO's (arXiv 2311.13231, section 5 and its code), and those of each other method's paper.

    method          one of methods.METHODS
    beta            strength of the pull back to the reference: the factor before the log-ratios
    clip            D3PO: ratios are clamped to [1 - clip, 1 + clip]; 0: no clamp
    weighting       "paper": log-ratios as they are; "standardised": every step's gradient weighs alike
    dpo_beta        as beta, for examples without a trajectory (Diffusion-DPO, arXiv 2311.12908; its launchers' value).
                    beta / 2 before the difference of errors; beta, clip and weighting are for trajectories alone
    draws_per_set   noise levels, each with its noise, that an update trains such an example on. The variance of one
                    draw's gradient is large where sets are few; the paper takes 1 over batches of 2048 pairs
    caption_dropout share of such draws that are denoised without the prompt, by policy and reference alike
    optimizer       one of optimizers.OPTIMIZERS
    schedule        one of optimizers.SCHEDULES: of the learning rate over a train step
    warmup          updates of a run over which the learning rate rises to its full size
    ema             decay of the moving average of the LoRA's weights, which is then what training has arrived at; 0: none
    reference       "base": the model without the LoRA; "round start": the LoRA as it is when training begins
    epochs          how often every judged set is used
    sets_per_update judged sets that share an optimizer step
    window_start, window_end  the part of each trajectory that is trained on: 0 is its first step, of most noise, 1 its end
    step_fraction   share of these steps that an update trains on, drawn anew each time
    candidates_per_pass  candidates that go through the network together, 0: all; fewer need less memory and one more
                    forward pass, for the same gradient

    Of one method each, as loss.py says:

    label_smoothing           DPO with label smoothing
    winner_weight             DPO with winner anchor: the anchor's pull, in units of the DPO loss's own at first
    winner_share              Diffusion-SDPO: mu
    adaptation, adaptation_bound   beta-DPO: alpha, bound
    mapo_beta, mapo_snr       MaPO
    ratio_clip                DDPO, DPOK
    kl_weight                 DPOK
    reward_beta               reward-weighted: beta
    """

    beta: float = 0.1
    clip: float = 0.1
    weighting: str = "paper"
    reference: str = "base"
    learning_rate: float = 3e-5
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    epochs: int = 1
    sets_per_update: int = 1
    step_fraction: float = 1.0
    candidates_per_pass: int = 0
    seed: int = 0
    dpo_beta: float = 5000.0
    draws_per_set: int = 4
    optimizer: str = "AdamW"
    schedule: str = "constant"
    warmup: int = 0
    ema: float = 0.0
    window_start: float = 0.0
    window_end: float = 1.0
    method: str = "D3PO"
    caption_dropout: float = 0.0
    label_smoothing: float = 0.1
    winner_weight: float = 0.1
    winner_share: float = 0.9
    adaptation: float = 0.6
    adaptation_bound: float = 2.0
    mapo_beta: float = 0.1
    mapo_snr: float = 0.5
    ratio_clip: float = 1e-4
    kl_weight: float = 1e-4
    reward_beta: float = 0.2
