"""What other nodes put on a MODEL or into its conditioning, so that a step may be gone through again, with
gradients."""

import functools
import hashlib
import inspect
from contextlib import contextmanager

import comfy.model_management
import comfy.sampler_helpers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

import nodes as host_nodes

from ...d3po_core.training.randomness import forked, seed

REPEATED = 1e-2  # of a result's norm: far above rounding, far below what chance and memory do
OF_GUIDANCE = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")
SINGLE = (
    "it takes one image at a time, and there are several candidates (in KSampler it fails with a batch as "
    "well)"
)
CACHES = {"easycache": "EasyCache or LazyCache"}  # what transformer options have from them


# --- what cannot be trained ---


def require_steps(model):
    """Raise ValueError for a MODEL with something on it that gives at one step what it gave at another."""
    for name, node in CACHES.items():
        if name in model.model_options.get("transformer_options", {}):
            raise ValueError(
                f"model: {node} is on it, which gives at some steps what the network gave at earlier ones, "
                "so that such a step cannot be learned from. Take that node out, before both the sampler "
                "and the train step"
            )


def require_plain(conditioning, name):
    """Raise ValueError for a CONDITIONING that changes the model's weights while it samples."""
    if comfy.sampler_helpers.cond_has_hooks(conditioning):
        raise ValueError(
            f"{name}: it carries hooks (such as Create Hook LoRA), which change the model's weights within a "
            "step, and that cannot be trained. Take the hooks out; put a LoRA on the model with Load LoRA "
            "instead"
        )


@contextmanager
def naming_nodes(model, while_):
    """Say of an error in a function that a node has put on the MODEL which node that is. while_: what was
    being done."""
    try:
        yield
    except Exception as error:
        node = None if isinstance(error, comfy.model_management.OOM_EXCEPTION) else _failed(error, model)
        if node is None:
            raise
        why = (
            SINGLE
            if "Boolean value of Tensor" in str(error)
            else f"it may be made for another kind of model ({type(error).__name__}: {error})"
        )
        raise RuntimeError(
            f"model: the node {node} on it failed while {while_}: {why}. Take that node out, before both the "
            "sampler and the train step"
        ) from error


def _failed(error, model):
    """The name of the node whose function on the MODEL an error was raised in; None where there is none."""
    functions = {
        function.__code__: function for function in _functions([model.model_options, model.wrappers])
    }
    trace, innermost = error.__traceback__, None
    while trace:
        innermost = functions.get(trace.tb_frame.f_code, innermost)
        trace = trace.tb_next
    return innermost and _node_of(innermost)


def _functions(value):
    """The plain functions in nested dicts and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _functions(item)
    elif inspect.isfunction(value):
        yield inspect.unwrap(value)


def _node_of(function):
    """How a node is called that a function was made in, as people see it, or else the function's own name."""
    made_in = function.__module__, function.__qualname__.split(".")[0]
    for name, node in host_nodes.NODE_CLASS_MAPPINGS.items():
        if (node.__module__, node.__name__) == made_in:
            return host_nodes.NODE_DISPLAY_NAME_MAPPINGS.get(name) or name
    return made_in[1]


def require_repeatable(denoise, x, sigma):
    """Raise ValueError where a MODEL's functions do not give the same twice. x [1, C, H, W]."""
    with torch.no_grad():
        first, again = denoise(x, sigma), denoise(x, sigma)
    if (first - again).norm() > REPEATED * first.norm():
        raise ValueError(
            "model: something on it gives another result when a step is gone through again, as it draws at "
            "random or keeps what it gave before (such as Adaptive Projected Guidance with momentum), so "
            "that steps cannot be learned from. Take that node out, or set its momentum to 0, before both "
            "the sampler and the train step"
        )


# --- functions ---


def uncompiled(model):
    """A MODEL without torch.compile, which changes nothing but rounding: with gradients it compiles for
    minutes, anew for each way that the LoRA is used, and looks into blocks find nothing in what it made."""
    if not model.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY):
        return model
    model = model.clone()
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY)
    return model


def steadied(model):
    """A MODEL whose functions of attention and guidance give the same whenever a step is gone through again,
    and with gradients: what they draw depends on the seed and the noise level alone, and they may write into
    what they get.

    The MODEL itself where there are none.
    """
    if not any(_functions([_patches(model), *map(model.model_options.get, OF_GUIDANCE)])):
        return model
    model, draws = model.clone(), Draws()
    for functions in _patches(model).values():
        functions[:] = [draws.steady(function) for function in functions]
    options = model.model_options
    for name in filter(options.get, OF_GUIDANCE):
        options[name] = (
            [draws.steady(function, guides=True) for function in options[name]]
            if isinstance(options[name], list)
            else draws.steady(options[name], guides=True)
        )
    add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "d3po", draws.at, options, is_model_options=True)
    return model


def _patches(model):
    return model.model_options["transformer_options"].get("patches", {})


class Draws:
    """The seed of what functions on a MODEL draw at the step that is gone through."""

    def at(self, predict_noise, x, sigma, options, seed):
        digest = hashlib.sha256(f"{seed} {float(sigma[0]):.6g}".encode()).digest()
        self.seed, self.device, self.size = int.from_bytes(digest[:7], "big"), x.device, x.numel()
        return predict_noise(x, sigma, options, seed)

    @contextmanager
    def __call__(self):
        """Inside, torch draws by this seed; outside, as if nothing had been drawn."""
        with forked(self.device):
            seed(self.seed, self.device)
            yield

    def steady(self, function, guides=False):
        """The function with these draws. What it gets, and what of its own results is saved for the gradient,
        are copies, as it may write into them; of one that guides, of latents alone, as it may go through the
        network."""
        if not inspect.isfunction(function):  # an object may be more than what it does when it is called
            return function

        def kept(tensor):
            small = not guides or tensor.numel() <= self.size
            return tensor.detach().clone() if small and not tensor.is_leaf else tensor

        @functools.wraps(function)
        def steady(*args, **kwargs):
            with self(), torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
                return function(*(_copied(value, alone=len(args) == 1) for value in args), **kwargs)

        return steady


def _copied(value, alone=False):
    """A tensor's copy; where it is given alone, a dict with copies of the tensors in it."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict) and alone:
        return {
            name: [_copied(element) for element in item] if isinstance(item, list) else _copied(item)
            for name, item in value.items()
        }
    return value


# --- ControlNets ---


class Frozen:
    """A ControlNet that is looked at without gradients, which it needs none of: what it reads was
    recorded."""

    def __init__(self, control):
        self.control = control

    def __getattr__(self, name):
        return getattr(self.control, name)

    def pre_run(self, *_):
        """The host has made it ready, before the adapter was in the network that some of them copy."""

    @torch.no_grad()
    def get_control(self, *args):
        control = self.control.get_control(*args)
        return control and {place: list(map(_added, values)) for place, values in control.items()}


def _added(value):
    return value.as_subclass(Added) if isinstance(value, torch.Tensor) else value


class Added(torch.Tensor):
    """What is added to a network's activations: these are saved for the gradient, so the sum is a tensor of
    its own."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.__iadd__, torch.Tensor.add_):
            function = torch.Tensor.add
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))
