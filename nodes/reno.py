"""The initial noise of a picture of one step or few, led along a score's gradient."""

from typing import NamedTuple

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io

from ..d3po_core.candidates.ode import euler
from ..d3po_core.search.ascent import Look
from ..d3po_core.search.reno import ascended
from ..d3po_core.training.rewards import checkpointed
from . import host
from .host.conditioning import AS_RECORDED
from .noise_ascent import Scored, answer, outputs, require_gradient
from .pictures import prompt_input, seed_input, wires
from .prompts import text_of
from .sampling import cfg_input
from .train.rewards import prepared, prompt_of
from .types import CATEGORY

SCHEDULER = "simple"  # equal steps down from the most noise, as models of few steps are sampled


class D3PORENO(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3PORENO",
            display_name="D3PO ReNO",
            category=CATEGORY,
            search_aliases=["noise optimization", "turbo", "schnell", "lightning", "one step", "reward"],
            description="Makes one picture by a model of one to four steps, such as SDXL Turbo or Flux "
            "Schnell, and changes its initial noise along a scorer's gradient, so that it scores higher "
            "(ReNO, arXiv 2406.04312). Nothing is trained.",
            inputs=[
                *wires("What the picture is to score higher by. It must have a gradient."),
                seed_input("Decides the noise that it begins with, as in KSampler."),
                io.Int.Input(
                    "steps",
                    default=1,
                    min=1,
                    max=4,
                    tooltip="Sampling steps, by euler on the scheduler simple: as many as the model is made "
                    "for.",
                ),
                cfg_input("Guidance scale. 1 for models of few steps.", default=1.0),
                io.Int.Input(
                    "iterations",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="How often the noise is changed: 50 in the paper. Each samples and decodes the "
                    "picture, and goes back through both.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=5.0,
                    min=0.001,
                    max=1000.0,
                    step=0.5,
                    round=False,
                    tooltip="How far the noise goes along a gradient, which is cut to a length of 0.1: 5 in "
                    "the paper, for pictures of 512x512 pixels.",
                ),
                prompt_input(),
            ],
            outputs=outputs(
                before="The picture of the seed.",
                noise="Its noise: SamplerCustomAdvanced with euler, the scheduler simple and as many steps "
                "makes the picture again.",
            ),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        model,
        vae,
        scorer,
        positive,
        negative,
        latent_image,
        seed,
        steps,
        cfg,
        iterations,
        learning_rate,
        prompt=None,
    ):
        require_gradient(scorer)
        candidates = prompt_of(model, "picture", cfg, positive, negative, latent_image)
        text = text_of(cls, prompt)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), SCHEDULER, steps)
        way = Way(candidates, sigmas, scorer, text, iterations)
        noise = comfy.sample.prepare_noise(candidates.latents, seed)
        with host.decoding(model, vae, prepared(scorer, None, [text])) as decoding:
            found, before = host.train_inside(
                decoding.beside,
                [candidates],
                lambda session: way.walked(session, decoding, noise, learning_rate),
            )
        return answer(model, found, before, seed)


class Way(NamedTuple):
    """What is sampled and scored on the way."""

    candidates: object
    sigmas: torch.Tensor
    scorer: object
    text: str | None
    iterations: int

    def walked(self, session, decoding, noise, learning_rate):
        """(the Ascent from noise [1, C, H, W], what was Made before it)."""
        bar, made = comfy.utils.ProgressBar(self.iterations + 1), []

        def look(noise):
            start = noise.to(session.device, copy=True).requires_grad_()
            end = self.sampled(session, start)
            seen = Scored.of(end, decoding, self.scorer, self.text)
            made.append(seen.made)
            bar.update(1)

            def gradient():
                by_end, size = seen.gradient()
                end.backward(by_end)
                return (size * start.grad).cpu()

            return Look(float(seen.score), seen.made, gradient)

        found = ascended(noise.float().clone(), look, self.iterations, learning_rate)
        return found, made[0]

    def sampled(self, session, noise):
        """The latent of some noise, with a gradient, as the host's sampling by euler has it."""
        sigmas, guided = self.sigmas.to(noise, copy=True), session.denoiser(self.candidates, AS_RECORDED)
        most = session.max_denoise(session.guider, sigmas)
        with torch.enable_grad():
            x = session.guider.inner_model.model_sampling.noise_scaling(
                sigmas[0], noise, torch.zeros_like(noise), most
            )
            for pair in zip(sigmas, sigmas[1:]):
                x = checkpointed(lambda x, pair=pair: euler(guided, x, torch.stack(pair)))(x)
        return x
