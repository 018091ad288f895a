"""Candidates out of the host's sampling, or out of finished latents."""

import math

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.k_diffusion.sampling import default_noise_sampler, trange

from ...d3po_core.candidates.images import CleanCandidates
from ...d3po_core.candidates.trajectory import Trajectory
from ...d3po_core.runs.files import content_name
from .conditioning import EMPTY_NEGATIVE, conditioning_of
from .guiders import guider_for
from .names import fingerprint, policy_name, sampling_name
from .patches import naming_nodes, steadied
from .samplers import CFG_PP, RECORDABLE, as_guidance, kernel_for, prediction_of, require_cfg_pp


def record(model, conditioning, sigmas, sampler, window, mask, candidates, name, settings, callback):
    """Sample `candidates` images that share their initial noise: (Trajectory, latents [N, C, H, W]).

    sampler  (name, eta), as kernel_for has them
    window   (first step, steps) that are random and recorded, None: all
    mask     [1, C, H, W], the part of the latent that is sampled, None: all
    """
    kernel = kernel_for(model, *sampler, sigmas)
    latent = conditioning.latent_image
    first = first_noise(conditioning)
    noise = first.repeat_interleave(candidates, 0)
    latent = latent if len(latent) == candidates else latent.repeat_interleave(candidates, 0)
    if sampler[0] == CFG_PP:
        require_cfg_pp(conditioning, window, mask)
    as_host = RECORDABLE[sampler[0]].run and window is None
    recorder = HostRecorder(kernel, *sampler) if as_host else Recorder(kernel, window)
    with naming_nodes(model, "the candidates were sampled"):
        samples = guider_for(steadied(model), conditioning).sample(
            noise,
            latent,
            comfy.samplers.KSAMPLER(recorder),
            sigmas,
            denoise_mask=mask,
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=conditioning.seed,
        )
    management = comfy.model_management
    samples = samples.to(management.intermediate_device(), management.intermediate_dtype())
    start, count = window or (0, len(sigmas) - 1)
    with torch.inference_mode(False):  # a step's gradient may ask for any of these
        states, denoised = torch.stack(recorder.states), torch.stack(recorder.denoised)
        sigmas = sigmas.float().cpu().clone()
        final = None if window is None else recorder.final.clone()
    around = {}
    if mask is not None:
        around = {"mask": mask, "noise": first.float().cpu()}
        settings = settings | {"mask": content_name({"mask": mask})}
    trajectory = Trajectory(
        states=states,
        denoised=denoised,
        sigmas=sigmas[start : start + count + 1].clone(),
        kernel=kernel,
        set_id=name,
        model=fingerprint(model),
        policy=policy_name(model),
        settings=settings,
        conditioning=conditioning,
        schedule=None if window is None else sigmas,
        final=final,
        **around,
    )
    return trajectory, samples


def first_noise(conditioning):
    """The noise that all candidates begin with, [1, C, H, W]."""
    latent = conditioning.latent_image[:1]
    if conditioning.noise is None:
        return comfy.sample.prepare_noise(latent, conditioning.seed)
    return conditioning.noise.generate_noise({"samples": latent})


class HostRecorder:
    """A sampler of the host's own, keeping x and the denoised x of every step."""

    def __init__(self, kernel, name, eta):
        self.kernel, self.name, self.__name__ = kernel, name, f"{name}, recorded"
        self.options = {"eta": eta} if RECORDABLE[name].with_eta else {}

    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
        self.states, self.denoised = [], []
        if self.name == CFG_PP:
            extra_args = extra_args | {"model_options": self.watched(extra_args["model_options"], sigmas)}

        def keep(step):
            self.states.append(step["x"].float().cpu())
            if self.name != CFG_PP:
                self.denoised.append(step["denoised"].float().cpu())
            callback(step)

        run = RECORDABLE[self.name].run
        x = run(model, x, sigmas, extra_args, keep, disable, **self.options)
        self.states.append(x.float().cpu())
        return x

    def watched(self, options, sigmas):
        """Model options under which the denoised x is kept as `as_guidance` has it."""
        guided = as_guidance(self.kernel, sigmas)

        def watch(args):
            self.denoised.append(guided(args).float().cpu())
            return args["denoised"]

        return comfy.model_patcher.set_model_options_post_cfg_function(options.copy(), watch)


