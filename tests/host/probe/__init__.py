"""Nodes for the tests alone: they look at what is inside the host's process, or break it on purpose.

Findings are JSON text in the node's ui output. Change `nonce` where a look must not be cached.
"""

import dataclasses
import gc
import sys
import tempfile

import comfy.model_management
import comfy.sample
import torch
from comfy.k_diffusion.sampling import get_ancestral_step
from server import PromptServer

from .adapters import AdapterMerge, ForeignLora
from .candidates import Candidates, Scorer
from .clips import ProbeScorer, ProbeTwin, SmallCLIP
from .common import Probe, of_pack, sha, text_sha
from .controls import ControlNet, PatchWithModel
from .crowded import Crowded
from .families import Family, Inpainting, Texts
from .files import files
from .loras import Begun, ProbeApart, ProbeTargets, SomeLora
from .masks import ProbeMasked, ProbePictures
from .naming import Lora, fingerprints, policies, training
from .samplers import SharedNoise, replayed, ways
from .shapes import Shapes
from .small import SmallModel
from .values import ProbeValue


class ProbeModel(Probe):
    """Everything about a MODEL that training might have left changed."""

    KIND = "MODEL"

    def look(self, model):
        comfy.model_management.load_models_gpu([model])
        network = model.model.diffusion_model
        return {
            "weights": sha(*network.state_dict().values()),
            "modules": text_sha([(name, type(m).__name__) for name, m in network.named_modules()]),
            "attributes": text_sha([(name, sorted(vars(m))) for name, m in model.model.named_modules()]),
            "training": [name for name, m in network.named_modules() if m.training][:3],
            "requires_grad": [name for name, p in network.named_parameters() if p.requires_grad][:3],
            "gradients": [name for name, p in network.named_parameters() if p.grad is not None][:3],
            "hooks": [
                name for name, m in network.named_modules() if m._forward_hooks or m._forward_pre_hooks
            ][:3],
            "patches": sorted(model.patches),
            "object_patches": sorted(model.object_patches),
            "injections": sorted(model.injections),
            "attachments": sorted(model.attachments),
            "in_training": comfy.model_management.in_training,
        }


class ProbeTrajectory(Probe):
    """A recording against the host's own formulas, without the pack's."""

    KIND = "D3PO_TRAJECTORY"

    def look(self, t):
        noises = []
        for i in range(len(t.sigmas) - 1):
            down, up = get_ancestral_step(t.sigmas[i], t.sigmas[i + 1], eta=t.kernel.eta)
            mean = t.denoised[i] + down / t.sigmas[i] * (t.states[i] - t.denoised[i])
            if up > 0:
                noises.append((t.states[i + 1] - mean) / up)
        noise = torch.stack(noises)
        first, last = t.states[0], t.states[-1]
        pairs = [(a, b) for a in range(t.count) for b in range(a)]
        return {
            "set_id": t.set_id,
            "model": t.model,
            "policy": t.policy,
            "settings": t.settings,
            "eta": t.kernel.eta,
            "states": list(t.states.shape),
            "denoised": list(t.denoised.shape),
            "sigmas": t.sigmas.tolist(),
            "dtypes": sorted({str(x.dtype) for x in (t.states, t.denoised, t.sigmas)}),
            "noise_mean": noise.mean().item(),
            "noise_std": noise.std().item(),
            "noise_count": noise.numel(),
            "noise_apart": min((noise[:, a] - noise[:, b]).abs().mean().item() for a, b in pairs),
            "start_shared": all(torch.equal(first[0], x) for x in first),
            "ends_apart": min((last[a] - last[b]).abs().max().item() for a, b in pairs),
            "end_is_denoised": torch.equal(last, t.denoised[-1]),
            "sha": sha(t.states, t.denoised, t.sigmas),
        }


