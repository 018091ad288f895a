"""What nodes that lead a picture's noise along a score's gradient have in common."""

from typing import NamedTuple

import torch
from comfy_api.latest import io

from .search import FoundNoise


class Made(NamedTuple):
    latent: torch.Tensor  # [1, C, H, W] in the model's own space
    image: torch.Tensor  # [1, H, W, 3]


class Scored(NamedTuple):
    """A finished latent: the score of its picture, 0-d, what was made, and the gradient by the latent."""

    score: torch.Tensor
    made: Made
    latent: torch.Tensor

    @classmethod
    def of(cls, latent, decoding, scorer, text):
        latent = latent.detach().requires_grad_()
        with torch.enable_grad():
            image = decoding.decode(latent)
            score = scorer(image, text).mean()
        return cls(score, Made(latent.detach().cpu(), image.detach().cpu()), latent)

    def gradient(self):
        """(the gradient by the latent divided by its size, its size): as it is it may be too small for half
        precision."""
        (gradient,) = torch.autograd.grad(self.score, self.latent)
        size = gradient.square().mean().sqrt().clamp(min=1e-30)
        return gradient / size, size


def outputs(before, noise):
    """before and noise are tooltips."""
    return [
        io.Image.Output(display_name="image", tooltip="The best picture on the way."),
        io.Image.Output(display_name="before", tooltip=before),
        io.Latent.Output(display_name="latent", tooltip="The best picture as a latent."),
        io.Noise.Output(display_name="noise", tooltip=noise),
        io.Float.Output(display_name="score", tooltip="Its score, in the scorer's unit."),
        io.Float.Output(
            display_name="history",
            is_output_list=True,
            tooltip="The score before the first update, and after each.",
        ),
        io.String.Output(display_name="report", tooltip="What was gained, in words."),
    ]


def answer(model, found, before, seed, further=()):
    """Of an Ascent, and what was Made before it. `further` lines are added to the report."""
    told = "\n".join([*report(found), *further])
    return io.NodeOutput(
        found.made.image,
        before.image,
        {"samples": model.model.process_latent_out(found.made.latent)},
        FoundNoise(found.noise.float(), seed),
        found.score,
        found.history,
        told,
        ui={"text": [told]},
    )


def require_gradient(scorer):
    if not scorer.differentiable:
        raise ValueError(
            f"scorer: {scorer.name} has no gradient to follow. Wire it to D3PO Noise Search, which needs none"
        )


def report(found):
    updates = len(found.history) - 1
    best = found.history.index(found.score)
    yield f"{updates} updates; the best picture is that after {best}"
    yield f"score: {', '.join(f'{score:.4g}' for score in found.history)}"
    yield f"gained {found.score - found.history[0]:.4g} over the picture that it began with"
