"""Hidden tastes: how much an artist likes each image [N, H, W, 3], float in 0...1. Higher is better."""

import zlib

import numpy as np

from d3po_core.candidates.objectives import brightness, colour_distance, jpeg_size

BORDER = 4  # pixels at the edge that no object touches often
ORANGE = (1.0, 0.55, 0.1)


def grounds(images):
    """Median colour of the border, [N, 3]."""
    inner = np.zeros(images.shape[1:3], bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    return np.median(images[:, ~inner], axis=1)


def _shapes(images):
    """How much each pixel is the object's, [N, H, W] in 0...1."""
    away = np.linalg.norm(images - grounds(images)[:, None, None], axis=-1)
    return np.clip((away - 0.1) / 0.1, 0, 1)


def size(images):
    """Share of the image that the object covers."""
    return _shapes(images).mean((1, 2))


def left(images):
    """How far left of the middle the object's centre is, -1 to 1."""
    shapes = _shapes(images)
    across = np.linspace(-1, 1, images.shape[2])
    return -(shapes.sum(1) @ across) / np.maximum(shapes.sum((1, 2)), 1e-9)


def warmth(images):
    """Red less blue of the ground."""
    ground = grounds(images)
    return ground[:, 0] - ground[:, 2]


def sharpness(images):
    """Mean size of the Laplacian of the luma."""
    luma = images.mean(-1)
    middle = luma[:, 1:-1, 1:-1]
    around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    return np.abs(around - 4 * middle).mean((1, 2))


def learned(images):
    """A fixed network with random weights on what can be seen: no rule that anybody could write down."""
    rng = np.random.default_rng(7)
    small = images.reshape(len(images), 8, 8, 8, 8, 3).mean((2, 4)).reshape(len(images), -1)
    hidden = np.tanh((small - 0.5) @ rng.normal(0, 0.5, (small.shape[1], 64)))
    return hidden @ rng.normal(0, 0.125, 64)


def mixed(images):
    """Small files and large objects, each by what it varies among candidates."""
    return size(images) / 0.04 - jpeg_size(images) / 0.08


def random(images):
    """A number for each image that nothing in it explains."""
    return np.array([zlib.crc32(image.tobytes()) % 1_000_003 for image in images], float)


TASTES = {
    "compressible": lambda images: -jpeg_size(images),
    "incompressible": jpeg_size,
    "bright": lambda images: brightness(images).numpy(),
    "orange": lambda images: -colour_distance(images, ORANGE).numpy(),
    "large": size,
    "left": left,
    "warm ground": warmth,
    "sharp": sharpness,
    "mixed": mixed,
    "learned": learned,
    "random": random,
}
