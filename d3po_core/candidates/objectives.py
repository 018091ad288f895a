"""Automatic judges. Images are in the host's layout: [N, H, W, 3], float in 0...1. Each returns N numbers."""

import io
import re
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

Numbers: TypeAlias = NDArray[np.float64]

REC709 = np.array([0.2126, 0.7152, 0.0722])


def jpeg_size(images: ArrayLike, quality: int = 95) -> Numbers:
    """Size as a JPEG in kB (1000 bytes): D3PO's compressibility (lower) and incompressibility (higher)."""
    return np.array([_jpeg_bytes(image, quality) / 1000 for image in _uint8(images)])


def brightness(images: ArrayLike) -> Numbers:
    """Mean luma by Rec. 709, 0 (black) to 1 (white)."""
    luma: Numbers = (_array(images) @ REC709).mean((1, 2))
    return luma


def colour_distance(images: ArrayLike, target: Sequence[float] = (1.0, 0.0, 0.0)) -> Numbers:
    """Mean Euclidean distance of the pixels to a target colour (r, g, b in 0...1), 0 to sqrt(3)."""
    distance: Numbers = np.linalg.norm(_array(images) - np.asarray(target), axis=-1).mean((1, 2))
    return distance


def sharpness(images: ArrayLike) -> Numbers:
    """Root mean square of the luma's Laplacian (its four neighbours less four times itself), inside the
    border."""
    luma = _array(images) @ REC709
    around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    found: Numbers = np.sqrt(np.square(around - 4 * luma[:, 1:-1, 1:-1]).mean((1, 2)))
    return found


def contrast(images: ArrayLike) -> Numbers:
    """Standard deviation of the luma."""
    found: Numbers = (_array(images) @ REC709).std((1, 2))
    return found


def colourfulness(images: ArrayLike) -> Numbers:
    """How far pixels spread and lie from gray in two opponent colours (Hasler and Suesstrunk 2003, M3), for
    colours in 0...1."""
    red, green, blue = np.moveaxis(_array(images), -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread, means = (np.linalg.norm(own((2, 3)), axis=0) for own in (opponents.std, opponents.mean))
    found: Numbers = spread + 0.3 * means
    return found


def asymmetry(images: ArrayLike) -> Numbers:
    """Mean distance of the colours to those of the mirrored image, 0 to 1."""
    pixels = _array(images)
    found: Numbers = np.abs(pixels - pixels[:, :, ::-1]).mean((1, 2, 3))
    return found


def parse_colour(text: str) -> tuple[float, ...]:
    """'#rrggbb' -> (r, g, b) in 0...1. Raises ValueError for anything else."""
    channels = re.fullmatch("#?" + 3 * "([0-9a-fA-F]{2})", text.strip())
    if not channels:
        raise ValueError(f"{text!r} is not a colour: write it as #rrggbb, for example #ff8800")
    return tuple(int(channel, 16) / 255 for channel in channels.groups())


def _array(images: ArrayLike) -> Numbers:
    images = np.asarray(images, dtype=np.float64)
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise ValueError(f"images must be [N, H, W, 3], got {list(images.shape)}")
    if spoilt := [i for i, image in enumerate(images) if np.isnan(image).any()]:
        raise ValueError(
            f"images: candidate {spoilt[0] + 1} has pixels that are no numbers (NaN), as a VAE or a model in "
            "half precision may make them. Start ComfyUI with --bf16-vae or --fp32-vae, or use another VAE"
        )
    return images[..., :3].clip(0, 1)


def _uint8(images: ArrayLike) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = (_array(images) * 255).round().astype(np.uint8)
    return levels


def _jpeg_bytes(image: NDArray[np.uint8], quality: int) -> int:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.tell()
