"""Better pictures without training: the best of several, and a search for better initial noise."""

import numpy as np
import torch
from comfy_api.latest import io

from ..d3po_core.search.noise import NoScore, best_first, gain, searched
from ..d3po_core.training.randomness import generator_of
from .pictures import (
    Pictures,
    per_pass_input,
    prompt_input,
    sampling_inputs,
    seed_input,
    wires,
)
from .prompts import text_of
from .types import CATEGORY

SEEDS = 2**64
SCORED = "What makes one picture better than another: any scorer, with a gradient or without."


class FoundNoise:
    """A NOISE of one latent; seed is of what a sampler draws in its steps."""

    def __init__(self, noise, seed):
        self.noise, self.seed = noise, seed

    def generate_noise(self, input_latent):
        wanted = input_latent["samples"]
        if wanted.shape[1:] != self.noise.shape[1:]:
            raise ValueError(
                f"noise: it was found for a latent of {list(self.noise.shape[1:])}, and this one has "
                f"{list(wanted.shape[1:])}. Wire a latent of the size that was searched with"
            )
        return self.noise.repeat_interleave(len(wanted), 0)


class D3POBestOfN(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POBestOfN",
            display_name="D3PO Best of N",
            category=CATEGORY,
            search_aliases=[
                "best of n",
                "rejection sampling",
                "rerank",
                "pick the best",
                "inference scaling",
            ],
            description="Makes several pictures of a prompt as KSampler does, each of the next seed, and "
            "gives those that a scorer likes best. Nothing is trained.",
            inputs=[
                *wires(SCORED),
                seed_input("The first picture's. The next has the next seed, and so on."),
                *sampling_inputs(),
                io.Int.Input(
                    "candidates", default=8, min=1, max=10000, tooltip="How many pictures to make (N)."
                ),
                io.Int.Input("keep", default=1, min=1, max=10000, tooltip="How many of the best come out."),
                per_pass_input(),
                prompt_input(),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The kept pictures, best first."),
                io.Latent.Output(display_name="latent", tooltip="The same as latents."),
                io.Int.Output(
                    display_name="seeds",
                    is_output_list=True,
                    tooltip="Their seeds: KSampler makes each again.",
                ),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="Their scores, in the scorer's unit."
                ),
                io.String.Output(display_name="report", tooltip="What was gained, in words."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls, model, vae, scorer, latent_image, seed, candidates, keep, per_pass, prompt=None, **sampling
    ):
        pictures = Pictures(
            model, vae, scorer, text_of(cls, prompt), latent_image, sampling, per_pass, [candidates]
        )
        seeds = [(seed + number) % SEEDS for number in range(candidates)]
        scores, made = pictures.judged(torch.cat([pictures.noise(own) for own in seeds]), seeds)
        best = best_first(scores)[:keep]
        if not best:
            raise ValueError(f"scorer: {scorer.name} gave no finite number for any of the pictures")
        text = "\n".join([*best_report(scores, seeds), *pictures.told()])
        return io.NodeOutput(
            torch.cat([made[place].image for place in best]),
            pictures.latent([made[place] for place in best]),
            [seeds[place] for place in best],
            [float(scores[place]) for place in best],
            text,
            ui={"text": [text]},
        )


class D3PONoiseSearch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3PONoiseSearch",
            display_name="D3PO Noise Search",
            category=CATEGORY,
            search_aliases=["zero order search", "inference-time scaling", "noise optimization", "zo-n"],
            description="Searches for initial noise whose picture a scorer likes better, step by step from "
            "one seed's (zeroth-order search, arXiv 2501.09732). The scorer needs no gradient, and nothing "
            "is trained.",
            inputs=[
                *wires(SCORED),
                seed_input("Of the noise that the search begins with, and of all that it draws."),
                *sampling_inputs(),
                io.Int.Input(
                    "neighbours",
                    default=4,
                    min=1,
                    max=1024,
                    tooltip="How many noises near the best so far are tried in a round.",
                ),
                io.Float.Input(
                    "step",
                    default=0.4,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="How far away they are. Small steps keep the picture and better it; at 1 each is "
                    "another picture, as in D3PO Best of N.",
                ),
                io.Int.Input(
                    "rounds",
                    default=6,
                    min=1,
                    max=10000,
                    tooltip="How often. Each round makes as many pictures as there are neighbours.",
                ),
                per_pass_input(),
                prompt_input(),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The best picture that was found."),
                io.Latent.Output(display_name="latent", tooltip="The same as a latent."),
                io.Noise.Output(
                    display_name="noise",
                    tooltip="Its noise: SamplerCustomAdvanced makes the picture again, or one with more "
                    "steps.",
                ),
                io.Float.Output(display_name="score", tooltip="Its score, in the scorer's unit."),
                io.Float.Output(
                    display_name="history",
                    is_output_list=True,
                    tooltip="The best score before the first round, and after each.",
                ),
                io.String.Output(display_name="report", tooltip="The search, in words."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        model,
        vae,
        scorer,
        latent_image,
        seed,
        neighbours,
        step,
        rounds,
        per_pass,
        prompt=None,
        **sampling,
    ):
        batches = [1 + neighbours, *[neighbours] * (rounds - 1)]
        pictures = Pictures(
            model, vae, scorer, text_of(cls, prompt), latent_image, sampling, per_pass, batches
        )
        # a sampler's own draws are the same for all, so that noises alone differ
        judge = lambda noises: pictures.judged(noises, [seed] * len(noises))
        try:
            found = searched(
                pictures.noise(seed), judge, rounds, neighbours, step, generator_of("noise search", seed)
            )
        except NoScore as error:
            raise ValueError(f"scorer: {scorer.name}: {error}") from error
        score = found.history[-1]
        text = "\n".join([*search_report(found.history, neighbours), *pictures.told()])
        return io.NodeOutput(
            found.made.image,
            pictures.latent([found.made]),
            FoundNoise(found.noise, seed),
            score,
            found.history,
            text,
            ui={"text": [text]},
        )


def best_report(scores, seeds):
    known, best = np.isfinite(scores), best_first(scores)[0]
    yield f"the best of {len(seeds)} pictures scores {scores[best]:.4g} (seed {seeds[best]})"
    if known.sum() > 1:
        of_all = scores[known]
        yield f"mean {of_all.mean():.4g}, standard deviation {of_all.std(ddof=1):.2g}"
        yield f"the best is {gain(scores):.2f} standard deviations above the mean"
    if not known.all():
        left = ", ".join(str(own) for own, is_known in zip(seeds, known) if not is_known)
        yield f"left out, as the scorer failed on them or gave no finite number: seeds {left}"


def search_report(history, neighbours):
    rounds = len(history) - 1
    found = sum(after != before for before, after in zip(history, history[1:]))
    yield f"{1 + rounds * neighbours} pictures; {found} of {rounds} rounds found a better one"
    yield f"score: {', '.join(f'{score:.4g}' for score in history)}"
    yield f"gained {history[-1] - history[0]:.4g} over the picture that it began with"
