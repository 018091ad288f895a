"""GUIDERs: how the host makes one prediction of those under several prompts."""

import copy

import comfy.samplers

from .conditioning import Conditioning

# what a guider may not do in its own way, as training goes through none of it
ITS_OWN = ("sample", "outer_sample", "inner_sample", "outer_predict_noise")


def conditioning_from(guider, latent_image, seed):
    """The Conditioning of a GUIDER. Raises ValueError for one that samples in its own way."""
    host = comfy.samplers.CFGGuider
    if not isinstance(guider, host) or any(
        getattr(type(guider), name) is not getattr(host, name) for name in ITS_OWN
    ):
        raise ValueError(
            f"guider: {type(guider).__name__} samples in its own way (as with a second model), which "
            "training cannot follow. Use Basic Guider, CFG Guider or Dual CFG Guider"
        )
    prompts = {name: [_plain(cond) for cond in conds] for name, conds in guider.original_conds.items()}
    is_plain = type(guider).predict_noise is host.predict_noise
    return Conditioning(
        prompts.pop("positive", []),
        prompts.pop("negative", []),
        guider.cfg,
        latent_image,
        seed,
        further=prompts,
        guider=None if is_plain else guider,
    )


def _plain(cond):
    """An entry of a CONDITIONING, of what the host's guiders have made of it."""
    options = {name: value for name, value in cond.items() if name != "uuid"}
    return [options.pop("cross_attn", None), options]


def guider_for(model, conditioning):
    """A guider that samples a MODEL under a Conditioning."""
    if conditioning.guider is None:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(conditioning.positive, conditioning.negative)
        guider.set_cfg(conditioning.cfg)
        return guider
    return moved(conditioning.guider, model_patcher=model, model_options=model.model_options)


def moved(guider, **attributes):
    """A guider of the same settings, on something else."""
    guider = copy.copy(guider)
    vars(guider).update(attributes)
    return guider
