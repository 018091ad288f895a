"""Names of what the host gives: base models by their weights, policies by all that acts on a MODEL, sets of
candidates by the graph that makes them."""

import hashlib
import inspect
import itertools
import json
import uuid
import weakref

import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor

import nodes as host_nodes

from ...d3po_core.candidates.prompts import drawn
from ...d3po_core.runs.files import content_name
from .input_files import file_of

IMMATERIAL = {
    "D3POLoadRun": ("run", "checkpoint", "start_from"),
    "D3POTrainStep": ("vae",),
}  # inputs that say nothing about a set of candidates
PLAIN_TEXTS = ("PrimitiveString", "PrimitiveStringMultiline")  # nodes of the host that say a text
PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)
HERE = uuid.uuid4().hex  # tells the objects of this host process from any other's

_numbers, _known = itertools.count(), {}


# --- base models ---


def fingerprint(model):
    """Name of a MODEL's base weights, without the patches on it: shapes and a few values of every layer."""
    digest = hashlib.sha256()
    for name, weight in sorted(_base_weights(model).items()):
        digest.update(f"{name} {tuple(weight.shape)} ".encode())
        for part in _parts(weight):
            digest.update(_some_of(part))
    return digest.hexdigest()[:16]


def _some_of(tensor):
    """A few values of a tensor, as bytes."""
    stride = max(1, tensor.numel() // 16)
    return tensor.detach().flatten()[::stride][:16].float().cpu().numpy().tobytes()


def _base_weights(model):
    """The weights by name, those that are patched now as they were before; a quantised one as its parts."""
    weights = dict(model.model.diffusion_model.state_dict())
    for name, backup in model.backup.items():
        name = name.removeprefix("diffusion_model.")
        if name in weights:
            own = backup.weight
            weights |= own.state_dict(name) if isinstance(own, QuantizedTensor) else {name: own}
    return weights


def _parts(weight):
    """The plain tensors that a weight is made of, without decoding it: itself, or what its kind keeps."""
    if weight.is_meta:
        return
    if type(weight) in (torch.Tensor, torch.nn.Parameter):
        yield weight
    elif hasattr(weight, "__tensor_flatten__"):
        inner = (
            weight.state_dict()
            if isinstance(weight, QuantizedTensor)
            else {name: getattr(weight, name) for name in weight.__tensor_flatten__()[0]}
        )
        for _, part in sorted(inner.items()):
            yield from _parts(part)
    else:
        with torch._C.DisableTorchFunctionSubclass():
            raw = weight.as_subclass(torch.Tensor)
            if raw.untyped_storage().nbytes():
                yield raw


def sampling_name(model):
    """How a MODEL reads its network: its parameterisation and noise levels, in words."""
    sampling = model.get_model_object("model_sampling")
    kinds = "/".join(
        kind.__name__ for kind in type(sampling).__mro__ if kind.__module__ == "comfy.model_sampling"
    )
    return f"{kinds} {float(sampling.sigma_min):.4g} to {float(sampling.sigma_max):.4g}"


# --- policies ---


def policy_name(model):
    """Name of what a MODEL samples with: "base", or while it has patches of weights a name of these, then
    good while the host runs; after a space, where there is more on the MODEL that acts, "KINDS:OBJECTS".

    KINDS tells the kinds and plain settings of that, on every machine alike; OBJECTS these very objects,
    while the host runs. A MODEL with nothing on it is "base", on every machine.
    """
    weights = str(model.patches_uuid) if model.patches or model.weight_wrapper_patches else "base"
    if not (acting := _acting(model)):
        return weights
    kinds, objects = (_sha(repr(_described(acting, of)))[:16] for of in (_kind, _identity))
    return f"{weights} {kinds}:{objects}"


def _acting(model):
    """What is on a MODEL besides patches of weights, without what is empty."""
    return _filled(
        {
            "options": model.model_options,
            "objects": model.object_patches,
            "wrappers": model.wrappers,
            "callbacks": model.callbacks,
            "injections": model.injections,
            "beside": model.additional_models,
        }
    )


def _filled(value):
    """Nested dicts without empty dicts and lists in them."""
    if not isinstance(value, dict):
        return value
    filled = {key: _filled(item) for key, item in value.items()}
    return {key: item for key, item in filled.items() if not (isinstance(item, (dict, list)) and not item)}


def _described(value, of):
    """A value as nested tuples of plain values: tensors by their content, objects by of(object)."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, dict):
        return tuple(sorted(repr((_described(key, of), _described(item, of))) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_described(item, of) for item in value)
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        return content_name({"": value})
    if isinstance(value, ModelPatcher):  # a clone of a MODEL has clones of those that are beside it
        return of(value.model), _described(policy_name(value).split(), of)
    kinds = [kind.__qualname__ for kind in type(value).__mro__]
    if any(
        kind.__module__ == "comfy.model_sampling" for kind in type(value).__mro__
    ):  # all that it is is in it
        settings = {name: item for name, item in vars(value).items() if isinstance(item, PLAIN)}
        return _described([kinds, dict(value.named_buffers()), settings], of)
    return of(value)


def _kind(thing):
    """What kind of function or object it is, with the plain settings that it closes over."""
    closed = zip(thing.__code__.co_freevars, thing.__closure__ or ()) if inspect.isfunction(thing) else ()
    return (
        getattr(thing, "__module__", ""),
        getattr(thing, "__qualname__", type(thing).__qualname__),
        *((name, repr(cell.cell_contents)) for name, cell in closed if _is_setting(cell)),
    )


def _is_setting(cell):
    try:
        return isinstance(cell.cell_contents, (str, int, float))
    except ValueError:  # not given yet
        return False


def _identity(thing):
    """A name that nothing else has had while this host runs; an id() may be another object's later."""
    key = id(thing)
    if key not in _known or _known[key][0]() is not thing:
        try:
            known = weakref.ref(thing, lambda _: _known.pop(key, None))
        except TypeError:  # then it is kept, and its id() with it

            def known():
                return thing

        _known[key] = known, next(_numbers)
    return HERE, _known[key][1]


# --- LoRAs ---


def loras_name(model):
    """A name of the LoRAs on a MODEL, by shapes and a few values of every layer; None without any.

    It is of what is loaded: a loader of ComfyUI keeps a LoRA that it has read, also where its file is
    written over. One that is computed beside the weights ("Load LoRA (Bypass)", for debugging) is not in it:
    the host brings it to the network's type, which depends on the card."""
    digest, adapters = hashlib.sha256(), [*_patched(model)]
    for name, strength, weights in sorted(adapters, key=lambda adapter: adapter[:2]):
        digest.update(f"{name} {strength} ".encode())
        for one in _leaves(weights):
            is_tensor = isinstance(one, torch.Tensor)
            digest.update(repr(tuple(one.shape) if is_tensor else one).encode())
            digest.update(_some_of(one) if is_tensor else b"")
    return digest.hexdigest()[:16] if adapters else None


def _patched(model):
    """(layer, strength, weights) of each adapter in the patches of a MODEL's weights. The weights of another
    model, in a merge, are none: the host loads these in a type that depends on the card."""
    for key, patches in model.patches.items():
        for strength, patch, *_ in patches:
            if not isinstance(patch, list):
                yield key, strength, getattr(patch, "weights", patch)


def _leaves(value):
    """What is in nested lists and tuples."""
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def carry(model, name):
    """Note on a MODEL which LoRA is on it, besides those that are already."""
    before = model.get_attachment("d3po_lora")
    model.set_attachments("d3po_lora", f"{before} {name}" if before else name)


# --- sets of candidates ---


def set_name(graph, node_id, *extra, base=lambda: None):
    """Name of what a node makes, from the graph above it: node types, their settings and how they are joined.

    The same on every machine, whatever the ids of the nodes. An input at its default counts as one that is
    not there, so that names stay when a later version of a node has more inputs. A file that an input names
    counts by its content; where weights were written over since this ComfyUI first named them, base() as
    well, a name of the model that is loaded, as it may be the former one. What a run is called does not
    count either: its LoRA comes by its content, in `extra`.
    """
    seen = {}

    def digest(node_id):
        if node_id not in seen:
            node = graph.get_node(node_id)
            specs = _specs(node)
            inputs = {
                name: _counted(value, specs.get(name), digest, base)
                for name, value in sorted(node["inputs"].items())
                if (
                    name not in specs or "default" not in specs[name][1] or specs[name][1]["default"] != value
                )
                and name not in IMMATERIAL.get(node["class_type"], ())
            }
            seen[node_id] = _sha(json.dumps([node["class_type"], inputs], sort_keys=True))
        return seen[node_id]

    return _sha(json.dumps([digest(node_id), *extra]))[:16]


def _counted(value, spec, digest, base):
    """What of an input's value counts for a name."""
    if _is_link(value):
        return [digest(value[0]), value[1]]
    file = file_of(value, *spec) if spec else None
    if file is None:
        return value
    return {"file": file.content} | ({"loaded": base()} if file.written_over else {})


def nodes_above(graph, node_id):
    """A node and those above it, each once, the nearest first."""
    todo, seen = [node_id], set()
    while todo:
        node = graph.get_node(todo.pop(0))
        yield node
        above = [value[0] for value in node["inputs"].values() if _is_link(value) and value[0] not in seen]
        seen.update(above)
        todo += above


def texts_above(graph, node_id):
    """What the graph above a node says in plain text: {"prompts": a sampler's positive texts, "model": a
    model file's name}, each where there is one."""
    texts = {}
    for inputs in (node["inputs"] for node in nodes_above(graph, node_id)):
        for name in ("ckpt_name", "unet_name"):
            if isinstance(inputs.get(name), str):
                texts.setdefault("model", inputs[name])
        if _is_link(inputs.get("positive")):
            written = _written(graph, graph.get_node(inputs["positive"][0])["inputs"].get("text"))
            if written:
                texts.setdefault("prompts", written)
    return texts


def _written(graph, text):
    """The texts that a text input comes to, as far as the graph says so."""
    if isinstance(text, str):
        return [text]
    if not _is_link(text):
        return []
    node, output = graph.get_node(text[0]), text[1]
    inputs = node["inputs"]
    if node["class_type"] in PLAIN_TEXTS:
        return _written(graph, inputs["value"])
    if node["class_type"] == "D3POPrompts" and output == 0 and not any(map(_is_link, inputs.values())):
        return drawn(**inputs)[0]
    return []


def is_empty_text(graph, node_id, name):
    """Whether a node's conditioning input is the empty text, as far as the node right above says so: CLIP
    Text Encode of nothing, or zeros."""
    above = graph.get_node(graph.get_node(node_id)["inputs"][name][0])
    text = above["inputs"].get("text")
    return above["class_type"] == "ConditioningZeroOut" or (
        above["class_type"] == "CLIPTextEncode" and isinstance(text, str) and not text.strip()
    )


def _specs(node):
    """(type, options) of a node's inputs by name; asked once for a node, as some types list files to answer.
    A choice between groups of inputs has its first as its default."""
    return dict(_specs_of(host_nodes.NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES(), node["inputs"]))


def _specs_of(types, given, prefix=""):
    for name, spec in (types.get("optional", {}) | types.get("required", {})).items():
        name, options = prefix + name, spec[1] if len(spec) > 1 else {}
        if spec[0] == "COMFY_DYNAMICCOMBO_V3":
            yield name, (spec[0], options | {"default": options["options"][0]["key"]})
            for option in options["options"]:
                if option["key"] == given.get(name):
                    yield from _specs_of(option["inputs"], given, name + ".")
        else:
            yield name, (spec[0], options)


def _is_link(value):
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def _sha(text):
    return hashlib.sha256(text.encode()).hexdigest()
