"""What the host's denoiser needs of a prompt."""

from dataclasses import dataclass, field

import torch

EMPTY_NEGATIVE = "empty_negative"  # in a set's settings: whether its negative is known to be the empty text


AS_RECORDED = "as recorded"  # the guidance of a recording, also for its finished images


@dataclass
class Conditioning:
    """What the host's denoiser needs of a prompt besides x and sigma.

    further  prompts, CONDITIONING by name, that a guider has besides the positive and the negative one
    guider   a GUIDER that makes one prediction of those under the prompts in another way than by cfg; else
             None
    noise    a NOISE that gives the first noise; else it is the host's of the seed
    """

    positive: list
    negative: list
    cfg: float
    latent_image: torch.Tensor
    seed: int
    further: dict = field(default_factory=dict)
    guider: object = None
    noise: object = None

    @property
    def prompts(self):
        """CONDITIONING by name."""
        return {"positive": self.positive, "negative": self.negative} | self.further


def conditioning_of(candidates):
    """A set's Conditioning, read from its dataset where it lies in one."""
    conditioning = candidates.conditioning
    return conditioning() if callable(conditioning) else conditioning
