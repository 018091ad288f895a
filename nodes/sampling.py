"""Recording: prompts in, candidates with their trajectories out."""

from functools import partial

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy_api.latest import io

from ..d3po_core.candidates.prompts import drawn
from . import host
from .together import number_of, ranks, share
from .types import CATEGORY, SKIPPED, Trajectories


class D3POPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POPrompts",
            display_name="D3PO Prompts",
            category=CATEGORY,
            search_aliases=["prompt list", "random prompts", "prompt sampler"],
            description=(
                "Draws prompts from a list, each with a seed of its own. Everything wired behind it runs "
                "once for each prompt, and the train step learns from all of them together."
            ),
            inputs=[
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="a cat on a red background",
                    tooltip="One prompt in each line. Empty lines are skipped.",
                ),
                io.Int.Input(
                    "count",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="How many prompts to draw. Every prompt is drawn once before one is drawn again.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Decides which prompts are drawn and their seeds. Change it from round to round.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompt", is_output_list=True, tooltip="The drawn prompts: wire to CLIP Text Encode."
                ),
                io.Int.Output(
                    "seeds", is_output_list=True, tooltip="One seed for each prompt: wire to the sampler."
                ),
            ],
        )

    @classmethod
    def execute(cls, prompts, count, seed):
        seed = ranks().gathered(seed)[0]  # each may have drawn its own
        return io.NodeOutput(*share(*drawn(prompts, count, seed), what="count"))


def schedule_inputs():
    """How a set is sampled, as in KSampler."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Decides the initial noise, which the candidates share, and the steps' noise, in "
            "which they differ.",
        ),
        io.Int.Input(
            "steps",
            default=20,
            min=1,
            max=10000,
            tooltip="Denoising steps. All but the last are trained on, so fewer also train faster.",
        ),
        cfg_input("Guidance scale, used while training as well. D3PO uses 5."),
        sampler_input(),
        scheduler_input(
            "How noise falls over the steps: take what makes the best pictures. Only with the train "
            "step's weighting paper does it decide which steps count. There take sgm_uniform, simple or "
            "karras: one step of 20 has at most 0.13 of the squared gradient, but 0.85 with normal and "
            "0.75 with ddim_uniform (0.73 in D3PO's code)."
        ),
    ]


def cfg_input(tooltip, default=5.0):
    return io.Float.Input("cfg", default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip)


def scheduler_input(tooltip="How noise falls over the steps."):
    return io.Combo.Input(
        "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="normal", tooltip=tooltip
    )


def sampler_input():
    return io.Combo.Input(
        "sampler_name",
        options=host.SAMPLERS,
        tooltip="A sampler that adds noise at every step: only then has a step a probability to train on. "
        "euler_ancestral is ComfyUI's own, for all models, and so are lcm (for LCM, Turbo and Lightning "
        "models) and euler_ancestral_cfg_pp (CFG++, with a cfg of about 1). ddpm is not for flow models. Of "
        "flow models only, such as SD3 and Flux: flow_sde (Flow-GRPO's steps) and flow_cps (the same with "
        "less noise left in images).",
    )


def latent_input():
    return io.Latent.Input(
        "latent_image",
        tooltip="An empty latent for its size, or an image to start from. With a mask (Set Latent Noise "
        "Mask) candidates differ inside of it alone, and training learns from that part.",
    )


def candidate_inputs():
    """How the candidates differ from one another."""
    return [
        io.Int.Input(
            "candidates",
            default=2,
            min=2,
            max=64,
            tooltip="How many candidates to make of each prompt. D3PO shows people 7 and compares "
            "objectives on 2. More give more pairs for the same prompt.",
        ),
        io.Float.Input(
            "eta",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            tooltip=(
                "How much noise each step adds, of what the sampler's paper adds: 1 is D3PO's setting; at 0 "
                "sampling is deterministic and cannot be trained on. Lower values make candidates more "
                "alike. ddpm and lcm take 1 alone."
            ),
        ),
        io.Int.Input(
            "window_steps",
            default=0,
            min=0,
            max=10000,
            optional=True,
            tooltip="How many steps add noise and are recorded; the others follow the model without noise. "
            "0: all of them. With 2 of 28 a recording is small, and training on it takes two passes.",
        ),
        io.Int.Input(
            "window_start",
            default=0,
            min=0,
            max=10000,
            optional=True,
            tooltip="The first step of the window, from 0 on. Early steps decide what is where, late ones "
            "details. Without window_steps it does nothing.",
        ),
    ]


def outputs():
    return [
        Trajectories.Output(
            display_name="trajectory",
            is_output_list=True,
            tooltip="The candidates with all their steps: wire to a preference node.",
        ),
        io.Latent.Output(
            display_name="latent", is_output_list=True, tooltip="The candidates: wire to VAE Decode."
        ),
    ]


class RecordingNode(io.ComfyNode):
    """A node that records one set after the other: a subclass says how many steps one has (`steps_of`) and
    records it (`sample_set`)."""

    @classmethod
    def validate_inputs(cls, sampler_name):
        name = sampler_name[0] if isinstance(sampler_name, list) else sampler_name
        return host.sampler_problem(name) or True

    @classmethod
    def execute(cls, **lists):
        sets = every(lists)
        bar = Bar(sum(map(cls.steps_of, sets)))
        results = [cls.sample_set(index, bar, **inputs) for index, inputs in enumerate(sets)]
        return io.NodeOutput(*map(list, zip(*results)))


class D3POKSampler(RecordingNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POKSampler",
            display_name="D3PO KSampler (Recording)",
            category=CATEGORY,
            search_aliases=["recording sampler", "trajectory", "ksampler d3po", "candidates"],
            description=(
                "KSampler for preference tuning: makes several candidates of one prompt that share their "
                "initial noise, and records every step of each, so that a LoRA can be trained from which "
                "of them you prefer."
            ),
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to sample: the base model, or the run's current LoRA on it."
                ),
                *schedule_inputs(),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="What to keep out of the image."),
                latent_input(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1 the candidates keep the structure of latent_image.",
                ),
                *candidate_inputs(),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @staticmethod
    def steps_of(inputs):
        return inputs["steps"]

    @classmethod
    def sample_set(
        cls,
        index,
        bar,
        model,
        seed,
        steps,
        cfg,
        sampler_name,
        scheduler,
        positive,
        negative,
        latent_image,
        denoise,
        candidates,
        eta,
        window_steps=0,
        window_start=0,
    ):
        host.require_plain(positive, "positive")
        host.require_plain(negative, "negative")
        sigmas = sigmas_of(model, steps, scheduler, denoise)
        # the same on every machine, for candidates that are new
        seed = (seed + (model.get_attachment(SKIPPED) or 0)) % 2**64
        settings = {
            "steps": steps,
            "scheduler": scheduler,
            "denoise": denoise,
            host.EMPTY_NEGATIVE: host.is_empty_text(cls.hidden.dynprompt, cls.hidden.unique_id, "negative"),
        }
        conditioning = host.Conditioning(
            positive, negative, cfg, latent_of(model, latent_image, candidates), seed
        )
        sampler, window = (sampler_name, eta), window_of(sigmas, window_start, window_steps)
        return record_set(
            cls, index, bar, model, conditioning, sigmas, sampler, window, candidates, latent_image, settings
        )


class Bar:
    """The progress of several sets, with previews."""

    def __init__(self, steps):
        self.bar, self.done = comfy.utils.ProgressBar(steps), 0

    def over(self, model):
        """A callback of the host's sampling for the next set."""
        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

        def callback(step, x0, x, total_steps):
            self.done += 1
            preview = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None
            self.bar.update_absolute(self.done, preview=preview)

        return callback


