"""Scorers: objectives that gradients flow through, and what is known of a scorer that fails."""

import math

import numpy as np
import pytest
import scipy.fft
import scipy.stats
import torch
import torch.nn.functional as F

from d3po_core.candidates import objectives
from d3po_core.candidates.scorers import Scorer, WrongNumber

DIFFERENTIABLE = [
    objectives.soft_jpeg_size,
    objectives.brightness,
    objectives.colour_distance,
    objectives.sharpness,
    objectives.contrast,
    objectives.colourfulness,
    objectives.asymmetry,
]


def pictures(count, seed=0, size=40):
    """Smooth to noisy, pale to strong."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        fine = torch.rand(1, 3, 3 + number % 20, 3 + number % 20, generator=generator)
        image = F.interpolate(fine, size=(size, size), mode="bicubic")
        made.append(0.5 + torch.rand(1, generator=generator) * (image - 0.5))
    return torch.cat(made).movedim(1, -1).double().clamp(0.01, 0.99)


@pytest.mark.parametrize("quality", [50, 95])
def test_the_soft_size_ranks_pictures_as_pillow_does(quality):
    images = pictures(60)
    sizes = objectives.jpeg_size(images, quality), objectives.soft_jpeg_size(images, quality)
    assert scipy.stats.spearmanr(*sizes)[0] > 0.95


# luma at quality 50, where the standard's own table is used (ITU-T T.81, table K.1)
LUMA = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
], float)  # fmt: skip


def test_the_soft_size_counts_the_coefficients_of_scipys_dct():
    gray = pictures(1, size=16)[..., :1]
    blocks = 255 * gray.numpy().reshape(2, 8, 2, 8).transpose(0, 2, 1, 3).reshape(4, 8, 8)
    coefficients = scipy.fft.dctn(blocks, axes=(1, 2), norm="ortho") / LUMA
    steps, waves = np.diff(coefficients[:, 0, 0]), coefficients.reshape(4, 64)[:, 1:]
    bits = sum(np.log2(1 + np.abs(part)).sum() for part in (steps, waves))
    found = objectives.soft_jpeg_size(gray.expand(-1, -1, -1, 3), 50)
    assert found.tolist() == pytest.approx([bits / 8000], rel=1e-4)


@pytest.mark.parametrize("measure", DIFFERENTIABLE, ids=lambda measure: measure.__name__)
def test_gradients_are_those_of_finite_differences(measure):
    images = pictures(2, size=9).requires_grad_()
    assert torch.autograd.gradcheck(measure, images, eps=1e-7, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("measure", DIFFERENTIABLE, ids=lambda measure: measure.__name__)
def test_a_flat_picture_has_a_gradient(measure):
    flat = torch.full((1, 16, 16, 3), 0.5, requires_grad=True)
    measure(flat).sum().backward()
    assert flat.grad.isfinite().all()


# --- what is known of a scorer's scores ---


def light(image):
    if image.mean() < 0.2:
        raise RuntimeError("it is too dark")
    return image.mean((1, 2, 3))


def test_an_image_on_which_a_scorer_fails_has_no_score():
    images = torch.tensor([0.5, 0.1, 0.9])[:, None, None, None].expand(-1, 4, 4, 3)
    fails_alone = Scorer("light", lambda images, prompt: torch.cat([light(one) for one in images.split(1)]))
    np.testing.assert_allclose(fails_alone.known(images), [0.5, np.nan, 0.9], rtol=1e-6)
    odd = Scorer("odd", lambda images, prompt: [math.inf, 2.0, float(prompt)])
    np.testing.assert_array_equal(odd.known(images, "3"), [np.nan, 2.0, 3.0])
    with pytest.raises(ValueError, match="the scorer light failed on every image: it is too dark"):
        fails_alone.known(images[1:2])


def test_another_number_of_scores_is_an_error_that_names_the_scorer():
    with pytest.raises(WrongNumber, match="the scorer first gave 1 scores for 2 images"):
        Scorer("first", lambda images, prompt: images[:1].mean()).known(torch.zeros(2, 4, 4, 3))
