"""Small networks of diffusers, of the same sizes as the host's small ones, and what it makes of LoRA files.

diffusers' own conversion of whole checkpoints tells where the rows of each weight of the host's belong: a
checkpoint that holds nothing but a LoRA's updates becomes what the LoRA must add to diffusers' weights.
"""

import re
import types
from contextlib import contextmanager

import pytest
import torch

HIDDEN, TEXT, POOLED = 128, 64, 32
UNET = dict(
    block_out_channels=(32,), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=TEXT, attention_head_dim=1,
    use_linear_projection=True)  # fmt: skip
BLOCKS = dict(num_layers=1, num_attention_heads=1, attention_head_dim=128)
# name -> (diffusers' class, its configuration, its pipeline's LoRA loader, conversion of its checkpoints)
NETWORKS = {
    "SD1.5": ("UNet2DConditionModel", UNET | dict(
        block_out_channels=(320,), cross_attention_dim=768, attention_head_dim=8,
        use_linear_projection=False), "StableDiffusion", "ldm_unet_checkpoint"),
    "SD2": ("UNet2DConditionModel", UNET, "StableDiffusion", "ldm_unet_checkpoint"),
    "SDXL": ("UNet2DConditionModel", UNET | dict(
        addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + POOLED), "StableDiffusionXL", "ldm_unet_checkpoint"),
    "SD3": ("SD3Transformer2DModel", dict(
        sample_size=8, num_layers=2, attention_head_dim=64, num_attention_heads=2, joint_attention_dim=768,
        caption_projection_dim=HIDDEN, pooled_projection_dim=768, pos_embed_max_size=8), "SD3",
        "sd3_transformer_checkpoint_to_diffusers"),
    "Flux": ("FluxTransformer2DModel", BLOCKS | dict(
        num_single_layers=1, joint_attention_dim=TEXT, pooled_projection_dim=POOLED, guidance_embeds=True),
        "Flux", "flux_transformer_checkpoint_to_diffusers"),
    "Flux.2": ("Flux2Transformer2DModel", BLOCKS | dict(num_single_layers=1, joint_attention_dim=TEXT),
        "Flux2", "flux2_transformer_checkpoint_to_diffusers"),
    "Chroma": ("ChromaTransformer2DModel", BLOCKS | dict(
        num_single_layers=1, joint_attention_dim=TEXT, approximator_hidden_dim=HIDDEN, approximator_layers=1),
        "Flux", "chroma_transformer_checkpoint_to_diffusers"),
    "Z-Image": ("ZImageTransformer2DModel", dict(
        dim=384, n_layers=1, n_refiner_layers=1, n_heads=3, n_kv_heads=3, cap_feat_dim=TEXT,
        axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512]), "ZImage",
        "z_image_transformer_checkpoint_to_diffusers"),
    "Qwen-Image": ("QwenImageTransformer2DModel", BLOCKS | dict(joint_attention_dim=TEXT), "QwenImage", None),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", BLOCKS | dict(
        num_single_layers=1, text_embed_dim=TEXT, pooled_projection_dim=POOLED), "HunyuanVideo",
        "hunyuan_video_transformer_to_diffusers"),
    "Wan": ("WanTransformer3DModel", BLOCKS | dict(text_dim=TEXT, ffn_dim=HIDDEN), "Wan",
        "wan_transformer_to_diffusers"),
}  # fmt: skip
# what checkpoints have under other names than the host
SCALES = {r"(_norm|norms\.\d+)\.weight$": r"\1.scale"}
IN_CHECKPOINTS = {
    "Flux": SCALES,
    "Chroma": SCALES,
    "HunyuanVideo": {
        r"_attn\.(qkv|proj)": r"_attn_\1", r"mod(ulation)?\.lin\.": r"mod\1.linear.", r"mlp\.0": "mlp.fc1",
        r"mlp\.2": "mlp.fc2"},
}  # fmt: skip


