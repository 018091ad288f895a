"""Further networks for the emoji model, with random weights."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch


class ControlNet:
    """SD1.5's ControlNet for a MODEL of that kind. All its weights are random, the zero convolutions' too."""

    CATEGORY, RETURN_TYPES, FUNCTION = "test", ("CONTROL_NET",), "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "seed": ("INT", {"default": 0})}}

    def make(self, model, seed):
        config = {
            name: value
            for name, value in model.model.model_config.unet_config.items()
            if name != "out_channels"
        }
        config |= dict(hint_channels=3, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
        network, generator = comfy.cldm.cldm.ControlNet(**config), torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            parameter.data = (
                torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
            )
            parameter.requires_grad_(False)
        return (
            comfy.controlnet.ControlNet(
                network.eval(), load_device=comfy.model_management.get_torch_device()
            ),
        )


class PatchWithModel:
    """A MODEL with a layer of its own in its attention, which the host loads with it."""

    CATEGORY, RETURN_TYPES, FUNCTION = "test", ("MODEL",), "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    class Patch:
        def __init__(self):
            device = comfy.model_management.get_torch_device()
            self.patcher = comfy.model_patcher.CoreModelPatcher(
                torch.nn.Linear(1, 1),
                load_device=device,
                offload_device=comfy.model_management.unet_offload_device(),
            )

        def __call__(self, q, k, v, extra_options):
            return q + 0.1 * self.patcher.model(torch.tanh(q).mean(-1, keepdim=True)).to(q), k, v

        def models(self):
            return [self.patcher]

    def patch(self, model):
        model = model.clone()
        model.set_model_attn1_patch(self.Patch())
        return (model,)
