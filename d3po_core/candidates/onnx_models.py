"""Numbers that a model in ONNX gives of pictures: a classifier's of one class, a rating."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

USUAL_SIZE = 224  # of ImageNet's classifiers
COLOURS = 3
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation
CAFFE = (104.0, 117.0, 123.0)  # the mean of blue, green and red
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def by_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


# pixels [N, 3, H, W], RGB in 0...1 -> as a model wants them
PREPARATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ImageNet: RGB, normalised": lambda rgb: (rgb - by_channel(IMAGENET[0])) / by_channel(IMAGENET[1]),
    "RGB from 0 to 1": lambda rgb: rgb,
    "RGB from -1 to 1": lambda rgb: 2 * rgb - 1,
    "Caffe: BGR from 0 to 255 less the mean": lambda rgb: 255 * rgb.flip(1) - by_channel(CAFFE),
}


class OnnxModel:
    """The number at place `number` (from 0 on, or from -1 back) of a model's first output.

    Pictures are scaled as a whole to the size that the file says; where it says none, to `size`, or to
    USUAL_SIZE where that is 0. It runs on the CPU.
    """

    def __init__(self, path: Path, preparation: str, number: int, size: int = 0) -> None:
        """Raises ValueError for a file that is no such model, and where onnxruntime is missing."""
        self.prepare, self.number, self.session = PREPARATIONS[preparation], number, session_of(path)
        (wanted, *further), self.output = self.session.get_inputs(), self.session.get_outputs()[0].name
        if further or len(wanted.shape) != 4 or wanted.type not in KINDS:
            raise ValueError(
                f"it takes {told(self.session.get_inputs())}, and a model of pictures takes one float tensor "
                "[N, 3, H, W] or [N, H, W, 3]"
            )
        self.input, self.kind = wanted.name, KINDS[wanted.type]
        _, *shape = wanted.shape
        self.channels_last = shape[0] != COLOURS and shape[-1] == COLOURS
        channels, *sides = [*shape[-1:], *shape[:-1]] if self.channels_last else shape
        if isinstance(channels, int) and channels != COLOURS:
            raise ValueError(f"it takes {told([wanted])}, which is no picture in red, green and blue")
        self.sides = [side if isinstance(side, int) else size or USUAL_SIZE for side in sides]

    def __call__(self, images: Tensor) -> Tensor:
        """[N] float32, of images [N, H, W, 3], without a gradient. Raises ValueError where the output has no
        such place."""
        pixels = images[..., :COLOURS].detach().cpu().float().movedim(-1, 1)
        pixels = F.interpolate(pixels, size=self.sides, mode="bilinear", antialias=True)
        prepared = self.prepare(pixels.clamp(0, 1))
        if self.channels_last:
            prepared = prepared.movedim(1, -1)
        return torch.tensor([self._number(one.contiguous()) for one in prepared.split(1)])

    def _number(self, prepared: Tensor) -> float:
        (found,) = self.session.run([self.output], {self.input: prepared.numpy().astype(self.kind)})
        numbers = np.asarray(found).reshape(-1)
        if not -len(numbers) <= self.number < len(numbers):
            raise ValueError(
                f"it gives {len(numbers)} numbers of a picture, so there is none at {self.number}. Choose "
                f"from 0 to {len(numbers) - 1}, or -1 for the last"
            )
        return float(numbers[self.number])


def session_of(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            f"models in ONNX need the package onnxruntime, which cannot be imported ({error}). Install it "
            "into ComfyUI's Python with: pip install onnxruntime"
        ) from error
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its own kinds have no common one
        raise ValueError(f"onnxruntime cannot read it: {error}") from error


def told(inputs: list[Any]) -> str:
    return ", ".join(f"{one.name} {one.shape} ({one.type})" for one in inputs)
