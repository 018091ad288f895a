"""LoRAs that nobody trained, what they do to a MODEL, and where a train step would put one."""

import comfy.lora
import comfy.utils
import torch

from .common import Probe, of_nodes, of_pack


class SomeLora:
    """The LoRA of a training that never was: random weights on the layers that `targets` stands for."""

    CATEGORY, RETURN_TYPES, FUNCTION = "test", ("LORA_MODEL",), "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "targets": ("STRING",), "adapter": ("STRING",)}}

    def make(self, model, targets, adapter):
        settings = dict(
            rank=3, alpha=2.0, targets=targets, adapter=adapter, learning_rate=0.0, seed=0,
            architecture=type(model.model.model_config).__name__)  # fmt: skip
        generator = torch.Generator().manual_seed(1)
        with torch.inference_mode(False):
            trained = of_pack("training.adapter").Adapter(
                model.model.diffusion_model, rank=3, alpha=2.0, targets=targets, adapter=adapter
            )
            weights = {
                f"lora.{name}": 0.1 * torch.randn(weight.shape, generator=generator)
                for name, weight in trained.weights().items()
            }
            trained.eject()
        state = of_nodes("types").TrainingState(weights, 1, settings, "nobody's")
        return (of_nodes("types").TrainedLora(of_nodes("library").file_of(state), state),)


class Begun:
    """A MODEL with the weights that training begins from."""

    CATEGORY, RETURN_TYPES, FUNCTION = "test", ("MODEL",), "begin"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "lora": ("LORA_MODEL",)}}

    def begin(self, model, lora):
        return (of_nodes("library").with_lora(model, lora.training),)


def patched(model):
    """The weights of a MODEL that have patches, with them."""
    return {
        key: comfy.lora.calculate_weight(patches, comfy.utils.get_attr(model.model, key).clone(), key)
        for key, patches in model.patches.items()
    }


class ProbeApart(Probe):
    """How far the weights of two MODELs are apart, as a share of what the first one's patches do."""

    KIND, BESIDE = "MODEL", {"other": ("MODEL",), "base": ("MODEL",)}

    def look(self, model, other, base):
        one, two = patched(model), patched(other)
        assert one.keys() == two.keys(), one.keys() ^ two.keys()
        before = {key: comfy.utils.get_attr(base.model, key) for key in one}
        shares = [(one[key] - two[key]).abs().max() / (one[key] - before[key]).abs().max() for key in one]
        return {"apart": float(max(shares)), "layers": len(one)}


class ProbeTargets(Probe):
    """The layers that each choice of targets finds, and the shapes of all of a network's weights."""

    KIND = "MODEL"

    def look(self, model):
        adapter, network = of_pack("training.adapter"), model.model.diffusion_model
        return {
            "targets": {
                choice: sorted(adapter.target_modules(network, choice)) for choice in adapter.TARGETS
            },
            "shapes": {name: list(weight.shape) for name, weight in network.state_dict().items()},
        }
