"""What the host's denoiser needs of a prompt."""

from dataclasses import dataclass

import torch

EMPTY_NEGATIVE = "empty_negative"  # in a set's settings: whether its negative is known to be the empty text


@dataclass
class Conditioning:
    """What the host's denoiser needs of a prompt besides x and sigma."""

    positive: list
    negative: list
    cfg: float
    latent_image: torch.Tensor
    seed: int


def conditioning_of(candidates):
    """A set's Conditioning, read from its dataset where it lies in one."""
    conditioning = candidates.conditioning
    return conditioning() if callable(conditioning) else conditioning
