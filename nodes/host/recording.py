"""Candidates out of the host's sampling, or out of finished latents."""

import math

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.k_diffusion.sampling import sample_euler_ancestral

from ...d3po_core.candidates.images import CleanCandidates
from ...d3po_core.candidates.kernels import Ancestral
from ...d3po_core.candidates.trajectory import Trajectory
from ...d3po_core.runs.files import content_name
from .conditioning import EMPTY_NEGATIVE, conditioning_of
from .names import fingerprint, policy_name, sampling_name
from .patches import naming_nodes, steadied


def record(model, conditioning, sigmas, eta, candidates, name, settings, callback):
    """Sample `candidates` images that share their initial noise: (Trajectory, latents [N, C, H, W])."""
    kernel = Ancestral(eta)
    latent = conditioning.latent_image
    noise = comfy.sample.prepare_noise(latent[:1], conditioning.seed).repeat_interleave(candidates, 0)
    latent = latent if len(latent) == candidates else latent.repeat_interleave(candidates, 0)
    recorder = Recorder()
    with naming_nodes(model, "the candidates were sampled"):
        samples = comfy.sample.sample_custom(
            steadied(model),
            noise,
            conditioning.cfg,
            comfy.samplers.KSAMPLER(recorder, {"eta": eta}),
            sigmas,
            conditioning.positive,
            conditioning.negative,
            latent,
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=conditioning.seed,
        )
    with torch.inference_mode(False):  # a step's gradient may ask for any of these
        states, denoised = torch.stack(recorder.states), torch.stack(recorder.denoised)
        sigmas = sigmas.float().cpu().clone()
    trajectory = Trajectory(
        states=states,
        denoised=denoised,
        sigmas=sigmas,
        kernel=kernel,
        set_id=name,
        model=fingerprint(model),
        policy=policy_name(model),
        settings=settings,
        conditioning=conditioning,
    )
    return trajectory, samples


class Recorder:
    """The host's euler_ancestral, keeping x and the denoised x of every step."""

    __name__ = "euler_ancestral, recorded"

    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        self.states, self.denoised = [], []

        def keep(step):
            self.states.append(step["x"].float().cpu())
            self.denoised.append(step["denoised"].float().cpu())
            callback(step)

        x = sample_euler_ancestral(model, x, sigmas, extra_args, keep, disable, **options)
        self.states.append(x.float().cpu())
        return x


def clean_candidates(model, latents, name, fingerprint, conditioning):
    """CleanCandidates of latents [N, C, H, W] as a VAE gives them; the negative is the empty text. Raises
    ValueError as prediction_of."""
    latents = model.model.process_latent_in(latents).float().cpu()
    conditioning.latent_image = torch.zeros_like(latents[:1])
    content = content_name({"latents": latents, "prompt": conditioning.positive[0][0]})
    return CleanCandidates(
        latents,
        noise_levels(model),
        prediction_of(model),
        name,
        fingerprint,
        {"sampling": sampling_name(model), "content": content, EMPTY_NEGATIVE: True},
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
        trajectory.states[-1],
        noise_levels(model),
        prediction_of(model),
        trajectory.set_id,
        trajectory.model,
        trajectory.settings,
        trajectory.conditioning,
        initial_noise(model, trajectory) if recorded_noise else None,
    )


def initial_noise(model, trajectory):
    """The noise that a recording began with, [N, C, H, W], to float rounding.

    Raises ValueError for candidates that began with anything else besides.
    """
    sampling, sigma = model.get_model_object("model_sampling"), trajectory.sigmas[0]
    first, largest = float(sigma), float(sampling.sigma_max)
    full = first > largest or math.isclose(first, largest, rel_tol=1e-5)  # as the host decides it
    if not full or conditioning_of(trajectory).latent_image.any():
        raise ValueError(
            "learn_from: some candidates were not sampled from pure noise (denoise 1 on an empty latent)"
            ", so their noise is not known; choose fresh noise"
        )
    return trajectory.states[0] / sampling.noise_scaling(
        sigma, torch.ones(()), torch.zeros(()), max_denoise=True
    )


def noise_levels(model):
    """A MODEL's sigmas, a flow model's with its shift in them, [K] float32."""
    return model.get_model_object("model_sampling").sigmas.float().cpu()


def prediction_of(model):
    """What a MODEL's network predicts, one of pairs.PREDICTIONS. Raises ValueError for a flow model of
    another kind."""
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.CONST):
        return "v" if isinstance(sampling, comfy.model_sampling.V_PREDICTION) else "epsilon"
    if (
        isinstance(sampling, comfy.model_sampling.IMG_TO_IMG_FLOW)
        or getattr(sampling, "noise_scale", 1.0) != 1.0
    ):
        raise ValueError(
            "model: this flow model does not begin with plain noise (it turns images into images, or "
            "scales its noise). Image pairs train flow models such as SD3, Flux and Qwen-Image"
        )
    return "flow"


def require_epsilon_or_v(model):
    """Raise ValueError for a model whose steps the ancestral kernel does not describe."""
    if isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
        raise ValueError(
            "model: this is a flow model (such as SD3 or Flux); the recording sampler takes epsilon- and "
            "v-prediction models (such as SD1.5, SD2 and SDXL)"
        )


# --- training ---
