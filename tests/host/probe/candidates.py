"""Candidates and a scorer without a model, for the tests of judging."""

import colorsys
import json
import math

import torch

from .common import of_pack, text_sha


class Candidates:
    """Sets of candidates without a model: stripes, whose colour, angle and width tell set and candidate."""

    CATEGORY, FUNCTION = "test", "make"
    RETURN_TYPES, OUTPUT_IS_LIST = ("D3PO_TRAJECTORY", "IMAGE"), (True, True)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "seed": ("INT", {"default": 0}),
                "candidates": ("INT", {"default": 4}),
                "sets": ("INT", {"default": 1, "max": 1000}),
                "size": ("INT", {"default": 64, "max": 4096}),
            }
        }

    def make(self, seed, candidates, sets, size):
        pack, kernels = of_pack("candidates.trajectory"), of_pack("candidates.kernels")
        trajectories, images = [], []
        for index in range(sets):
            states = torch.zeros(3, candidates, 4, 8, 8)
            trajectories.append(
                pack.Trajectory(
                    states=states,
                    denoised=states[1:].clone(),
                    sigmas=torch.tensor([2.0, 1.0, 0.0]),
                    kernel=kernels.Ancestral(1.0),
                    set_id=text_sha([seed, index, candidates])[:16],
                    model="none",
                    policy="",
                    settings={},
                    conditioning=None,
                )
            )
            images.append(
                torch.stack([self.stripes(seed, index, i, candidates, size) for i in range(candidates)])
            )
        return trajectories, images

    def stripes(self, seed, index, candidate, candidates, size):
        y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
        angle = math.pi * candidate / candidates
        wave = 0.5 + 0.5 * torch.sin(
            (6 + 3 * (index % 7)) * math.pi * (x * math.cos(angle) + y * math.sin(angle))
        )
        colour = torch.tensor(colorsys.hsv_to_rgb((candidate / candidates + 0.13 * seed) % 1, 0.7, 1.0))
        grain = torch.rand(
            size, size, 1, generator=torch.Generator().manual_seed(seed + index)
        )  # files as large as photos'
        return 0.12 + 0.8 * wave[..., None] * colour + 0.08 * grain


class Scorer:
    """A scorer of the numbers that a JSON object has for each prompt."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("D3PO_SCORER",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"numbers": ("STRING", {"default": "{}"})}}

    def make(self, numbers):
        judge = lambda images, prompt: [float(number) for number in json.loads(numbers)[prompt]]
        return (of_pack("candidates.scorers").Scorer("of numbers", judge),)
