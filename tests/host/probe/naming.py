"""The pack's names of policies and base models, on MODELs that are made for the purpose."""

import copy
import gc
from types import SimpleNamespace

import comfy.model_management
import comfy.model_sampling
import torch
from comfy.quant_ops import QuantizedTensor


class Lora:
    """A MODEL with random patches on a few weights."""

    CATEGORY, RETURN_TYPES, FUNCTION = "test", ("MODEL",), "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "strength": ("FLOAT", {"default": 0.1})}}

    def patch(self, model, strength):
        model, generator = model.clone(), torch.Generator().manual_seed(0)
        weights = {
            name: weight
            for name, weight in model.model.state_dict().items()
            if name.endswith("attn2.to_v.weight")
        }
        model.add_patches(
            {
                name: ("diff", (torch.randn(weight.shape, generator=generator) * weight.float().std(),))
                for name, weight in weights.items()
            },
            strength,
        )
        return (model,)


def with_(model, act):
    model = model.clone()
    act(model)
    return model


def guiding(scale):
    def function(args):
        return args["denoised"] * scale

    return function


def policies(name, model):
    function, other, unlike = guiding(1.0), guiding(1.0), guiding(2.0)
    guided = with_(model, lambda m: m.set_model_sampler_post_cfg_function(function))
    again = with_(model, lambda m: m.set_model_sampler_post_cfg_function(other))
    elsewise = with_(model, lambda m: m.set_model_sampler_post_cfg_function(unlike))
    (lora,) = Lora().patch(guided, 0.1)
    beside = [name(one).partition(" ")[2] for one in (guided, lora, again, elsewise)]
    kinds = [each.partition(":")[0] for each in beside]

    def options(**values):
        return name(with_(model, lambda m: m.model_options["transformer_options"].update(values)))

    def sampling(zsnr):
        kind = type(
            "Advanced", (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION), {}
        )
        return name(
            with_(
                model,
                lambda m: m.add_object_patch("model_sampling", kind(model.model.model_config, zsnr=zsnr)),
            )
        )

    names = set()
    for _ in range(50):  # functions that come and go, and so are made where others were
        names.add(name(with_(model, lambda m: m.set_model_sampler_post_cfg_function(guiding(1.0)))))
        gc.collect(0)
    empty = with_(
        model, lambda m: m.model_options["transformer_options"].update(wrappers={"x": {}}, patches={"a": []})
    )
    return {
        "plain": name(model), "clone": name(guided) == name(guided.clone()),
        "lora keeps patches": beside[0] == beside[1],
        "weights differ": name(guided) != name(lora), "another function": beside[0] != beside[2],
        "same kinds": kinds[0] == kinds[2] != kinds[3],
        "tensor by content":
            options(a=torch.ones(3)) == options(a=torch.ones(3)) != options(a=torch.zeros(3)),
        "value by content": options(a=0.5) == options(a=0.5) != options(a=0.6), "reused id": len(names) == 50,
        "empty wrappers": name(empty),
        "model sampling by content": sampling(False) == sampling(False) != sampling(True),
    }  # fmt: skip


class Raw(torch.Tensor):
    """Bytes in a shape of their own, as quantised files of other programs are held."""

    @property
    def shape(self):
        return torch.Size((6, 6))


def raw(*values):
    return torch.tensor(values, dtype=torch.uint8).as_subclass(Raw)


def fingerprints(fingerprint, model):
    layer = "time_embed.0.weight"

    def of(weight):
        state = {layer: weight}
        network = SimpleNamespace(state_dict=lambda: state)
        return fingerprint(SimpleNamespace(model=SimpleNamespace(diffusion_model=network), backup={}))

    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(16, 16, generator=generator) for _ in range(2))

    def quantised(weight, scale=0.02):
        return QuantizedTensor.from_float(weight, "TensorCoreFP8E4M3Layout", scale=torch.tensor(scale))

    weights = model.model.diffusion_model.state_dict()
    return {
        "plain": fingerprint(model) == fingerprint(SimpleNamespace(
            model=SimpleNamespace(
                diffusion_model=SimpleNamespace(state_dict=lambda: copy.copy(weights))), backup={})),
        "quantised differ": of(quantised(one)) != of(quantised(other)),
        "quantised again": of(quantised(one)) == of(quantised(one)),
        "scale differs": of(quantised(one)) != of(quantised(2 * one, 0.04)),
        "raw differ": of(raw(1, 2, 3)) != of(raw(1, 2, 4)), "raw again": of(raw(1, 2, 3)) == of(raw(1, 2, 3)),
    }  # fmt: skip


def training(host, model):
    """Whether the host is in training after ours, by what it was; the largest pass of sets of these sizes."""
    after = []
    for before in (False, True):
        comfy.model_management.in_training = before
        with host.session._in_training():
            pass
        after.append(comfy.model_management.in_training)
    comfy.model_management.in_training = False
    sets = [SimpleNamespace(latent_shape=shape) for shape in ((2, 4, 8, 8), (4, 4, 8, 8), (2, 4, 16, 16))]
    return {
        "in training": after,
        "largest": [host.largest_pass(sets[:2], 0), host.largest_pass(sets, 0), host.largest_pass(sets, 1)],
    }
