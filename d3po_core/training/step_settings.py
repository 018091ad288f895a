"""The settings of a train step that no update knows of, as settings.py has the others."""

from dataclasses import dataclass

from .adapter import ADAPTERS, TARGETS
from .methods import NOISED, RECORDED, RECORDED_NOISE
from .setting import MOST, ON_EITHER, ON_STEPS, setting, those

GUIDANCE = ("as recorded", "off (faster)")
LEARN_FROM = (RECORDED, NOISED, RECORDED_NOISE)


@dataclass(frozen=True)
class StepSettings:
    """What a train step is told beside `Settings`: the LoRA, what to learn from, when to measure and stop."""

    rank: int = setting(
        8, "Size of the LoRA. A run keeps the rank that it was started with.", low=1, high=512
    )
    alpha: float = setting(
        8.0, "The LoRA's update is scaled by alpha / rank.", low=0.01, high=1024.0, step=0.01
    )
    targets: str = setting(
        TARGETS[0],
        "Which layers get a LoRA. D3PO trains attention. Wider learns faster and makes a larger file.",
        options=TARGETS,
    )
    adapter: str = setting(
        ADAPTERS[0],
        "What kind of LoRA. rsLoRA: scaled by alpha / sqrt(rank), for high ranks. DoRA: also learns how "
        "strong each output is; slower. LoHa and LoKr (LyCORIS): products of small matrices, for more reach "
        "at the same size. All load in Load LoRA.",
        options=ADAPTERS,
    )
    dropout: float = setting(
        0.0,
        "Share of its inputs that the LoRA does not see in each training pass, against learning a few picks "
        "by heart. LoHa and LoKr have none.",
        low=0.0,
        high=0.9,
        step=0.05,
        advanced=True,
    )
    guidance: str = setting(
        GUIDANCE[0],
        "Guidance (cfg) while training. as recorded: the sampler's, as in the paper. off: the prompt alone, "
        "which is less work, at some loss of exactness.",
        options=GUIDANCE,
        used_by=ON_STEPS,
    )
    learn_from: str = setting(
        RECORDED,
        "What is learned from, where candidates were recorded. recorded steps: the sampler's own steps, as "
        "in D3PO. noised images: the finished images with fresh noise, as in Diffusion-DPO. With recorded "
        "noise: with the noise that they were sampled from, which varies less. Diffusion-DPO, MaPO and "
        "DiffusionNFT take recorded steps to mean noised images. Images without a recording are always "
        "noised anew.",
        options=LEARN_FROM,
        own_of=ON_EITHER,
    )
    evaluate_every: int = setting(
        0,
        "After every how many updates to measure on held_out. 0: only at the end.",
        low=0,
        high=MOST,
        advanced=True,
    )
    patience: int = setting(
        0,
        "Stop when the held-out accuracy (of equal ones, the margin) has not been above its best for so many "
        "measurements in a row, and hand on the LoRA as it was at this train step's best. 0: never.",
        low=0,
        high=1000,
        advanced=True,
    )
    stop_kl: float = setting(
        0.0,
        "Stop when the KL to the reference, by mean over the latent and a few updates, is above this: the "
        "LoRA has gone as far from the model as you like. 0: never.",
        low=0.0,
        high=1e6,
        step=0.001,
        advanced=True,
        used_by=those(lambda method: method.reference),
    )
    save_every: int = setting(
        1,
        "With a run from Load Run: after every how many updates to keep the state on disk, so that training "
        "which was stopped or killed goes on from there. 0: never.",
        low=0,
        high=MOST,
    )
