"""Pictures that a node samples, decodes and has scored by itself, as KSampler and VAE Decode make them."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io

from . import host
from .sampling import Bar, cfg_input, latent_of, scheduler_input
from .types import ScorerType


class Picture(NamedTuple):
    latent: torch.Tensor  # [1, C, H, W]
    image: torch.Tensor  # [1, H, W, 3]


@dataclass
class Pictures:
    """How pictures are made, and judged.

    text      the prompt's, or None
    sampling  steps, cfg, sampler_name, scheduler, positive, negative and denoise, as comfy.sample.sample has
              them
    batches   how many will be judged at a time, all that ever will
    """

    model: object
    vae: object
    scorer: object
    text: str | None
    latent_image: dict
    sampling: dict
    per_pass: int
    batches: list

    def __post_init__(self):
        given = self.latent_image["samples"]
        if given.is_nested or given.ndim > 4 and given.shape[2] > 1:
            raise ValueError("latent_image: this searches among pictures, not videos or sounds")
        if len(given) > 1:
            raise ValueError(
                f"latent_image: it holds {len(given)} latents; give it one, of which all pictures are made"
            )
        self.start = latent_of(self.model, self.latent_image, 1)
        if not host.goes_together(self.sampling["sampler_name"]):
            self.per_pass = 1
        passes = sum(math.ceil(count / self.per_pass) for count in self.batches)
        self.bar = Bar(passes * self.sampling["steps"])

    def noise(self, seed):
        """KSampler's of a seed, [1, C, H, W]."""
        return comfy.sample.prepare_noise(self.start, seed, self.latent_image.get("batch_index"))

    def judged(self, noises, seeds):
        """(scores [n], NaN where there is none; [Picture]) of noises [n, C, H, W]. seeds are of what a
        sampler draws in its steps. Raises ValueError, naming the input, where the scorer cannot judge."""
        passes = zip(noises.split(self.per_pass), range(0, len(noises), self.per_pass))
        latents = torch.cat([self._sampled(some, seeds[first]) for some, first in passes])
        comfy.model_management.throw_exception_if_processing_interrupted()
        images = self.vae.decode(latents)
        images = images.reshape(-1, *images.shape[-3:])  # of a video VAE each is a clip of one
        comfy.model_management.throw_exception_if_processing_interrupted()
        try:
            scores = self.scorer.known(images, self.text)
        except ValueError as error:
            raise ValueError(f"scorer: {error}") from error
        return scores, [*map(Picture, latents.split(1), images.split(1))]

    def _sampled(self, noises, seed):
        start = self.start.repeat_interleave(len(noises), 0)
        return comfy.sample.sample(
            self.model,
            noises,
            latent_image=start,
            noise_mask=self.latent_image.get("noise_mask"),
            callback=self.bar.over(self.model),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
            **self.sampling,
        )

    def latent(self, pictures):
        """A LATENT of these."""
        left_out = ("samples", "batch_index", "downscale_ratio_spacial", "downscale_ratio_temporal")
        rest = {name: value for name, value in self.latent_image.items() if name not in left_out}
        return rest | {"samples": torch.cat([picture.latent for picture in pictures])}

    def told(self):
        """What is to be said of the sampler, lines."""
        if not host.goes_together(self.sampling["sampler_name"]):
            yield (
                f"{self.sampling['sampler_name']} draws noise in its steps, or chooses them by what it "
                "samples, so pictures were sampled one at a time: else KSampler could not repeat them"
            )


def wires(scored):
    """What is wired to a node that makes pictures; `scored` is a scorer's tooltip."""
    return [
        io.Model.Input("model", tooltip="The model to sample, with any LoRAs on it. It is left as it is."),
        io.Vae.Input("vae", tooltip="Decodes the pictures that are scored."),
        ScorerType.Input("scorer", tooltip=scored),
        io.Conditioning.Input("positive", tooltip="The prompt."),
        io.Conditioning.Input("negative", tooltip="What to keep out of the picture."),
        io.Latent.Input(
            "latent_image", tooltip="One empty latent for its size, or an image to start from, also masked."
        ),
    ]


def seed_input(tooltip):
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip
    )


def sampling_inputs():
    """As KSampler has them."""
    return [
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Denoising steps of each picture."),
        cfg_input("Guidance scale."),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.KSampler.SAMPLERS,
            default="euler",
            tooltip="Any of ComfyUI's. One that draws noise in its steps samples pictures one at a time, so "
            "that KSampler can repeat them.",
        ),
        scheduler_input(),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Below 1 pictures keep the structure of latent_image.",
        ),
    ]


def per_pass_input():
    return io.Int.Input(
        "per_pass",
        default=4,
        min=1,
        max=1024,
        tooltip="How many pictures are sampled together. More are faster where there is memory for them; if "
        "it runs out, lower this.",
    )


def prompt_input():
    return io.String.Input(
        "prompt",
        optional=True,
        force_input=True,
        tooltip="The prompt's text, for scorers that look at it. Without it they get the text of the CLIP "
        "Text Encode at positive.",
    )