def every(lists):
    """The inputs of each set, of lists of inputs: of a shorter one the last serves for the rest."""
    count = max(len(values) for values in lists.values())
    return [{name: values[min(i, len(values) - 1)] for name, values in lists.items()} for i in range(count)]


def record_set(
    node, index, bar, model, conditioning, sigmas, sampler, window, candidates, latent_image, settings
):
    """(Trajectory, LATENT) of a set: a recording node's one of this index. sampler and window as host.record
    has them; `settings` are noted besides those that every recording has."""
    host.require_steps(model)
    mask, lora = mask_in(latent_image, conditioning.latent_image), model.get_attachment("d3po_lora")
    loaded = filter(None, [host.loras_name(model)])
    name = host.set_name(
        node.hidden.dynprompt,
        node.hidden.unique_id,
        *(number_of(node.hidden.dynprompt, node.hidden.unique_id, index), conditioning.seed, lora, *loaded),
        base=partial(host.fingerprint, model),
    )
    settings |= {
        "seed": conditioning.seed,
        "cfg": conditioning.cfg,
        "sampler_name": sampler[0],
        "lora": lora,
        "sampling": host.sampling_name(model),
    }
    trajectory, samples = host.record(
        model, conditioning, sigmas, sampler, window, mask, candidates, name, settings, bar.over(model)
    )
    out = {k: v for k, v in latent_image.items() if not k.startswith("downscale_ratio")}
    return trajectory, out | {"samples": samples}


def latent_of(model, latent_image, candidates):
    """The latents to begin from, with the model's channels, [1 or N, C, H, W]."""
    samples = comfy.sample.fix_empty_latent_channels(
        model,
        latent_image["samples"],
        latent_image.get("downscale_ratio_spacial"),
        latent_image.get("downscale_ratio_temporal"),
    )
    if len(samples) not in (1, candidates):
        raise ValueError(
            f"latent_image: it holds {len(samples)} latents; give it one, and set how many "
            "candidates to make with 'candidates'"
        )
    return samples


def mask_in(latent_image, samples):
    """A LATENT's mask, [1, C, H, W], of what is sampled of its samples [1 or N, C, H, W]; None without
    one."""
    if "noise_mask" not in latent_image:
        return None
    if len(samples) > 1:
        raise ValueError(
            f"latent_image: it holds {len(samples)} latents and a mask; with a mask give it one, which all "
            "candidates keep outside of the mask"
        )
    return host.mask_of(latent_image["noise_mask"], samples.shape, "latent_image")


def window_of(sigmas, start, count):
    """(first step, steps) of the window that is recorded; None: all."""
    if not count:
        return None
    random = len(sigmas) - 2  # all but the last, which leads to the clean image
    if start + count > random:
        raise ValueError(
            f"window_start, window_steps: of {len(sigmas) - 1} steps the first {random} can add noise, and "
            f"steps {start} to {start + count - 1} do not lie among them (from 0 on). Begin earlier, or "
            "record fewer"
        )
    return start, count


def sigmas_of(model, steps, scheduler, denoise):
    """The noise levels of the host's own schedule, [steps + 1]."""
    sigmas = comfy.samplers.KSampler(
        model, steps, model.load_device, host.EULER_ANCESTRAL, scheduler, denoise, model.model_options
    ).sigmas
    if len(sigmas) < 3:
        raise ValueError(
            "steps: with denoise this low no step adds noise, and there is nothing to train on; "
            "use at least 2 steps, or raise denoise"
        )
    return sigmas
