"""The host's samplers: with which kernel one is recorded, and why the others are not."""

from collections.abc import Callable
from typing import NamedTuple

import comfy.model_sampling
import torch
from comfy.k_diffusion.sampling import (
    sample_ddpm,
    sample_euler_ancestral,
    sample_euler_ancestral_cfg_pp,
    sample_lcm,
)

from ...d3po_core.candidates.kernels import (
    Ancestral,
    Consistency,
    FlowAncestral,
    FlowCPS,
    FlowDDIM,
    FlowSDE,
)

EULER_ANCESTRAL, CFG_PP = "euler_ancestral", "euler_ancestral_cfg_pp"


class Recordable(NamedTuple):
    """A sampler whose step is one Gaussian, of x and of what the model predicts there.

    kernel    of models that predict epsilon or v: its kernel, of eta and the schedule; None: not for these
    flow      the same of flow models
    run       the host's own function; None: it has none, and the steps are the kernel's
    with_eta  whether eta is the artist's to choose
    """

    kernel: Callable | None
    flow: Callable | None
    run: Callable | None = None
    with_eta: bool = True


RECORDABLE = {
    EULER_ANCESTRAL: Recordable(
        lambda eta, sigmas: Ancestral(eta),
        lambda eta, sigmas: FlowAncestral(eta),
        sample_euler_ancestral,
    ),
    "flow_sde": Recordable(None, lambda eta, sigmas: FlowSDE(FlowSDE.a * eta, float(sigmas[1]))),
    "flow_cps": Recordable(None, lambda eta, sigmas: FlowCPS(FlowCPS.a * eta)),
    "ddpm": Recordable(lambda eta, sigmas: Ancestral(), None, sample_ddpm, with_eta=False),
    "lcm": Recordable(
        lambda eta, sigmas: Consistency(),
        lambda eta, sigmas: FlowCPS(1.0),
        sample_lcm,
        with_eta=False,
    ),
    CFG_PP: Recordable(
        lambda eta, sigmas: Ancestral(eta),
        lambda eta, sigmas: FlowDDIM(eta),
        sample_euler_ancestral_cfg_pp,
    ),
}
SAMPLERS = list(RECORDABLE)

DETERMINISTIC = "is deterministic, so its steps have no log-probability to train on"
TWO_STATES = (
    "asks the model at two states in every step, so that a step's mean takes two passes through the network, "
    "and training twice the time"
)
NOISE_BETWEEN = (
    "draws noise inside a step and asks the model again behind it, so that a step is more than a single "
    "Gaussian and has no log-probability to train on"
)
EARLIER_STEPS = (
    "also follows what the model predicted at earlier steps, so that a step's mean takes further passes "
    "through the network, and training twice the time or more"
)
REFUSED = {
    DETERMINISTIC: (
        "euler", "euler_cfg_pp", "heun", "heunpp2", "exp_heun_2_x0", "dpm_2", "lms", "dpm_fast",
        "dpm_adaptive", "dpmpp_2m", "dpmpp_2m_cfg_pp", "ipndm", "ipndm_v", "deis", "res_multistep",
        "res_multistep_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "ddim", "uni_pc",
        "uni_pc_bh2"),
    TWO_STATES: ("dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp"),
    NOISE_BETWEEN: ("dpmpp_sde", "dpmpp_sde_gpu", "exp_heun_2_x0_sde", "seeds_2", "seeds_3"),
    EARLIER_STEPS: (
        "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde",
        "dpmpp_3m_sde_gpu", "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp", "er_sde",
        "sa_solver", "sa_solver_pece"),
}  # fmt: skip
BY_ALL = "dpm_adaptive"  # chooses its steps by all pictures that are sampled together
TOGETHER = {*REFUSED[DETERMINISTIC]} - {BY_ALL}
WHY = {name: reason for reason, names in REFUSED.items() for name in names}


def sampler_problem(name):
    """Why a sampler cannot be recorded; "" where it can."""
    if name in RECORDABLE:
        return ""
    why = WHY.get(name, "is not known to this pack, so nobody has looked whether its steps can be trained on")
    return (
        f"sampler_name: {name} {why}. Choose {', '.join(SAMPLERS[:-1])} or {SAMPLERS[-1]}. With "
        "Diffusion-DPO, which is recommended and learns from finished pictures, it matters little which of "
        f"them. Pictures that were made with {name} can be learned from by D3PO Import Preferences and D3PO "
        "Encode Image Pairs."
    )


def goes_together(name):
    """Whether a sampler makes the same of a noise beside others as alone, to rounding."""
    return name in TOGETHER


def kernel_for(model, name, eta, sigmas):
    """The kernel that a MODEL's steps have under a name of SAMPLERS; eta is a share of the noise that its
    paper adds. Raises ValueError for a sampler that is not for such a model, or has no such eta."""
    sampler, flow = RECORDABLE[name], is_flow(model)
    predicts = prediction_of(model)  # which refuses flow models of another kind
    kernel = sampler.flow if flow else sampler.kernel
    if kernel is None:
        others = "flow models (such as SD3 and Flux)", "epsilon and v models (such as SD1.5 and SDXL)"
        raise ValueError(
            f"sampler_name: {name} is for {others[flow]}, and this model predicts {predicts}; choose "
            f"{EULER_ANCESTRAL}"
        )
    if eta != 1 and not sampler.with_eta:
        raise ValueError(
            f"eta: {name} always adds all of its noise, so eta must be 1, and is {eta:g}; set it to 1, or "
            f"choose {EULER_ANCESTRAL}"
        )
    try:
        return kernel(eta, sigmas)
    except ValueError as error:
        raise ValueError(f"eta: {error}") from error


def require_cfg_pp(conditioning, window, mask):
    """Raise ValueError where CFG++ steps cannot be recorded: see as_guidance."""
    if mask is not None:
        raise ValueError(
            f"latent_image: it carries a mask, with which {CFG_PP} is not recorded; choose {EULER_ANCESTRAL}"
        )
    if window is not None:
        raise ValueError(
            f"window_steps: {CFG_PP} is recorded as a whole, so set it to 0; or choose {EULER_ANCESTRAL}"
        )
    if conditioning.guider is not None or not conditioning.negative:
        raise ValueError(
            f"sampler_name: {CFG_PP} steps along the noise that the negative prompt alone leaves, so it "
            f"needs a CFG Guider with both prompts; wire one to guider, or choose {EULER_ANCESTRAL}"
        )


def as_guidance(kernel, sigmas):
    """CFG++ (Chung et al., arXiv 2406.08070) as guidance that depends on the noise level: a function for the
    host's sampler_post_cfg_function, the last of them.

    CFG++ steps from the guided x0 along the noise that the unguided one, u, leaves in x: to x0 + kept (x -
    u). That is the kernel's mean of (x0 - kept u) / (1 - kept), which is u guided by cfg / (1 - kept).
    """
    sigmas = sigmas.float().cpu()
    kept = torch.stack([kernel.kept(*step) for step in zip(sigmas, sigmas[1:])])

    def guided(args):
        x0 = args["denoised"]
        steps = (args["sigma"].float().cpu()[:, None] - sigmas[:-1]).abs().argmin(1)
        share = kept[steps].to(x0).view(-1, *[1] * (x0.ndim - 1))
        return (x0 - share * args["uncond_denoised"]) / (1 - share)

    return guided


def prediction_of(model):
    """What a MODEL's network predicts, one of pairs.PREDICTIONS. Raises ValueError for a flow model of
    another kind."""
    sampling = model.get_model_object("model_sampling")
    if not is_flow(model):
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


def is_flow(model):
    return isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)
