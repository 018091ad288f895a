"""The seam to ComfyUI: recording its sampling, and denoisers to train through inside it."""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.k_diffusion.sampling import sample_euler_ancestral
from comfy.weight_adapter.bypass import BypassForwardHook

from ..d3po_core.candidates.images import CleanCandidates
from ..d3po_core.candidates.kernels import Ancestral
from ..d3po_core.candidates.trajectory import Trajectory
from ..d3po_core.runs.files import content_name
from .names import carry, fingerprint, is_empty_text, policy_name, sampling_name, set_name, texts_above  # noqa: F401 (they belong to the host's face)
from .patches import Frozen, naming_nodes, require_plain, require_repeatable, require_steps, steadied  # noqa: F401

MOST_PROMPTS = 16  # prepared at a time while training
EMPTY_NEGATIVE = "empty_negative"  # in a set's settings: whether its negative is known to be the empty text


@dataclass
class Conditioning:
    """What the host's denoiser needs of a prompt besides x and sigma."""

    positive: list
    negative: list
    cfg: float
    latent_image: torch.Tensor
    seed: int


# --- recording ---

def record(model, conditioning, sigmas, eta, candidates, name, settings, callback):
    """Sample `candidates` images that share their initial noise: (Trajectory, latents [N, C, H, W])."""
    kernel = Ancestral(eta)
    latent = conditioning.latent_image
    noise = comfy.sample.prepare_noise(latent[:1], conditioning.seed).repeat_interleave(candidates, 0)
    latent = latent if len(latent) == candidates else latent.repeat_interleave(candidates, 0)
    recorder = Recorder()
    with naming_nodes(model, "the candidates were sampled"):
        samples = comfy.sample.sample_custom(
            steadied(model), noise, conditioning.cfg, comfy.samplers.KSAMPLER(recorder, {"eta": eta}), sigmas,
            conditioning.positive, conditioning.negative, latent, callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=conditioning.seed)
    with torch.inference_mode(False):  # a step's gradient may ask for any of these
        states, denoised = torch.stack(recorder.states), torch.stack(recorder.denoised)
        sigmas = sigmas.float().cpu().clone()
    trajectory = Trajectory(
        states=states, denoised=denoised, sigmas=sigmas, kernel=kernel, set_id=name, model=fingerprint(model),
        policy=policy_name(model), settings=settings, conditioning=conditioning)
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
    """CleanCandidates of latents [N, C, H, W] as a VAE gives them; the negative is the empty text. Raises ValueError as
    prediction_of."""
    latents = model.model.process_latent_in(latents).float().cpu()
    conditioning.latent_image = torch.zeros_like(latents[:1])
    content = content_name({"latents": latents, "prompt": conditioning.positive[0][0]})
    return CleanCandidates(latents, noise_levels(model), prediction_of(model), name, fingerprint,
                           {"sampling": sampling_name(model), "content": content, EMPTY_NEGATIVE: True}, conditioning)


def finished(model, trajectory, recorded_noise=False):
    """A recording's final images as CleanCandidates, under its name, settings and conditioning; with recorded_noise
    they keep the noise that they were sampled from. Raises ValueError as prediction_of and initial_noise.

    `model` reads its network as the one that was recorded does, and the conditioning's guidance is the recording's.
    """
    return CleanCandidates(trajectory.states[-1], noise_levels(model), prediction_of(model), trajectory.set_id,
                           trajectory.model, trajectory.settings, trajectory.conditioning,
                           initial_noise(model, trajectory) if recorded_noise else None)


def initial_noise(model, trajectory):
    """The noise that a recording began with, [N, C, H, W], to float rounding.

    Raises ValueError for candidates that began with anything else besides.
    """
    sampling, sigma = model.get_model_object("model_sampling"), trajectory.sigmas[0]
    first, largest = float(sigma), float(sampling.sigma_max)
    full = first > largest or math.isclose(first, largest, rel_tol=1e-5)  # as the host decides it
    if not full or conditioning_of(trajectory).latent_image.any():
        raise ValueError("learn_from: some candidates were not sampled from pure noise (denoise 1 on an empty latent)"
                         ", so their noise is not known; choose fresh noise")
    return trajectory.states[0] / sampling.noise_scaling(sigma, torch.ones(()), torch.zeros(()), max_denoise=True)


def noise_levels(model):
    """A MODEL's sigmas, a flow model's with its shift in them, [K] float32."""
    return model.get_model_object("model_sampling").sigmas.float().cpu()