class Recorder:
    """A kernel's steps inside a window, keeping x and the denoised x of these, and steps along the
    probability-flow ODE outside of it."""

    __name__ = "recorded"

    def __init__(self, kernel, window):
        self.kernel, self.window = kernel, window

    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
        self.states, self.denoised, extra_args = [], [], extra_args or {}
        first, count = self.window or (0, len(sigmas) - 1)
        noise = default_noise_sampler(x, seed=extra_args.get("seed"))
        for i in trange(len(sigmas) - 1, disable=disable):
            sigma, sigma_next = sigmas[i], sigmas[i + 1]
            x0 = model(x, sigma * x.new_ones([len(x)]), **extra_args)
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})
            if first <= i < first + count:
                self.states.append(x.float().cpu())
                self.denoised.append(x0.float().cpu())
                std = self.kernel.std(sigma, sigma_next)
                x = self.kernel.mean(x, x0, sigma, sigma_next)
                x = x + std.to(x) * noise(sigma, sigma_next) if std > 0 else x
            else:
                x = x + (x - x0) / sigma * (sigma_next - sigma)
            if i == first + count - 1:
                self.states.append(x.float().cpu())
        self.final = x.float().cpu()
        return x


def mask_of(mask, latent_shape, name):
    """A MASK as the host brings it to the size of latents [N, C, H, W], [1, C, H, W]. Raises ValueError,
    naming the input, for more than one, or where nothing is left of it at that size."""
    if len(latent_shape) == 4 and mask.shape[:-2].numel() > 1:
        raise ValueError(
            f"{name}: there are {mask.shape[:-2].numel()} masks. Candidates are compared in one place: give "
            "one mask"
        )
    mask = comfy.sampler_helpers.prepare_mask(mask, (1, *latent_shape[1:]), "cpu").float()
    mask = mask.nan_to_num().clamp(0, 1)  # one that was scaled bicubically swings over
    if not mask.any():
        raise ValueError(
            f"{name}: nothing is inside the mask, or nothing is left of it in the latent, where 8 pixels or "
            "more are one. Paint a larger mask"
        )
    return mask


def clean_candidates(model, latents, name, fingerprint, conditioning, mask=None):
    """CleanCandidates of latents [N, C, H, W] as a VAE gives them, judged inside a mask [1, C, H, W]; the
    negative is the empty text. Raises ValueError as prediction_of."""
    latents = model.model.process_latent_in(latents).float().cpu()
    conditioning.latent_image = torch.zeros_like(latents[:1])
    content = {"latents": latents, "prompt": conditioning.positive[0][0]}
    if mask is not None:
        content["mask"] = mask
    return CleanCandidates(
        latents,
        noise_levels(model),
        prediction_of(model),
        name,
        fingerprint,
        {"sampling": sampling_name(model), "content": content_name(content), EMPTY_NEGATIVE: True},
        conditioning,
        mask=mask,
    )


def to_sample(model, name, conditioning):
    """What stands for pictures of a prompt that are still to be sampled: CleanCandidates with one latent, of
    no matter. Raises ValueError as prediction_of."""
    return CleanCandidates(
        torch.zeros_like(conditioning.latent_image[:1], dtype=torch.float32, device="cpu"),
        noise_levels(model),
        prediction_of(model),
        name,
        fingerprint(model),
        {"sampling": sampling_name(model)},
        conditioning,
    )


def finished(model, candidates, recorded_noise=False):
    """A recording's final images as CleanCandidates, under its name, settings and conditioning; with
    recorded_noise they keep the noise that they were sampled from. Images alone are what they are. Raises
    ValueError as prediction_of and initial_noise.

    `model` reads its network as the one that was recorded does, and the conditioning's guidance is the
    recording's.
    """
    if not candidates.recorded:
        return candidates
    trajectory = candidates
    return CleanCandidates(
        trajectory.finished,
        noise_levels(model),
        prediction_of(model),
        trajectory.set_id,
        trajectory.model,
        trajectory.settings,
        trajectory.conditioning,
        initial_noise(model, trajectory) if recorded_noise else None,
        trajectory.mask,
    )


def initial_noise(model, trajectory):
    """The noise that a recording began with, [N, C, H, W], to float rounding.

    Raises ValueError for candidates that began with anything else besides.
    """
    sampling, sigma = model.get_model_object("model_sampling"), trajectory.sigmas[0]
    first, largest = float(sigma), float(sampling.sigma_max)
    full = first > largest or math.isclose(first, largest, rel_tol=1e-5)  # as the host decides it
    if trajectory.first or not full or conditioning_of(trajectory).latent_image.any():
        raise ValueError(
            "learn_from: some candidates were not recorded from pure noise on (denoise 1 on an empty latent, "
            "and no window that begins later), so their noise is not known; choose fresh noise"
        )
    return trajectory.states[0] / sampling.noise_scaling(
        sigma, torch.ones(()), torch.zeros(()), max_denoise=True
    )


def noise_levels(model):
    """A MODEL's sigmas, a flow model's with its shift in them, [K] float32."""
    return model.get_model_object("model_sampling").sigmas.float().cpu()
