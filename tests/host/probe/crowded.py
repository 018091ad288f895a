"""A MODEL that fills its card."""

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

AS_EVER = comfy.model_management.EXTRA_RESERVED_VRAM


class Filling(ModelPatcher):
    """Its weights are loaded as far as the host's reserve lets them on a card that they just fill."""

    def load(self, device_to=None, lowvram_model_memory=0, **options):
        reserved = comfy.model_management.EXTRA_RESERVED_VRAM - AS_EVER
        if reserved:
            lowvram_model_memory, options["full_load"] = max(1, self.model_size() - reserved), False
        return super().load(device_to, lowvram_model_memory, **options)


class Crowded:
    """Training runs out of memory until half of the weights are in main memory, which here is another name
    of the same device."""

    CATEGORY, RETURN_TYPES, FUNCTION = "test", ("MODEL",), "set"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def set(self, model):
        crowded = model.clone()
        crowded.__class__, crowded.offload_device = Filling, torch.device("cpu", 0)

        def wrapper(apply, arguments):
            if comfy.model_management.in_training:
                reserved = comfy.model_management.EXTRA_RESERVED_VRAM - AS_EVER
                if 2 * reserved < crowded.model_size():
                    raise comfy.model_management.OOM_EXCEPTION("out of memory, as a test")
                assert crowded.model.model_lowvram and comfy.model_management.NUM_STREAMS == 0
            return apply(arguments["input"], arguments["timestep"], **arguments["c"])

        crowded.set_model_unet_function_wrapper(wrapper)
        return (crowded,)
