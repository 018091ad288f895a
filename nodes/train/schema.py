"""The train step's choice of a method: a combo that shows that method's settings."""

from comfy_api.latest import io

from ...d3po_core.training.methods import METHODS, NOISED, RECORDED
from ...d3po_core.training.settings import Settings

DEFAULT = Settings()
RECORDED_NOISE = "noised images, recorded noise"
LEARN_FROM = (RECORDED, NOISED, RECORDED_NOISE)


def learn_from(options=LEARN_FROM):
    return io.Combo.Input(
        "learn_from",
        options=list(options),
        default=options[0],
        optional=True,
        tooltip="What is learned from, where candidates were recorded. recorded steps: the sampler's own steps, as in D3PO. "
        "noised images: the finished images with fresh noise, as in Diffusion-DPO. With recorded noise: with the "
        "noise that they were sampled from, which varies less. Images without a recording are always noised anew.",
    )


def caption_dropout(default=0.2):
    return io.Float.Input(
        "caption_dropout",
        default=default,
        min=0.0,
        max=1.0,
        step=0.05,
        round=False,
        optional=True,
        tooltip="Noised images: share of the draws without the prompt, for winner and loser alike. Diffusion-DPO uses 0.2; "
        "its code calls it proportion_empty_prompts. Of recorded sets only those whose negative prompt was left empty "
        "take part.",
    )


def value(name, low, high, step, tooltip):
    return io.Float.Input(
        name,
        default=getattr(DEFAULT, name),
        min=low,
        max=high,
        step=step,
        round=False,
        tooltip=tooltip,
        optional=True,
    )


EITHER = [learn_from(), caption_dropout()]
OPTIONS = {
    "D3PO": [],
    "Diffusion-DPO": [learn_from((NOISED, RECORDED_NOISE)), caption_dropout()],
    "IPO": EITHER,
    "DPO with label smoothing": [
        value(
            "label_smoothing",
            0.0,
            0.49,
            0.01,
            "Share of the picks that you take to be wrong: the loss does not ask for more certainty than that. Others "
            "call it label_smoothing or cDPO. 0 is plain DPO.",
        ),
        *EITHER,
    ],
    "DPO with winner anchor": [
        value(
            "winner_weight",
            0.0,
            100.0,
            0.01,
            "Pull of a supervised loss on the winner, so that it does not become less likely along with the loser; 1 pulls "
            "as hard as DPO itself at first. Others call it rpo_alpha, nll_loss_coef or an SFT term; language models are "
            "trained with about 0.1.",
        ),
        *EITHER,
    ],
    "Diffusion-SDPO": [
        value(
            "winner_share",
            0.0,
            1.0,
            0.05,
            "The loser's pull is weakened until a step keeps at least this share of the winner's own gain, to first order. "
            "mu in the paper: 0.9 for SD1.5, 0.6 for SDXL.",
        ),
        *EITHER,
    ],
    "beta-DPO": [
        value(
            "adaptation",
            0.0,
            10.0,
            0.1,
            "How far beta follows the margin of the pairs at hand: above the usual margin beta rises, below it falls. alpha "
            "in the paper. 0 is plain DPO.",
        ),
        value("adaptation_bound", 1.0, 100.0, 0.1, "beta stays within 1/bound and bound times its value."),
        *EITHER,
    ],
    "MaPO": [
        value(
            "mapo_beta",
            0.0,
            1000.0,
            0.01,
            "Weight of the preference beside the winner's own error. beta_mapo in its code.",
        ),
        value("mapo_snr", 0.001, 100.0, 0.1, "How errors are read as likelihoods. snr_value in its code."),
        learn_from((NOISED, RECORDED_NOISE)),
        caption_dropout(0.0),
    ],
    "Diffusion-KTO": EITHER,
    "DDPO": [
        value(
            "ratio_clip",
            1e-6,
            0.99,
            1e-4,
            "How far the probability of a step may move from what it was at sampling before it is pushed no further. "
            "1e-4 is made for new samples after every update; picks that are used again want about 0.1. clip_range in its "
            "code, PPO's epsilon.",
        )
    ],
    "DPOK": [
        value(
            "kl_weight",
            0.0,
            1000.0,
            1e-4,
            "Weight of the KL to the reference beside the standardised reward. Its code's kl_weight divided by its "
            "reward_weight.",
        ),
        value(
            "ratio_clip",
            1e-6,
            0.99,
            1e-4,
            "As DDPO's: 1e-4 for new samples after every update, about 0.1 for picks that are used again.",
        ),
    ],
    "reward-weighted": [
        value(
            "reward_beta",
            0.0,
            100.0,
            0.1,
            "Candidates are imitated by weights exp(reward_beta * score), the score as the judge gave it. DDPO's code uses "
            "0.2 and calls it temperature, but multiplies by it too.",
        ),
        *EITHER,
    ],
    "supervised": EITHER,
}

UNUSED = {
    name: [
        *method.unused,
        *(["guidance"] if method.terms == NOISED else []),
        *([] if method.reference else ["stop_kl"]),
    ]
    for name, method in METHODS.items()
}

METHOD = io.DynamicCombo.Input(
    "method",
    optional=True,
    options=[io.DynamicCombo.Option(name, inputs) for name, inputs in OPTIONS.items()],
    extra_dict={"unused": UNUSED},  # by method, the node's inputs that the page hides
    tooltip="How to learn. Of pairs: D3PO (images without a recording: Diffusion-DPO), IPO and the other kinds of DPO, MaPO "
    "(needs no reference). Of thumbs, or of who is above and below the average: Diffusion-KTO. Of scores, or wins "
    "minus losses: DDPO, DPOK, reward-weighted. Of the liked alone: supervised. The node shows what "
    "the method uses.",
)


def chosen(method):
    """(what to learn from, Settings by name) of what the combo gives: {"method": [name], setting: [value], ...}, with None
    for a setting that was left out."""
    given = {name: each[0] for name, each in method.items() if each is not None}
    settings = {each.id: each.default for each in OPTIONS[given["method"]]} | given
    return settings.pop("learn_from", RECORDED), settings