def prediction_of(model):
    """What a MODEL's network predicts, one of pairs.PREDICTIONS. Raises ValueError for a flow model of another kind."""
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.CONST):
        return "v" if isinstance(sampling, comfy.model_sampling.V_PREDICTION) else "epsilon"
    if isinstance(sampling, comfy.model_sampling.IMG_TO_IMG_FLOW) or getattr(sampling, "noise_scale", 1.0) != 1.0:
        raise ValueError("model: this flow model does not begin with plain noise (it turns images into images, or "
                         "scales its noise). Image pairs train flow models such as SD3, Flux and Qwen-Image")
    return "flow"


def require_epsilon_or_v(model):
    """Raise ValueError for a model whose steps the ancestral kernel does not describe."""
    if isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
        raise ValueError("model: this is a flow model (such as SD3 or Flux); the recording sampler takes epsilon- and "
                         "v-prediction models (such as SD1.5, SD2 and SDXL)")


# --- training ---

class Session(comfy.samplers.Sampler):
    """Runs `work(session)` where the host would sample: the model is loaded and patched, its conditioning ready.

    Inside, `session.network` is the module to adapt and `session.denoiser(candidates)` its denoiser with gradients.
    """

    def __init__(self, work):
        self.work, self.prompts, self.controls = work, {}, {}

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        self.guider, self.extra_args = model_wrap, extra_args
        self.network = model_wrap.inner_model.diffusion_model
        self.device = noise.device
        model = model_wrap.inner_model
        self.dtype = model.manual_cast_dtype or model.get_dtype()
        self.result = self.work(self)
        return latent_image

    def denoiser(self, candidates, guidance=None):
        """denoise(x, sigma) -> x0 under the conditioning of a Trajectory or CleanCandidates; guidance replaces its cfg."""
        def denoise(x, sigma):
            conds, cfg, seed, options = self._prompt(candidates)
            return self._denoise(x, sigma, conds, cfg if guidance is None else guidance, seed, options)

        return denoise

    def unconditional(self, candidates):
        """denoise(x, sigma) -> x0 without the prompt: under the negative conditioning alone, where that is known to be the
        empty text, and else None.

        Diffusion-DPO's code drops captions to the empty text. Here nothing can encode it, and under another negative
        prompt training would teach what that text looks like.
        """
        if not candidates.settings.get(EMPTY_NEGATIVE):
            return None

        def denoise(x, sigma):
            conds, _, seed, options = self._prompt(candidates)
            return self._denoise(x, sigma, conds | {"positive": conds["negative"]}, 1.0, seed, options)

        return denoise

    def _denoise(self, x, sigma, conds, cfg, seed, options):
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.guider.conds, self.guider.cfg = conds, cfg
        return self.guider(x, sigma, model_options=options, seed=seed).float()

    def _prompt(self, candidates):
        """(conds, cfg, seed, model options) of a set, as the host's sampling prepares them. The newest few are kept."""
        key = id(candidates)
        if key not in self.prompts:
            conditioning = conditioning_of(candidates)
            conds = {"positive": self._converted(conditioning.positive), "negative": self._converted(conditioning.negative)}
            noise = torch.zeros(latent_shape(candidates), device=self.device)
            latent = conditioning.latent_image.to(noise).clone()
            conds = comfy.samplers.process_conds(self.guider.inner_model, noise, conds, self.device, latent, None,
                                                 conditioning.seed)
            options = comfy.model_patcher.create_model_options_clone(self.extra_args["model_options"])
            options["transformer_options"]["sample_sigmas"] = candidates.sigmas.to(self.device)
            self.prompts[key] = candidates, (conds, conditioning.cfg, conditioning.seed, options)
            if len(self.prompts) > MOST_PROMPTS:
                del self.prompts[next(iter(self.prompts))]
        return self.prompts[key][1]

    def _converted(self, conditioning):
        """A CONDITIONING as the host's sampling has it, to go through with gradients."""
        conds = comfy.sampler_helpers.convert_cond(_own(conditioning))
        for cond in conds:
            if "control" in cond:  # one that both sides share stays one, so that the host takes them together
                cond["control"] = self.controls.setdefault(id(cond["control"]), Frozen(cond["control"]))
        return conds


def conditioning_of(candidates):
    """A set's Conditioning, read from its dataset where it lies in one."""
    conditioning = candidates.conditioning
    return conditioning() if callable(conditioning) else conditioning


