"""The pictures that the demo leaves."""

import torch
from PIL import Image

from d3po_core.candidates import objectives
from tools.sheet import as_batch, before_after, by_round


def test_the_demo_draws_what_it_has_measured(tmp_path):
    images = [Image.new("RGB", (16, 16), (shade, 90, 40)) for shade in (10, 120, 200, 250)]
    measured = objectives.brightness(as_batch(images))
    rise = [0.1 * number * torch.ones_like(measured) + 0.01 * measured for number in (1, 2)]
    by_round(rise, 0.2, "brightness", tmp_path / "objective.png")
    before_after(images[:2], images[2:], tmp_path / "before_after.png")
    for name, least in (("objective.png", (800, 400)), ("before_after.png", (32, 32))):
        with Image.open(tmp_path / name) as picture:
            assert picture.width >= least[0] and picture.height >= least[1]
