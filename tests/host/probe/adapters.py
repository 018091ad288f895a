"""The pack's adapters against the host's own merging of LoRA files (comfy/weight_adapter)."""

import copy
import json
import sys

import comfy.lora
import torch


def pack(module):
    """A module of the pack's core, as the host has imported it."""
    return next(each for name, each in list(sys.modules.items()) if name.endswith(f".d3po_core.{module}"))


class AdapterMerge:
    """How far the host's merged weights are from what each adapter computes, relative to its effect."""

    CATEGORY, OUTPUT_NODE, RETURN_TYPES, FUNCTION = "test", True, (), "look"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"nonce": ("STRING", {"default": ""})}}

    def look(self, nonce):
        with torch.inference_mode(False), torch.no_grad():
            found = {kind: self.difference(kind) for kind in pack("training.adapter").ADAPTERS}
        return {"ui": {"text": [json.dumps(found)]}}

    def difference(self, kind):
        lora = pack("training.adapter")
        generator = torch.Generator().manual_seed(1)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 20, 3, stride=2, padding=1),
            torch.nn.Conv2d(20, 36, 1),
            torch.nn.Flatten(2),
            torch.nn.Linear(16, 24),
            torch.nn.Linear(24, 4, bias=False),
            torch.nn.Linear(4, 4),
        )
        merged, x = copy.deepcopy(net), torch.randn(2, 3, 8, 8, generator=generator)
        before = net(x)
        adapter = lora.Adapter(net, rank=2, alpha=3.0, targets=lora.TARGETS[-1], adapter=kind)
        for parameter in adapter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        after = net(x)
        keys = {f"diffusion_model.{path}": path for path in adapter.layers}
        file = pack("training.lora_files").to_state_dict(adapter.weights(), 3.0, adapter=kind)
        for path, patch in comfy.lora.load_lora(file, keys).items():
            layer = merged.get_submodule(path)
            layer.weight.data = comfy.lora.calculate_weight(
                [(1.0, patch, 1.0, None, None)], layer.weight.data, path
            )
        return float((merged(x) - after).norm() / (after - before).norm())


class ForeignLora:
    """A LORA_MODEL as other nodes make it: a plain dict."""

    CATEGORY, RETURN_TYPES, FUNCTION = "test", ("LORA_MODEL",), "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return ({"diffusion_model.out.2.lora_up.weight": torch.zeros(4, 1, 1, 1)},)
