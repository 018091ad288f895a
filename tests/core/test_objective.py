import io
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d3po_core.candidates import objectives


def solid(colour, size=8):
    return torch.tensor(colour, dtype=torch.float32).expand(1, size, size, len(colour))


def noise(seed=0):
    return torch.rand(1, 48, 32, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("quality", [50, 95])
def test_jpeg_size_is_the_number_of_bytes_that_pillow_writes_in_kB(quality):
    images = torch.cat([noise(0), noise(1)])
    expected = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray((image.numpy() * 255).round().astype(np.uint8)).save(
            buffer, format="JPEG", quality=quality
        )
        expected.append(len(buffer.getvalue()) / 1000)
    assert objectives.jpeg_size(images, quality).tolist() == expected


def test_jpeg_size_defaults_to_quality_95_and_grows_with_detail_and_quality():
    assert (
        objectives.jpeg_size(noise()) == objectives.jpeg_size(noise(), 95) > objectives.jpeg_size(noise(), 50)
    )
    assert objectives.jpeg_size(solid([0.5, 0.5, 0.5], 48)) < objectives.jpeg_size(noise())


def test_brightness_is_rec_709_luma():
    images = torch.cat([solid(c) for c in ([0.0, 0, 0], [1.0, 1, 1], [0.0, 1, 0], [1.0, 0, 0], [0.0, 0, 1])])
    assert objectives.brightness(images) == pytest.approx([0, 1, 0.7152, 0.2126, 0.0722])
    half = torch.cat([solid([0.0, 0, 0]), solid([1.0, 1, 1])], dim=1)
    assert objectives.brightness(half) == pytest.approx([0.5])


def test_colour_distance_is_euclidean_per_pixel_then_mean():
    images = torch.cat([solid([1.0, 0, 0]), solid([0.0, 1, 1]), solid([0.0, 0, 0])])
    assert objectives.colour_distance(images) == pytest.approx([0, math.sqrt(3), 1])
    assert objectives.colour_distance(images, (0, 0, 1)) == pytest.approx([math.sqrt(2), 1, 1])
    half = torch.cat([solid([1.0, 0, 0]), solid([0.0, 1, 1])], dim=2)
    assert objectives.colour_distance(half) == pytest.approx([math.sqrt(3) / 2])


def test_alpha_is_ignored_and_values_outside_0_to_1_are_clipped():
    for judge in (objectives.jpeg_size, objectives.brightness, objectives.colour_distance):
        image = noise()
        with_alpha = torch.cat([image, torch.zeros(1, 48, 32, 1)], dim=-1)
        assert judge(with_alpha) == judge(image)
        beyond = 3 * image - 1
        assert judge(beyond) == judge(beyond.clamp(0, 1))


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 3, 8, 8), (1, 8, 8, 1), (8, 8), (1, 1, 8, 8, 3)])
def test_other_shapes_are_errors_that_name_the_shape(shape):
    for judge in (objectives.jpeg_size, objectives.brightness, objectives.colour_distance):
        with pytest.raises(ValueError, match=r"\[N, H, W, 3\], got \[" + ", ".join(map(str, shape))):
            judge(torch.zeros(shape))


def test_parse_colour_reads_hex():
    assert objectives.parse_colour("#ff8800") == (1.0, 136 / 255, 0.0)
    assert objectives.parse_colour(" FF0033 ") == (1.0, 0.0, 0.2)


@pytest.mark.parametrize(
    "text", ["", "#", "red", "#fff", "#12345", "#1234567", "#gg0000", "#+1+1+1", "##ff8800"]
)
def test_parse_colour_refuses_anything_else_and_repeats_it(text):
    with pytest.raises(ValueError, match="is not a colour: write it as #rrggbb") as error:
        objectives.parse_colour(text)
    assert repr(text) in str(error.value)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=8))
def test_parse_colour_accepts_six_hex_digits_only(text):
    digits = text.strip().removeprefix("#")
    if len(digits) == 6 and set(digits) <= set("0123456789abcdefABCDEF"):
        assert all(0 <= channel <= 1 for channel in objectives.parse_colour(text))
    else:
        with pytest.raises(ValueError):
            objectives.parse_colour(text)


# --- what is in the picture ---


def test_sharpness_is_the_laplacians_root_mean_square():
    image = noise().double()
    luma = image[0].numpy() @ [0.2126, 0.7152, 0.0722]
    expected = np.sqrt((scipy.ndimage.laplace(luma)[1:-1, 1:-1] ** 2).mean())
    assert objectives.sharpness(image) == pytest.approx([expected])
    assert objectives.sharpness(solid([0.3, 0.5, 0.7])) == pytest.approx([0])


def test_contrast_is_the_lumas_deviation():
    half = torch.cat([solid([0.0, 0, 0]), solid([1.0, 1, 1])], dim=1)
    assert objectives.contrast(half) == pytest.approx([0.5])
    assert objectives.contrast(solid([0.3, 0.5, 0.7])) == pytest.approx([0])


def test_colourfulness_of_gray_is_none_and_of_two_colours_its_closed_form():
    assert objectives.colourfulness(solid([0.4, 0.4, 0.4])) == pytest.approx([0])
    # red and blue: red - green is 1 or 0, (red + green) / 2 - blue is 1/2 or -1
    both = torch.cat([solid([1.0, 0, 0]), solid([0.0, 0, 1])], dim=2)
    expected = math.hypot(0.5, 0.75) + 0.3 * math.hypot(0.5, -0.25)
    assert objectives.colourfulness(both) == pytest.approx([expected])


def test_asymmetry_is_the_difference_from_the_mirrored_image():
    one = noise()
    mirrored = torch.cat([one, one.flip(2)], dim=2)
    assert objectives.asymmetry(mirrored) == pytest.approx([0])
    half = torch.cat([solid([1.0, 1, 1]), solid([0.0, 0, 0])], dim=2)
    assert objectives.asymmetry(half) == pytest.approx([1])


@pytest.mark.parametrize("measure", [objectives.jpeg_size, objectives.brightness, objectives.sharpness])
def test_pictures_of_no_numbers_are_refused_and_not_the_most_compressible(measure):
    images = np.full((3, 8, 8, 3), 0.5)
    images[1] = np.nan
    with pytest.raises(ValueError, match="images: candidate 2 .*NaN.*--fp32-vae"):
        measure(images)
