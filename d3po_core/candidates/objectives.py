"""Automatic judges. Images are in the host's layout: [N, H, W, 3], float in 0...1. Each returns N numbers.

All but jpeg_size give tensors in float64, through which gradients flow to the images.
"""

import io
import math
import re
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

Numbers: TypeAlias = NDArray[np.float64]
Images: TypeAlias = Tensor | ArrayLike

REC709 = torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
# rows of Y, Cb and Cr (ITU-T T.871, section 7), without their offset of 128
YCBCR = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=torch.float64
)

_PLACE = torch.arange(8, dtype=torch.float64)
# the orthonormal DCT-II, a row a wave
DCT = torch.cos(math.pi / 16 * _PLACE[:, None] * (2 * _PLACE + 1)) / 2
DCT[0] /= math.sqrt(2)


def jpeg_size(images: Images, quality: int = 95) -> Numbers:
    """Size as a JPEG in kB (1000 bytes): D3PO's compressibility (lower) and incompressibility (higher)."""
    levels = (_pixels(images).detach() * 255).round().to(torch.uint8).numpy()
    return np.array([len(_jpeg(image, quality)) / 1000 for image in levels])


def soft_jpeg_size(images: Images, quality: int = 95) -> Tensor:
    """What jpeg_size follows, differentiable: log2(1 + |c / q|) bits for each coefficient c of the 8x8 DCT,
    in kB.

    As JPEG does it (ITU-T T.81): luma and chroma of half the size, quantised by q, the mean of a block less
    that of the block before.
    """
    padded = _padded(255 * _pixels(images) @ YCBCR.T)
    halved = F.avg_pool2d(padded, 2)
    luma, chroma = map(torch.from_numpy, _quantisation(quality))
    bits: Tensor = _bits(padded[:, 0], luma) + sum(_bits(halved[:, plane], chroma) for plane in (1, 2))
    return bits / 8000


def brightness(images: Images) -> Tensor:
    """Mean luma by Rec. 709, 0 (black) to 1 (white)."""
    return _luma(images).mean((1, 2))


def colour_distance(images: Images, target: Sequence[float] = (1.0, 0.0, 0.0)) -> Tensor:
    """Mean Euclidean distance of the pixels to a target colour (r, g, b in 0...1), 0 to sqrt(3)."""
    away = _pixels(images) - torch.tensor(target, dtype=torch.float64)
    distance: Tensor = torch.linalg.vector_norm(away, dim=-1)
    return distance.mean((1, 2))


def sharpness(images: Images) -> Tensor:
    """Root mean square of the luma's Laplacian (its four neighbours less four times itself), inside the
    border."""
    luma = _luma(images)
    around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    laplacian = (around - 4 * luma[:, 1:-1, 1:-1]).flatten(1)
    norm: Tensor = torch.linalg.vector_norm(laplacian, dim=1)  # whose slope at 0 is 0, not NaN
    return norm / math.sqrt(laplacian.shape[1])


def contrast(images: Images) -> Tensor:
    """Standard deviation of the luma."""
    return _luma(images).std((1, 2), correction=0)


def colourfulness(images: Images) -> Tensor:
    """How far pixels spread and lie from gray in two opponent colours (Hasler and Suesstrunk 2003, M3), for
    colours in 0...1."""
    red, green, blue = _pixels(images).unbind(-1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], -1)
    spread, mean = opponents.std((1, 2), correction=0), opponents.mean((1, 2))
    found: Tensor = torch.linalg.vector_norm(spread, dim=-1) + 0.3 * torch.linalg.vector_norm(mean, dim=-1)
    return found


def asymmetry(images: Images) -> Tensor:
    """Mean distance of the colours to those of the mirrored image, 0 to 1."""
    pixels = _pixels(images)
    return (pixels - pixels.flip(2)).abs().mean((1, 2, 3))


def parse_colour(text: str) -> tuple[float, ...]:
    """'#rrggbb' -> (r, g, b) in 0...1. Raises ValueError for anything else."""
    channels = re.fullmatch("#?" + 3 * "([0-9a-fA-F]{2})", text.strip())
    if not channels:
        raise ValueError(f"{text!r} is not a colour: write it as #rrggbb, for example #ff8800")
    return tuple(int(channel, 16) / 255 for channel in channels.groups())


def _pixels(images: Images) -> Tensor:
    """[N, H, W, 3] float64 in 0...1 on the processor, where every machine measures the same."""
    images = torch.as_tensor(images)
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise ValueError(f"images must be [N, H, W, 3], got {list(images.shape)}")
    spoilt = images.isnan().flatten(1).any(1)
    if spoilt.any():
        raise ValueError(
            f"images: candidate {int(spoilt.nonzero()[0]) + 1} has pixels that are no numbers (NaN), as a "
            "VAE or a model in half precision may make them. Start ComfyUI with --bf16-vae or --fp32-vae, or "
            "use another VAE"
        )
    return images[..., :3].cpu().double().clamp(0, 1)


def _luma(images: Images) -> Tensor:
    return _pixels(images) @ REC709


def _jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@cache
def _quantisation(quality: int) -> tuple[Numbers, ...]:
    """What luma's and chroma's coefficients are divided by at a quality, [8, 8] each."""
    with Image.open(io.BytesIO(_jpeg(np.zeros((8, 8, 3), np.uint8), quality))) as image:
        tables: dict[int, list[int]] = image.quantization
    return tuple(np.array(tables[i], np.float64).reshape(8, 8) for i in (0, 1))


def _padded(planes: Tensor) -> Tensor:
    """Planes [N, H, W, 3] as [N, 3, H, W], their last rows and columns repeated up to whole blocks of 16."""
    planes = planes.movedim(-1, 1)
    height, width = planes.shape[2:]
    return F.pad(planes, (0, -width % 16, 0, -height % 16), mode="replicate")


def _bits(plane: Tensor, quantisation: Tensor) -> Tensor:
    """[N] of planes [N, H, W]."""
    blocks = plane.unfold(1, 8, 8).unfold(2, 8, 8).flatten(1, 2)
    coefficients = DCT @ blocks @ DCT.T / quantisation
    means, waves = coefficients[..., 0, 0], coefficients.flatten(2)[..., 1:]
    steps = torch.cat([means.diff(dim=1), waves.flatten(1)], 1)
    bits: Tensor = torch.log2(1 + steps.abs()).sum(1)
    return bits
