"""Denoisers to train through, inside the host's sampling."""

import math
from typing import NamedTuple

import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.weight_adapter.bypass import BypassForwardHook

from .conditioning import AS_RECORDED, EMPTY_NEGATIVE, conditioning_of
from .guiders import moved
from .offloading import Offloading, managing
from .patches import Frozen, naming_nodes, require_plain, require_steps, steadied, uncompiled
from .samplers import CFG_PP, as_guidance

MOST_PROMPTS = 16  # prepared at a time while training


class Prompt(NamedTuple):
    """What a set is denoised under: a guider, its conds, cfg, seed and model options; the options that it was
    sampled under, which may be others. Where it was sampled inside a mask: the mask, and the image and the
    noise that lie outside of it, [1, C, H, W] each."""

    guider: comfy.samplers.CFGGuider
    conds: dict
    cfg: float
    seed: int
    options: dict
    sampled: dict
    mask: torch.Tensor | None = None
    image: torch.Tensor | None = None
    noise: torch.Tensor | None = None


class Session(comfy.samplers.Sampler):
    """Runs `work(session)` where the host would sample: the model is loaded and patched, its conditioning
    ready.

    Inside, `session.network` is the module to adapt and `session.denoiser(candidates)` its denoiser with
    gradients.
    """

    def __init__(self, work, offloading=None):
        self.work, self.offloading, self.prompts, self.controls = work, offloading, {}, {}

    def sample(
        self,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        self.guider, self.extra_args = model_wrap, extra_args
        self.network = model_wrap.inner_model.diffusion_model
        self.device = noise.device
        model = model_wrap.inner_model
        self.dtype = model.manual_cast_dtype or model.get_dtype()
        self.result = self.work(self)
        return latent_image

    def denoiser(self, candidates, guidance=None):
        """denoise(x, sigma) -> x0 under the conditioning of a set of candidates; guidance replaces its cfg.
        Images alone are denoised without guidance where none is given, as in Diffusion-DPO; with AS_RECORDED
        as they were sampled."""
        if guidance is None and not candidates.recorded:
            guidance = 1.0

        def denoise(x, sigma):
            prompt = self._prompt(candidates)
            if guidance in (None, AS_RECORDED):
                return self._denoise(x, sigma, prompt._replace(options=prompt.sampled))
            return self._denoise(x, sigma, prompt._replace(guider=self.guider, cfg=guidance))

        return denoise

    def room(self, size, least=0):
        """Make room for so many bytes beside the models at work, as far as that goes: how many are free.

        Raises offloading.Lacking, and all begins anew, where less than `least` is and weights could go.
        """
        at_work = (self.guider.model_patcher, *self.guider.loaded_models)
        keep = [comfy.model_management.LoadedModel(patcher) for patcher in at_work]
        comfy.model_management.free_memory(size, self.device, keep_loaded=keep)
        free = comfy.model_management.get_free_memory(self.device)
        if self.offloading:
            self.offloading.require(least, free)
        return free

    def unconditional(self, candidates):
        """denoise(x, sigma) -> x0 without the prompt: under the negative conditioning alone, where that is
        known to be the empty text, and else None.

        Diffusion-DPO's code drops captions to the empty text. Here nothing can encode it, and under another
        negative prompt training would teach what that text looks like.
        """
        if not candidates.settings.get(EMPTY_NEGATIVE):
            return None

        def denoise(x, sigma):
            prompt = self._prompt(candidates)
            alone = prompt.conds | {"positive": prompt.conds["negative"]}
            return self._denoise(x, sigma, prompt._replace(guider=self.guider, conds=alone, cfg=1.0))

        return denoise

    def _denoise(self, x, sigma, prompt):
        comfy.model_management.throw_exception_if_processing_interrupted()
        prompt.guider.conds, prompt.guider.cfg = prompt.conds, prompt.cfg
        levels = prompt.options["transformer_options"]["sample_sigmas"]
        model = comfy.samplers.KSamplerX0Inpaint(prompt.guider, levels)
        model.latent_image, model.noise = prompt.image, prompt.noise
        extra = {"denoise_mask": prompt.mask, "model_options": prompt.options, "seed": prompt.seed}
        return model(x, sigma, **extra).float()

    def _prompt(self, candidates):
        """The Prompt of a set, as the host's sampling prepares it. The newest few are kept."""
        key = id(candidates)
        if key not in self.prompts:
            conditioning, model = conditioning_of(candidates), self.guider.inner_model
            conds = {name: self._converted(prompt) for name, prompt in conditioning.prompts.items()}
            noise = torch.zeros(candidates.latent_shape, device=self.device)
            latent = conditioning.latent_image.to(noise).clone()
            mask = None if candidates.mask is None else candidates.mask.to(noise).clone()
            if latent.any():  # as the host's sampling has it
                latent = model.process_latent_in(latent)
            conds = comfy.samplers.process_conds(
                model,
                noise,
                conds,
                self.device,
                latent,
                # finished images are noised as a whole, and only networks for inpainting still take it
                mask if candidates.recorded or model.concat_keys else None,
                conditioning.seed,
            )
            options = comfy.model_patcher.create_model_options_clone(self.extra_args["model_options"])
            options["transformer_options"]["sample_sigmas"] = candidates.levels.to(self.device)
            guider = self.guider
            if conditioning.guider:
                guider = moved(
                    conditioning.guider,
                    inner_model=model,
                    model_patcher=self.guider.model_patcher,
                    model_options=self.guider.model_options,
                )
            own = _sampled(options, candidates)
            prompt = Prompt(guider, conds, conditioning.cfg, conditioning.seed, options, own)
            if candidates.recorded and mask is not None:
                prompt = prompt._replace(mask=mask, image=latent, noise=candidates.noise.to(noise))
            self.prompts[key] = candidates, prompt
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


def _sampled(options, candidates):
    """The model options that candidates were sampled under; images alone have none besides the model's."""
    if not candidates.recorded or candidates.settings.get("sampler_name") != CFG_PP:
        return options
    return comfy.model_patcher.set_model_options_post_cfg_function(
        options.copy(), as_guidance(candidates.kernel, candidates.levels), disable_cfg1_optimization=True
    )


def train_inside(model, sets, work, per_pass=0):
    """Run `work(session)` in the host's sampling of `model`, with gradients; its result. `sets` are what it
    trains on, Trajectories or CleanCandidates, of each at most `per_pass` candidates at a time (0: all).

    The MODEL's weights and modules are the work's to leave as they were. Raises ValueError for a MODEL or
    conditioning that cannot be trained.
    """
    require_steps(model)
    for conditioning in _here(sets):
        for prompt in conditioning.prompts.values():
            require_plain(prompt, "preferences: the conditioning of some candidates")
    with torch.inference_mode(False), _in_training(), naming_nodes(model, "a step was trained on"):
        if model.is_dynamic():  # weights that come and go by page cannot be held for a backward pass
            model = model.clone(disable_dynamic=True, force_deepcopy=True)
        for patcher in (model, *_beside(model, sets)):
            _own_weights(patcher.model)
        offloading, shape = Offloading(model), largest_pass(sets, per_pass)
        whole = lambda session: _whatever_is_overwritten(work, _with_own_adapters(session))
        try:
            return offloading.run(lambda: _inside(model, sets, whole, shape, offloading))
        except comfy.model_management.OOM_EXCEPTION as error:
            raise RuntimeError(
                "Out of memory while training, with one candidate at a time. Nothing was lost: the model and "
                "the last saved LoRA are as they were. Set checkpointing to automatic, if it is off, choose "
                "narrower targets, lower rank, record smaller images, load the model in fp8, or close other "
                "programs"
            ) from error


def _whatever_is_overwritten(work, session):
    """`work(session)`; again from the start where the network writes over what its gradient needs, as those
    of Flux's kind do: then what is overwritten is copied before. That costs time, so it is not done at
    once. The first backward pass raises, before anything was learned."""
    try:
        return work(session)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        return work(session)


def evaluate_inside(model, sets, work, per_pass):
    """Run `work(session)` in the host's sampling of `model`, without gradients; its result. `sets` are what
    it looks at, Trajectories or CleanCandidates, of each at most `per_pass` candidates at a time."""
    try:
        with naming_nodes(model, "the model looked at the candidates"):
            return _inside(model, sets, work, largest_pass(sets, per_pass))
    except comfy.model_management.OOM_EXCEPTION as error:
        raise RuntimeError(
            "Out of memory while the model looked at the candidates. Unload other models, or use "
            "smaller images"
        ) from error


def largest_pass(sets, per_pass):
    """[n, C, H, W] of the most that goes through the network at a time, with at most `per_pass` candidates of
    a set (0: all)."""
    shapes = [candidates.latent_shape for candidates in sets]
    return max(((min(per_pass or shape[0], shape[0]), *shape[1:]) for shape in shapes), key=math.prod)


def _here(sets):
    """The Conditioning of the first set, and of those that are in memory: what has a model of its own is
    never in a dataset."""
    return [conditioning_of(sets[0]), *(s.conditioning for s in sets[1:] if not callable(s.conditioning))]


def _beside(model, sets):
    """The host's handles of further models that take part in the network, in patches and in conditioning.
    ControlNets are not among them: no gradient goes through these."""
    prompts = [prompt for conditioning in _here(sets) for prompt in conditioning.prompts.values()]
    boxes = [options["gligen"][1] for prompt in prompts for _, options in prompt if "gligen" in options]
    return [*model.model_patches_models(), *model.get_nested_additional_models(), *boxes]


def _inside(model, sets, work, shape, offloading=None):
    """`work(session)` in the host's sampling of `model`, which makes room for latents of `shape`."""
    here = _here(sets)
    first = here[0]
    guider = comfy.samplers.CFGGuider(steadied(uncompiled(model)))
    guider.set_conds(
        [c for conditioning in here for c in _own(conditioning.positive)],
        [
            c
            for conditioning in here
            for prompt in (conditioning.negative, *conditioning.further.values())
            for c in _own(prompt)
        ],
    )
    guider.set_cfg(first.cfg)
    session = Session(work, offloading)
    noise = torch.zeros(shape)
    guider.sample(noise, noise.clone(), session, sets[0].levels.clone(), disable_pbar=True, seed=first.seed)
    return session.result


def _in_training():
    """The host computes as gradients need it: of weights in main memory, each layer gets a copy of its own,
    not one of two places on the device that later layers write over."""
    return managing(in_training=True, NUM_STREAMS=0)


def _own_weights(model):
    """The host loads weights under inference mode, and such tensors cannot take part in a backward pass: make
    each an ordinary tensor with the same bits."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference():
                module._parameters[name] = torch.nn.Parameter(parameter.clone(), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()


def _with_own_adapters(session):
    """The session, after the same for LoRAs that the host computes beside the weights ("Load LoRA
    (Bypass)")."""
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
