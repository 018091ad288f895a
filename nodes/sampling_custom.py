"""Recording with the host's custom sampling: any guider, schedule and noise."""

import copy

from comfy_api.latest import io

from . import host
from .host.guiders import conditioning_from
from .sampling import (
    RecordingNode,
    candidate_inputs,
    latent_input,
    latent_of,
    outputs,
    record_set,
    sampler_input,
    window_of,
)
from .types import CATEGORY, SKIPPED


class D3POSamplerCustom(RecordingNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POSamplerCustom",
            display_name="D3PO Sampler Custom (Recording)",
            category=CATEGORY,
            search_aliases=["recording sampler", "custom sampler", "guider", "sigmas", "flux"],
            description=(
                "D3PO KSampler for custom sampling: noise, guider and sigmas come over wires, as in "
                "SamplerCustomAdvanced. Training goes through the same guider."
            ),
            is_input_list=True,
            inputs=[
                io.Noise.Input(
                    "noise", tooltip="From RandomNoise; its seed decides the steps' noise as well."
                ),
                io.Guider.Input("guider", tooltip="From Basic Guider, CFG Guider or Dual CFG Guider."),
                io.Sigmas.Input("sigmas", tooltip="The noise levels, down to 0."),
                latent_input(),
                sampler_input(),
                *candidate_inputs(),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @staticmethod
    def steps_of(inputs):
        return len(inputs["sigmas"]) - 1

    @classmethod
    def sample_set(
        cls,
        index,
        bar,
        noise,
        guider,
        sigmas,
        latent_image,
        sampler_name,
        candidates,
        eta,
        window_steps=0,
        window_start=0,
    ):
        require_schedule(sigmas)
        model = guider.model_patcher
        seed = (noise.seed + (model.get_attachment(SKIPPED) or 0)) % 2**64
        latent = latent_of(model, latent_image, candidates)
        conditioning = conditioning_from(guider, latent, seed)
        for name, prompt in conditioning.prompts.items():
            host.require_plain(prompt, f"guider: its {name} conditioning")
        conditioning.noise = noise_of(noise, seed)
        sampler, window = (sampler_name, eta), window_of(sigmas, window_start, window_steps)
        settings = {"steps": len(sigmas) - 1}
        return record_set(
            cls, index, bar, model, conditioning, sigmas, sampler, window, candidates, latent_image, settings
        )


def noise_of(noise, seed):
    """What gives the first noise of another seed."""
    noise = copy.copy(noise)
    noise.seed = seed
    return noise


def require_schedule(sigmas):
    """Raises ValueError for noise levels that do not fall to 0, or are too few to add any noise."""
    if len(sigmas) < 3 or sigmas[-1] != 0 or not (sigmas[1:] < sigmas[:-1]).all():
        raise ValueError(
            "sigmas: they must fall from step to step, end at 0 so that the candidates are finished images, "
            "and be three at least; of Split Sigmas take the low part"
        )