class ProbeSteps(Probe):
    """A recording of any kernel's steps, maybe of a window of them."""

    KIND = "D3PO_TRAJECTORY"

    def look(self, t):
        steps = [
            (t.states[i + 1] - t.kernel.mean(t.states[i], t.denoised[i], *t.sigmas[i : i + 2]))
            / t.kernel.std(*t.sigmas[i : i + 2])
            for i in t.actions
        ]
        noise, first = torch.stack(steps), t.states[0]
        return {
            "set_id": t.set_id,
            "kernel": {"name": t.kernel.name, **vars(t.kernel)},
            "states": list(t.states.shape),
            "sigmas": t.sigmas.tolist(),
            "levels": t.levels.tolist(),
            "first": t.first,
            "noise": [noise.mean().item(), noise.std().item(), noise.numel()],
            "start_shared": all(torch.equal(first[0], x) for x in first),
            "end_is_denoised": torch.equal(t.finished, t.denoised[-1]),
            "sha": sha(t.states, t.denoised, t.sigmas, t.finished),
        }


class ProbeFinished(Probe):
    """The finished images of a recording, maybe in a file, and its noise against the host's own noise."""

    KIND, BESIDE = "D3PO_TRAJECTORY", {"model": ("MODEL",)}

    def look(self, t, model):
        finished = of_pack("host").finished
        with tempfile.TemporaryDirectory() as folder:
            t.save(f"{folder}/recording.safetensors")
            lazy = type(t).open(f"{folder}/recording.safetensors", t.conditioning)
            kept = finished(model, lazy, recorded_noise=True)
        fresh, noise = finished(model, t), comfy.sample.prepare_noise(t.states[0, :1], t.settings["seed"])
        return {
            "prediction": kept.prediction,
            "levels": [len(kept.sigmas), kept.sigmas.max().item()],
            "first": t.sigmas[0].item(),
            "noise": list(kept.noise.shape),
            "fresh": fresh.noise is None,
            "same": [torch.equal(kept.latents, t.finished), torch.equal(fresh.latents, t.finished)],
            "named": [getattr(kept, name) == getattr(t, name) for name in ("set_id", "model", "settings")]
            + [kept.conditioning is t.conditioning],
            "off": ((kept.noise - noise).abs().max() / noise.abs().max()).item(),
        }


class ProbePrompts(Probe):
    """Twenty sets that differ only in what a model takes beside its text (SDXL's and SD3's vector).

    It shows what the model makes of each among the others, and of some alone."""

    KIND, BESIDE = "MODEL", {"conditioning": ("CONDITIONING",)}

    def look(self, model, conditioning):
        (text, options), host, sets = conditioning[0], of_pack("host"), []
        generator = torch.Generator().manual_seed(0)
        for number in range(20):
            sides = [
                [
                    [
                        text,
                        options
                        | {"pooled_output": torch.randn(options["pooled_output"].shape, generator=generator)},
                    ]
                ]
                for _ in range(2)
            ]
            latents = torch.zeros(1, 16, 8, 8)
            sets.append(
                host.clean_candidates(
                    model, latents, f"set {number}", "", host.Conditioning(*sides, 3.0, latents, 0)
                )
            )
        x, sigma = torch.randn(1, 16, 8, 8, generator=generator), torch.tensor([0.5])

        def each(of):
            def work(session):
                pairs = [(session.denoiser(one, guidance=1.0), session.unconditional(one)) for one in of]
                return [[denoise(x, sigma) for denoise in pair] for pair in pairs + pairs[::-1]]

            return host.evaluate_inside(model, of, work, 1)

        together, some = each(sets), (0, 3, 15, 16, 19)
        alone = {number: each([sets[number]])[0] for number in some}
        seen = [one for pair in together[:20] for one in pair]
        return {
            "same": all(
                torch.equal(one, other)
                for number in some
                for place in (number, 39 - number)
                for one, other in zip(together[place], alone[number])
            ),
            "apart": min((a - b).abs().max().item() for i, a in enumerate(seen) for b in seen[:i]),
        }


class ProbeControl(Probe):
    KIND = "CONTROL_NET"

    def look(self, control):
        return sha(*control.control_model.state_dict().values())


class ProbePolicies(Probe):
    KIND = "MODEL"

    def look(self, model):
        return policies(of_pack("host").policy_name, model)


class ProbeFingerprints(Probe):
    KIND = "MODEL"

    def look(self, model):
        return fingerprints(of_pack("host").fingerprint, model)


class ProbeTraining(Probe):
    KIND = "MODEL"

    def look(self, model):
        return training(of_pack("host"), model)