def latent_shape(candidates):
    """[N, C, H, W] of a Trajectory or CleanCandidates."""
    return (candidates.states.shape[1:] if isinstance(candidates, Trajectory) else candidates.latents.shape)


def train_inside(model, sets, work, per_pass=0):
    """Run `work(session)` in the host's sampling of `model`, with gradients; its result. `sets` are what it trains on,
    Trajectories or CleanCandidates, of each at most `per_pass` candidates at a time (0: all).

    The MODEL's weights and modules are the work's to leave as they were. Raises ValueError for a MODEL or conditioning
    that cannot be trained.
    """
    require_steps(model)
    for conditioning in _here(sets):
        for prompt in (conditioning.positive, conditioning.negative):
            require_plain(prompt, "preferences: the conditioning of some candidates")
    with torch.inference_mode(False), _in_training(), naming_nodes(model, "a step was trained on"):
        if model.is_dynamic():  # weights that come and go by page cannot be held for a backward pass
            model = model.clone(disable_dynamic=True, force_deepcopy=True)
        for each in (model, *_beside(model, sets)):
            _own_weights(each.model)
        try:
            return _inside(model, sets, lambda session: work(_with_own_adapters(session)), largest_pass(sets, per_pass))
        except comfy.model_management.OOM_EXCEPTION as error:
            raise RuntimeError(
                "Out of memory while training. Nothing was lost: the model and the last saved LoRA are as they were. "
                "Set candidates_per_pass to 1, or lower rank, choose narrower targets, or record smaller images"
            ) from error


def evaluate_inside(model, sets, work, per_pass):
    """Run `work(session)` in the host's sampling of `model`, without gradients; its result. `sets` are what it looks
    at, Trajectories or CleanCandidates, of each at most `per_pass` candidates at a time."""
    try:
        with naming_nodes(model, "the model looked at the candidates"):
            return _inside(model, sets, work, largest_pass(sets, per_pass))
    except comfy.model_management.OOM_EXCEPTION as error:
        raise RuntimeError("Out of memory while the model looked at the candidates. Unload other models, or use "
                           "smaller images") from error


def largest_pass(sets, per_pass):
    """[n, C, H, W] of the most that goes through the network at a time, with at most `per_pass` candidates of a set
    (0: all)."""
    shapes = map(latent_shape, sets)
    return max(((min(per_pass or shape[0], shape[0]), *shape[1:]) for shape in shapes), key=math.prod)


def _here(sets):
    """The Conditioning of the first set, and of those that are in memory: what has a model of its own is never in a
    dataset."""
    return [conditioning_of(sets[0]), *(s.conditioning for s in sets[1:] if not callable(s.conditioning))]


def _beside(model, sets):
    """The host's handles of further models that take part in the network, in patches and in conditioning. ControlNets are
    not among them: no gradient goes through these."""
    prompts = [prompt for conditioning in _here(sets) for prompt in (conditioning.positive, conditioning.negative)]
    boxes = [options["gligen"][1] for prompt in prompts for _, options in prompt if "gligen" in options]
    return [*model.model_patches_models(), *model.get_nested_additional_models(), *boxes]


def _inside(model, sets, work, shape):
    """`work(session)` in the host's sampling of `model`, which makes room for latents of `shape`."""
    here = _here(sets)
    first = here[0]
    guider = comfy.samplers.CFGGuider(steadied(model))
    guider.set_conds([c for one in here for c in _own(one.positive)], [c for one in here for c in _own(one.negative)])
    guider.set_cfg(first.cfg)
    session = Session(work)
    noise = torch.zeros(shape)
    guider.sample(noise, noise.clone(), session, sets[0].sigmas.clone(), disable_pbar=True, seed=first.seed)
    return session.result


@contextmanager
def _in_training():
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def _own_weights(model):
    """The host loads weights under inference mode, and such tensors cannot take part in a backward pass: make each an
    ordinary tensor with the same bits."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference():
                module._parameters[name] = torch.nn.Parameter(parameter.clone(), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()


def _with_own_adapters(session):
    """The session, after the same for LoRAs that the host computes beside the weights ("Load LoRA (Bypass)")."""
    for module in session.network.modules():
        hook = getattr(module.forward, "__self__", None)
        if isinstance(hook, BypassForwardHook) and not isinstance(hook.adapter, torch.nn.Module):
            hook.adapter.weights = _own(hook.adapter.weights)
    return session


def _own(value):
    """A copy of nested lists and dicts in which no tensor belongs to inference mode."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_own(item) for item in value)
    return value
