"""Prompts of different lengths and latents of different shapes, for a model of a family: of video, of
different numbers of frames too."""

import torch

from .families import FAMILIES, POOLED, TEXT, model_of

TOKENS = (77, 154, 512)
SHAPES = ((8, 8), (4, 12), (12, 4))  # square, wide and tall
FRAMES = (1, 3, 2)


class Shapes:
    """A MODEL; in lists conditionings of each length and empty latents of each shape; a negative."""

    CATEGORY, FUNCTION = "test", "make"
    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "LATENT")
    OUTPUT_IS_LIST = (False, True, False, True)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": (list(FAMILIES),)}}

    def make(self, name):
        kind, config, usual = FAMILIES[name]
        model = model_of(kind, config)
        channels = model.get_model_object("latent_format").latent_channels
        generator = torch.Generator().manual_seed(1)

        def text(tokens):
            pooled = torch.randn(1, POOLED, generator=generator)
            return [[torch.randn(1, tokens, TEXT, generator=generator), {"pooled_output": pooled}]]

        is_video = len(usual) == 3
        shapes = [(frames, *shape) if is_video else shape for frames, shape in zip(FRAMES, SHAPES)]
        latents = [{"samples": torch.zeros(1, channels, *shape)} for shape in shapes]
        return model, [text(tokens) for tokens in TOKENS], text(77), latents
