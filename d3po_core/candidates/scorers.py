"""Scorers: what judges finished pictures, whatever it is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .objectives import Numbers


class WrongNumber(ValueError):
    """A scorer gave another number of scores than there are images."""


@dataclass(frozen=True)
class Scorer:
    """Judges images [N, H, W, 3], float in 0...1 on any device, of a prompt: N numbers, more is better.

    name            in words
    judge           judge(images, the prompt's text or None) -> N numbers
    differentiable  whether gradients flow from the numbers to the images
    prepare         prepare(prompts' texts) -> the models that the host is to hold beside the one that learns
                    from this scorer; asked before that is loaded, and raises ValueError for texts that will
                    not do
    """

    name: str
    judge: Callable[[Tensor, str | None], Tensor]
    differentiable: bool = False
    prepare: Callable[[Sequence[str | None]], Sequence[Any]] = lambda prompts: ()

    def __call__(self, images: Tensor, prompt: str | None = None) -> Tensor:
        """[N] float32. Raises WrongNumber, naming the scorer, for more or fewer."""
        scores = torch.as_tensor(self.judge(images, prompt)).reshape(-1).float()
        if len(scores) != len(images):
            raise WrongNumber(f"the scorer {self.name} gave {len(scores)} scores for {len(images)} images")
        return scores

    def known(self, images: Tensor, prompt: str | None = None) -> Numbers:
        """[N] without gradients, NaN for an image on which it fails or gives no finite number.

        Raises WrongNumber as a call does, and ValueError where it fails on every image.
        """
        with torch.no_grad():
            try:
                scores = self(images, prompt)
            except WrongNumber:
                raise
            except Exception as error:  # of whatever kind a scorer's are
                scores = torch.cat([self._alone(image, prompt) for image in images.split(1)])
                if scores.isnan().all():
                    raise ValueError(f"the scorer {self.name} failed on every image: {error}") from error
        found = scores.double().cpu().numpy()
        return np.where(np.isfinite(found), found, np.nan)

    def _alone(self, image: Tensor, prompt: str | None) -> Tensor:
        try:
            return self(image, prompt).cpu()
        except WrongNumber:
            raise
        except Exception:
            return torch.tensor([torch.nan])