class ProbeFiles(Probe):
    def look(self, value):
        return files(of_pack("host").set_name)


class ProbeSamplers(Probe):
    def look(self, value):
        return ways()


class ProbeReplay(Probe):
    KIND, BESIDE = "D3PO_TRAJECTORY", {"model": ("MODEL",)}

    def look(self, t, model):
        return replayed(t, model)


class ProbePreferences(Probe):
    KIND = "D3PO_PREFERENCES"

    def look(self, p):
        return {
            "set_id": p.candidates.set_id,
            "pairs": p.pairs,
            "source": p.source,
            "scores": p.scores,
            "liked": p.liked,
        }


class ProbeLatent(Probe):
    KIND = "LATENT"

    def look(self, latent):
        return {
            "shape": list(latent["samples"].shape),
            "sha": sha(latent["samples"]),
            "largest": latent["samples"].abs().max().item(),
            "candidates": [sha(x) for x in latent["samples"]],
        }


class ProbeLossMap(Probe):
    KIND = "LOSS_MAP"

    def look(self, losses):
        return losses


class SpoilTrajectory:
    """A recording with something changed."""

    CATEGORY, RETURN_TYPES, FUNCTION = "test", ("D3PO_TRAJECTORY",), "spoil"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"trajectory": ("D3PO_TRAJECTORY",), "how": (["nan", "denoised"],)}}

    def spoil(self, trajectory, how):
        states, denoised = trajectory.states.clone(), trajectory.denoised.clone()
        if how == "nan":
            states[1:] = float("nan")
        else:  # in a place that the trainer's own look at the recording does not cover
            denoised[1, -1] += 1.0
        return (dataclasses.replace(trajectory, states=states, denoised=denoised),)


class TrapModel:
    """A MODEL that raises at the given call, and so many times in a row, when it is trained through. Sampling
    is as ever."""

    CATEGORY, RETURN_TYPES, FUNCTION = "test", ("MODEL",), "set"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "error": (["memory", "error"],),
                "call": ("INT", {"default": 3}),
                "times": ("INT", {"default": 100}),
            }
        }

    def set(self, model, error, call, times):
        calls = []

        def wrapper(apply, arguments):
            if comfy.model_management.in_training:
                calls.append(1)
                if call <= len(calls) < call + times:
                    raise (
                        comfy.model_management.OOM_EXCEPTION("out of memory, as a test")
                        if error == "memory"
                        else ArithmeticError("an error, as a test")
                    )
            return apply(arguments["input"], arguments["timestep"], **arguments["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return (model,)


NODE_CLASS_MAPPINGS = {
    f"Test{cls.__name__}": cls
    for cls in (
        ProbeModel,
        ProbeTrajectory,
        ProbeSteps,
        ProbeMasked,
        ProbePictures,
        ProbeFinished,
        ProbeSamplers,
        ProbeReplay,
        ProbePrompts,
        ProbePreferences,
        ProbeLatent,
        ProbeLossMap,
        ProbeValue,
        SharedNoise,
        SpoilTrajectory,
        TrapModel,
        Crowded,
        ForeignLora,
        Candidates,
        Scorer,
        SmallCLIP,
        SmallModel,
        ProbeScorer,
        ProbeTwin,
        Family,
        Shapes,
        Inpainting,
        Texts,
        AdapterMerge,
        ControlNet,
        ProbeControl,
        ProbePolicies,
        ProbeFingerprints,
        ProbeTraining,
        ProbeFiles,
        ProbeTargets,
        ProbeApart,
        SomeLora,
        Begun,
        Lora,
        PatchWithModel,
    )
}

gc.freeze()  # what the host has loaded by now stays: its collections need not look at it after each prompt


def with_little(prompt):
    """Have a leash measured by few pictures of few steps, and a recommended update see few sets: all else
    about them stays as it is."""
    for name, module in list(sys.modules.items()):
        if name.endswith(".d3po_core.taste.movement"):
            module.PICTURES, module.STEPS = 4, 3
        if name.endswith(".d3po_core.training.presets"):
            module.SETS = 3
    return prompt


PromptServer.instance.add_on_prompt_handler(with_little)