def inputs(name):
    """What the forward pass of a network takes, for one of the UNets and one of the transformers."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator)

    if name == "SD2":
        return dict(sample=drawn(1, 4, 8, 8), timestep=500, encoder_hidden_states=drawn(1, 7, TEXT))
    if name == "Flux":
        return dict(
            hidden_states=drawn(1, 16, 64), encoder_hidden_states=drawn(1, 7, TEXT),
            pooled_projections=drawn(1, POOLED), timestep=torch.tensor([0.5]), guidance=torch.tensor([3.5]),
            img_ids=drawn(16, 3).round(), txt_ids=torch.zeros(7, 3))  # fmt: skip
    return None


@contextmanager
def of_small_networks():
    """Inside, diffusers' conversions split fused layers at this width: in their code stands Flux's 3072."""
    from diffusers.loaders import lora_conversion_utils, lora_pipeline, single_file_utils

    with pytest.MonkeyPatch.context() as patch:
        for module in (lora_conversion_utils, lora_pipeline, single_file_utils):
            for name, function in vars(module).items():
                if name.startswith(("convert_", "_convert_")) and isinstance(function, types.FunctionType):
                    patch.setattr(function, "__code__", _narrow(function.__code__))
        yield


def _narrow(constant):
    if isinstance(constant, types.CodeType):
        return constant.replace(co_consts=tuple(map(_narrow, constant.co_consts)))
    if isinstance(constant, tuple):
        return tuple(map(_narrow, constant))
    return {3072: HIDDEN, 12288: 4 * HIDDEN}.get(constant, constant) if type(constant) is int else constant


def network_of(name):
    import diffusers

    kind, config, *_ = NETWORKS[name]
    network = getattr(diffusers, kind)(**config)
    if name == "Z-Image":  # whose time's embedding has a fixed width there
        network.t_embedder = type(network.t_embedder)(256, mid_size=config["dim"])
    return network


def loaded(name, tensors):
    """diffusers' network of a family with a LoRA file on it, as the family's pipelines load one."""
    from diffusers.loaders import lora_pipeline

    network, loader = network_of(name), NETWORKS[name][2]
    prefix = "unet" if loader.startswith("Stable") else "transformer"
    how = {"Flux": dict(return_alphas=True)}.get(loader, {})
    if prefix == "unet":
        how = dict(unet_config=network.config)
    of_family = getattr(lora_pipeline, f"{loader}LoraLoaderMixin")
    read = of_family.lora_state_dict(dict(tensors), **how)
    state, alphas = read if isinstance(read, tuple) else (read, None)
    outside = [key for key in state if not key.startswith(f"{prefix}.")]
    assert not outside, outside
    network.load_lora_adapter(state, prefix=prefix, network_alphas=alphas)
    return network


def updates(network):
    """What the LoRA that was loaded adds to each weight, by the weight's name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        f"{path}.weight": layer.get_delta_weight(layer.active_adapters[0]).detach()
        for path, layer in network.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }


def with_updates(name, network, updates):
    """Another network, with the same weights, and updates added to them."""
    weights = {
        key.replace(".base_layer", ""): weight
        for key, weight in network.state_dict().items()
        if ".lora_" not in key
    }
    other = network_of(name)
    other.load_state_dict(weights | {key: weights[key] + update for key, update in updates.items()})
    return other


def expected(name, shapes, deltas):
    """The same by diffusers' conversion of a checkpoint that is all zeros but for the updates, deltas, of the
    host's weights; shapes has all of them."""
    from diffusers.loaders import single_file_utils

    checkpoint = {key: torch.zeros(shape) for key, shape in shapes.items()}
    checkpoint |= {f"{path}.weight": delta.view(shapes[f"{path}.weight"]) for path, delta in deltas.items()}
    for theirs, ours in IN_CHECKPOINTS.get(name, {}).items():
        checkpoint = {re.sub(theirs, ours, key): tensor for key, tensor in checkpoint.items()}
    _, config, loader, convert = NETWORKS[name]
    if loader.startswith("Stable"):
        checkpoint = {f"model.diffusion_model.{key}": tensor for key, tensor in checkpoint.items()}
    if convert:
        config = dict(class_embed_type=None, addition_embed_type=None) | config
        checkpoint = getattr(single_file_utils, f"convert_{convert}")(checkpoint, config=config)
    return {key: tensor for key, tensor in checkpoint.items() if tensor.any()}
