"""Automatic judges. Images are in the host's layout: [N, H, W, 3], float in 0...1. Each returns N numbers."""

import io
import re

import numpy as np
from PIL import Image

REC709 = np.array([0.2126, 0.7152, 0.0722])


def jpeg_size(images, quality=95):
    """Size as a JPEG in kB (1000 bytes): D3PO's compressibility (lower) and incompressibility (higher)."""
    return np.array([_jpeg_bytes(image, quality) / 1000 for image in _uint8(images)])


def brightness(images):
    """Mean luma by Rec. 709, 0 (black) to 1 (white)."""
    return (_array(images) @ REC709).mean((1, 2))


def colour_distance(images, target=(1.0, 0.0, 0.0)):
    """Mean Euclidean distance of the pixels to a target colour (r, g, b in 0...1), 0 to sqrt(3)."""
    return np.linalg.norm(_array(images) - np.asarray(target), axis=-1).mean((1, 2))


def parse_colour(text):
    """'#rrggbb' -> (r, g, b) in 0...1. Raises ValueError for anything else."""
    channels = re.fullmatch("#?" + 3 * "([0-9a-fA-F]{2})", text.strip())
    if not channels:
        raise ValueError(f"{text!r} is not a colour: write it as #rrggbb, for example #ff8800")
    return tuple(int(channel, 16) / 255 for channel in channels.groups())


def _array(images):
    images = np.asarray(images, dtype=np.float64)
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise ValueError(f"images must be [N, H, W, 3], got {list(images.shape)}")
    return images[..., :3].clip(0, 1)


def _uint8(images):
    return (_array(images) * 255).round().astype(np.uint8)


def _jpeg_bytes(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.tell()
