"""Every setting of training, with its default, its bounds and its words: those of an update, and all by name.

The nodes' inputs and what the page hides are made of these entries.
"""

from dataclasses import dataclass, fields

from .checkpointing import AUTOMATIC, CHECKPOINTING
from .methods import METHODS, NOISED, RECORDED
from .optimizers import OPTIMIZERS, SCHEDULES
from .setting import MOST, ON_DRAWS, ON_EITHER, ON_STEPS, Setting, setting, those
from .step_settings import StepSettings

WEIGHTINGS = ("paper", "standardised")
REFERENCES = ("base", "round start")
AS_METHOD = -1.0  # a number on the page that stands for the method's own default


@dataclass(frozen=True)
class Settings:
    """What a run is trained with. Defaults are D3PO's (arXiv 2311.13231, section 5, and its code) and those
    of each other method's paper. A new setting goes to the end: saved workflows go by places."""

    beta: float = setting(
        0.1,
        "How much difference from the reference satisfies the loss. Higher: learning stops sooner. D3PO "
        "uses 0.1 with the paper weighting; standardised wants about 100, IPO about 20. By mean over the "
        "latent: where log-probs are summed, it is called beta too and is as much smaller as the latent has "
        "numbers.",
        low=1e-6,
        high=100000.0,
        step=0.01,
        used_by=those(lambda method: method.beta and method.terms != NOISED),
    )
    clip: float = setting(
        0.1,
        "Probability ratios are held within 1 - clip and 1 + clip, beyond which a step of a candidate is not "
        "pushed further. 0: no limit. D3PO uses 0.1.",
        low=0.0,
        high=0.99,
        step=0.01,
        used_by=those(lambda method: method.clamps),
    )
    weighting: str = setting(
        WEIGHTINGS[0],
        "paper: log-ratios as they are, so the steps at one end of the schedule decide nearly everything. "
        "standardised: every denoising step pulls alike.",
        options=WEIGHTINGS,
        used_by=ON_STEPS,
    )
    reference: str = setting(
        REFERENCES[0],
        "What the LoRA is compared with. base: the model without it, as in the paper. round start: the LoRA "
        "as it came in, which moves further over many rounds.",
        options=REFERENCES,
    )
    learning_rate: float = setting(
        3e-5,
        "Size of an optimizer step (AdamW). D3PO uses 3e-5 over thousands of updates; a few dozen updates "
        "want more, 3e-4 to 2e-3.",
        low=0.0,
        high=1.0,
        step=1e-6,
    )
    weight_decay: float = setting(
        1e-4,
        "AdamW's pull of the LoRA's weights towards zero.",
        low=0.0,
        high=1.0,
        step=1e-5,
        advanced=True,
    )
    max_grad_norm: float = setting(
        1.0,
        "Gradients longer than this are shortened to it.",
        low=1e-4,
        high=1000.0,
        step=0.1,
        advanced=True,
    )
    epochs: int = setting(
        1,
        "How often each judged set is used in this step. 0: as often as the strength 'recommended' does, or "
        "once.",
        low=0,
        high=10000,
    )
    sets_per_update: int = setting(
        1,
        "Judged sets (prompts) that share one optimizer step. More give a steadier direction.",
        low=1,
        high=1000,
    )
    step_fraction: float = setting(
        1.0,
        "Share of the denoising steps that each update trains on, drawn anew every time. Lower is faster and "
        "noisier.",
        low=0.01,
        high=1.0,
        step=0.01,
        used_by=ON_STEPS,
    )
    candidates_per_pass: int = setting(
        0,
        "Candidates that go through the network together, at most. 0: as many of a set as fit into memory. 1 "
        "needs the least and takes longer (up to three times), for the same result.",
        low=0,
        high=64,
        advanced=True,
    )
    seed: int = setting(
        0, "Decides the LoRA's first weights and the order of training.", low=0, high=0xFFFFFFFFFFFFFFFF
    )
    dpo_beta: float = setting(
        5000.0,
        "For image pairs without a trajectory (Diffusion-DPO): beta, as its authors' code counts it, half "
        "of it before the difference of errors. Trainers with beta before the whole difference take half "
        "this value; for Diffusion-KTO its authors' 1000 is so counted, and is 2000 here. beta, clip and "
        "weighting are for trajectories.",
        low=1e-6,
        high=1e6,
        step=100.0,
        used_by=those(lambda method: method.beta and method.terms != RECORDED),
    )
    # one draw's gradient varies much where sets are few: the paper takes 1, over batches of 2048 pairs
    draws_per_set: int = setting(
        4,
        "For image pairs without a trajectory: at how many noise levels an update looks at each set. More "
        "are steadier and slower.",
        low=1,
        high=1000,
        used_by=ON_DRAWS,
    )
    optimizer: str = setting(
        OPTIMIZERS[0],
        "AdamW 8-bit (package bitsandbytes): a third of the memory for large LoRAs. AdamW schedule-free "
        "(package schedulefree): averages its steps, needs no schedule, wants about three times the "
        "learning rate.",
        options=OPTIMIZERS,
    )
    schedule: str = setting(
        SCHEDULES[0],
        "The learning rate over this train step. cosine: falls to 0 towards its end.",
        options=SCHEDULES,
        advanced=True,
    )
    warmup: int = setting(
        0,
        "Updates of a run over which the learning rate rises to its full size.",
        low=0,
        high=MOST,
        advanced=True,
    )
    ema: float = setting(
        0.0,
        "Decay of a moving average of the LoRA's weights: the average is what is saved and sampled with, and "
        "training goes on from the weights. 0.99 to 0.999 smooths. 0: none.",
        low=0.0,
        high=0.9999,
        step=0.001,
        advanced=True,
    )
    window_start: float = setting(
        0.0,
        "Recorded steps: where the part of the schedule begins that is trained on. 0: its first step, of "
        "most noise, where an image as a whole is decided.",
        low=0.0,
        high=0.99,
        step=0.05,
        advanced=True,
        used_by=ON_STEPS,
    )
    window_end: float = setting(
        1.0,
        "Where that part ends. 1: with the last step, where details are. Half a schedule takes half the "
        "time.",
        low=0.01,
        high=1.0,
        step=0.05,
        advanced=True,
        used_by=ON_STEPS,
    )
    method: str = setting(
        "D3PO",
        "How to learn. Of pairs: D3PO (images without a recording: Diffusion-DPO), IPO and the other kinds "
        "of DPO, MaPO (needs no reference). Of thumbs, or of who is above and below the average: "
        "Diffusion-KTO. Of scores, wins minus losses, or thumbs: DiffusionNFT, DDPO, DPOK, reward-weighted. "
        "Of the liked alone: supervised. Of the taste that D3PO Taste Preference has learned: taste "
        "guidance. D3PO Train Settings shows what the method uses.",
        options=tuple(METHODS),
    )
    caption_dropout: float = setting(
        0.0,
        "Noised images: share of the draws without the prompt, for winner and loser alike. Diffusion-DPO "
        "uses 0.2; its code calls it proportion_empty_prompts. Of recorded sets only those whose negative "
        "prompt was left empty take part. -1: the method's own, which is 0 for MaPO and DiffusionNFT and 0.2 "
        "for the others.",
        low=0.0,
        high=1.0,
        step=0.05,
        own_of=ON_EITHER,
        defaults={name: 0.2 for name in ON_EITHER if name not in ("MaPO", "DiffusionNFT")},
    )
    label_smoothing: float = setting(
        0.1,
        "Share of the picks that you take to be wrong: the loss does not ask for more certainty than that. "
        "Others call it label_smoothing or cDPO. 0 is plain DPO.",
        low=0.0,
        high=0.49,
        step=0.01,
        own_of=("DPO with label smoothing",),
    )
    winner_weight: float = setting(
        0.1,
        "Pull of a supervised loss on the winner, so that it does not become less likely along with the "
        "loser; 1 pulls as hard as DPO itself at first. Others call it rpo_alpha, nll_loss_coef or an SFT "
        "term; language models are trained with about 0.1.",
        low=0.0,
        high=100.0,
        step=0.01,
        own_of=("DPO with winner anchor",),
    )
    winner_share: float = setting(
        0.9,
        "The loser's pull is weakened until a step keeps at least this share of the winner's own gain, to "
        "first order. mu in the paper: 0.9 for SD1.5, 0.6 for SDXL.",
        low=0.0,
        high=1.0,
        step=0.05,
        own_of=("Diffusion-SDPO",),
    )
    adaptation: float = setting(
        0.6,
        "How far beta follows the margin of the pairs at hand: above the usual margin beta rises, below it "
        "falls. alpha in the paper. 0 is plain DPO.",
        low=0.0,
        high=10.0,
        step=0.1,
        own_of=("beta-DPO",),
    )
    adaptation_bound: float = setting(
        2.0,
        "beta stays within 1/bound and bound times its value.",
        low=1.0,
        high=100.0,
        step=0.1,
        own_of=("beta-DPO",),
    )
    mapo_beta: float = setting(
        0.1,
        "Weight of the preference beside the winner's own error. beta_mapo in its code.",
        low=0.0,
        high=1000.0,
        step=0.01,
        own_of=("MaPO",),
    )
    mapo_snr: float = setting(
        0.5,
        "How errors are read as likelihoods. snr_value in its code.",
        low=0.001,
        high=100.0,
        step=0.1,
        own_of=("MaPO",),
    )
    ratio_clip: float = setting(
        1e-4,
        "How far the probability of a step may move from what it was at sampling before it is pushed no "
        "further. 1e-4 is made for new samples after every update; picks that are used again want about "
        "0.1. clip_range in DDPO's code, PPO's epsilon.",
        low=1e-6,
        high=0.99,
        step=1e-4,
        own_of=("DDPO", "DPOK"),
    )
    kl_weight: float = setting(
        1e-4,
        "Weight of the pull to the reference beside the standardised reward. DPOK: of the KL, its code's "
        "kl_weight divided by its reward_weight. DiffusionNFT: of the squared difference of predictions, "
        "its code's train.beta.",
        low=0.0,
        high=1000.0,
        step=1e-4,
        own_of=("DPOK", "DiffusionNFT"),
    )
    reward_beta: float = setting(
        0.2,
        "Candidates are imitated by weights exp(reward_beta * score), the score as the judge gave it. "
        "DDPO's code uses 0.2 and calls it temperature, but multiplies by it too.",
        low=0.0,
        high=100.0,
        step=0.1,
        own_of=("reward-weighted",),
    )
    leash: float = setting(
        0.0,
        "How far pictures may move from the reference's in what they have in common, in what candidates of a "
        "prompt differ by. A round that went further is pulled back. With fewer than 36 judged candidates it "
        "is shorter. recommended has 0.85. 0: as far as they like.",
        low=0.0,
        high=100.0,
        step=0.05,
    )
    checkpointing: str = setting(
        AUTOMATIC,
        "Whether the network's blocks are gone through again in the backward pass, in place of keeping all "
        "that it needs: about half more work, a small part of the memory, the same result. automatic: "
        "where it would not fit otherwise.",
        options=CHECKPOINTING,
        advanced=True,
    )
    nft_beta: float = setting(
        1.0,
        "How much of the LoRA there is in the two predictions that are held against good and bad candidates. "
        "Lower asks for larger changes. beta in its code: 1, and 0.1 for some rewards.",
        low=0.01,
        high=10.0,
        step=0.05,
        own_of=("DiffusionNFT",),
    )


TABLE: dict[str, Setting] = {
    field.name: field.metadata["setting"] for kind in (StepSettings, Settings) for field in fields(kind)
}
