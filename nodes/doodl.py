"""A picture's initial noise, led along a score's gradient."""

from typing import NamedTuple

import comfy.sample
import comfy.utils
import torch
from comfy_api.latest import io

from ..d3po_core.search import edict
from ..d3po_core.search.ascent import Look
from ..d3po_core.search.doodl import ascended
from . import host
from .host.conditioning import AS_RECORDED
from .noise_ascent import Scored, answer, outputs, require_gradient
from .pictures import prompt_input, seed_input, wires
from .prompts import text_of
from .sampling import cfg_input, scheduler_input, sigmas_of
from .train.rewards import prepared, prompt_of
from .types import CATEGORY


class D3PODOODL(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3PODOODL",
            display_name="D3PO DOODL",
            category=CATEGORY,
            search_aliases=["noise optimization", "classifier guidance", "edict", "latent optimization"],
            description="Makes one picture of a prompt and changes its initial noise along a scorer's "
            "gradient, so that it scores higher (DOODL, arXiv 2303.13703). It samples by EDICT, whose steps "
            "can be undone, so memory does not grow with the steps. Nothing is trained.",
            inputs=[
                *wires("What the picture is to score higher by. It must have a gradient."),
                seed_input("Decides the noise that it begins with, as in KSampler."),
                *sampling(),
                io.Int.Input(
                    "updates",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip="How often the noise is changed. Each takes about four times as long as sampling "
                    "by euler, and more for the gradient.",
                ),
                io.Float.Input(
                    "step",
                    default=0.02,
                    min=0.001,
                    max=1.0,
                    step=0.005,
                    round=False,
                    tooltip="How far an update goes, as a share of the noise. Small steps keep the picture.",
                ),
                prompt_input(),
            ],
            outputs=outputs(
                before="The picture of the seed, by EDICT as well.",
                noise="Its noise, for SamplerCustomAdvanced: other deterministic samplers make nearly the "
                "same of it.",
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
        scheduler,
        updates,
        step,
        prompt=None,
    ):
        require_fit(model, scorer)
        candidates = prompt_of(model, "picture", cfg, positive, negative, latent_image)
        text, sigmas = text_of(cls, prompt), sigmas_of(model, steps, scheduler, 1.0)
        way = Way(candidates, sigmas, scorer, text, updates)
        noise = comfy.sample.prepare_noise(candidates.latents, seed)
        with host.decoding(model, vae, prepared(scorer, None, [text])) as decoding:
            found, before, drift = host.train_inside(
                decoding.beside, [candidates], lambda session: way.walked(session, decoding, noise, step)
            )
        drifted = f"undoing the steps led back to their start but for {drift:.1g} of it"
        return answer(model, found, before, seed, [drifted])


class Way(NamedTuple):
    """What is sampled and scored on the way."""

    candidates: object
    sigmas: torch.Tensor
    scorer: object
    text: str | None
    updates: int

    def walked(self, session, decoding, noise, step):
        """(the Ascent from noise [1, C, H, W], what was Made before it, how far the inversion was off at
        most, as a share of the start)."""
        levels, noise = self.sigmas.double().cpu().clone(), noise.double()
        passes = 2 * (len(levels) - 1)  # of sampling, and of its gradient
        bar = comfy.utils.ProgressBar(passes * (2 * self.updates + 1))
        guided, made, drifts = session.denoiser(self.candidates, AS_RECORDED), [], [0.0]

        def denoise(x, sigma):  # the latents stay in float64, which not every device has
            bar.update(1)
            x0 = guided(x.to(session.device, torch.float32), sigma.to(session.device, torch.float32))
            return x0.to("cpu", torch.float64)

        def look(noise):
            start = self.candidates.noised(torch.zeros_like(noise), levels[0], noise)
            end = edict.sampled(denoise, start, levels)
            seen = Scored.of(end.x.to(session.device, torch.float32), decoding, self.scorer, self.text)
            made.append(seen.made)

            def gradient():
                by_end, _ = seen.gradient()  # its size counts for nothing
                by_end = by_end.to("cpu", torch.float64)
                by_start, back = edict.gradient(
                    denoise, end, edict.Pair(by_end, torch.zeros_like(by_end)), levels
                )
                drifts.append(float((back.x - start).norm() / start.norm()))
                return by_start

            return Look(float(seen.score), seen.made, gradient)

        found = ascended(noise, look, self.updates, step)
        return found, made[0], max(drifts)


def sampling():
    return [
        io.Int.Input(
            "steps",
            default=50,
            min=2,
            max=1000,
            tooltip="Sampling steps, of EDICT: 50 in its paper. It needs more than other samplers; with few, "
            "colours are too strong and shapes dissolve. Memory does not grow with them.",
        ),
        cfg_input("Guidance scale."),
        scheduler_input(),
    ]


def require_fit(model, scorer):
    require_gradient(scorer)
    if host.is_flow(model):
        raise ValueError(
            "model: this is a flow model (such as SD3 and Flux), and EDICT's steps are those of epsilon and "
            "v models (such as SD1.5 and SDXL). Use D3PO Noise Search, which takes any"
        )
