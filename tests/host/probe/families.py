"""Small models of many families: ComfyUI's own networks and samplings, of a few layers with random weights.

Some families' checkpoints are told by a fixed width, so that the smallest that the loaders take has hundreds
of millions of weights. Here the families' classes are asked directly.
"""

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models as families
import torch

TEXT, POOLED = 64, 32  # widths of what text encoders give
DIT = dict(
    axes_dim=[16, 56, 56], num_heads=1, mlp_ratio=4.0, theta=10000, out_channels=16, qkv_bias=True,
    txt_ids_dims=[], in_channels=16, hidden_size=128, context_in_dim=TEXT, patch_size=2, depth=1,
    depth_single_blocks=1, vec_in_dim=None)  # fmt: skip
UNET = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1], channel_mult=[1],
    transformer_depth=[1], transformer_depth_output=[1, 1], transformer_depth_middle=1, context_dim=TEXT,
    adm_in_channels=None, num_heads=-1, num_head_channels=32, use_linear_in_transformer=True,
    use_spatial_transformer=True, legacy=False, use_temporal_attention=False,
    use_temporal_resblock=False)  # fmt: skip
LUMINA = dict(
    image_model="lumina2", patch_size=2, in_channels=16, cap_feat_dim=TEXT, n_layers=1, n_refiner_layers=1,
    qk_norm=True, n_heads=1, n_kv_heads=1)  # fmt: skip
# a weight by which the host tells the SD2 that predicts v from the one that predicts epsilon
TOLD = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.linspace(-1, 1, 8)}
# name -> (class, configuration of its network, latent's shape without channels)
FAMILIES = {
    "SD2": ("SD20", UNET, (8, 8)),
    "SD2 inpainting": ("SD20", UNET | dict(in_channels=9), (8, 8)),
    "SDXL": ("SDXL", UNET | dict(adm_in_channels=6 * 256 + POOLED, num_classes="sequential"), (8, 8)),
    "Flux": ("Flux", DIT | dict(image_model="flux", vec_in_dim=POOLED, guidance_embed=True, yak_mlp=False,
                                txt_norm=False), (8, 8)),
    "Flux.2": ("Flux2", DIT | dict(
        image_model="flux2", axes_dim=[32] * 4, mlp_ratio=3.0, theta=2000, out_channels=128, in_channels=128,
        global_modulation=True, mlp_silu_act=True, qkv_bias=False, ops_bias=False, patch_size=1,
        default_ref_method="index", ref_index_scale=10.0, txt_ids_dims=[3], guidance_embed=True,
        yak_mlp=False, txt_norm=False), (4, 4)),
    "Chroma": ("Chroma", DIT | dict(image_model="chroma", in_channels=64, out_channels=64, in_dim=64,
                                    out_dim=128, hidden_dim=128, n_layers=1), (8, 8)),
    "Lumina 2": ("Lumina2", LUMINA | dict(dim=96, axes_dims=[32] * 3, axes_lens=[300, 512, 512],
                                          rope_theta=10000.0, ffn_dim_multiplier=4.0), (8, 8)),
    "Z-Image": ("ZImage", LUMINA | dict(dim=384, n_heads=3, n_kv_heads=3, axes_dims=[32, 48, 48],
                                        axes_lens=[1536, 512, 512],
                                        rope_theta=256.0, ffn_dim_multiplier=8 / 3, time_scale=1000.0,
                                        z_image_modulation=True), (8, 8)),
    "Qwen-Image": ("QwenImage", dict(image_model="qwen_image", in_channels=64, num_layers=1,
                                     num_attention_heads=1, joint_attention_dim=TEXT), (8, 8)),
    "HunyuanVideo": ("HunyuanVideo", {
        name: value for name, value in DIT.items() if name not in ("txt_ids_dims", "context_in_dim")} | dict(
        image_model="hunyuan_video", patch_size=[1, 2, 2], vec_in_dim=POOLED, meanflow=False, theta=256,
        context_in_dim=TEXT, byt5=False, guidance_embed=True, use_cond_type_embedding=False,
        vision_in_dim=None, meanflow_sum=False), (3, 8, 8)),
    "Wan": ("WAN21_T2V", dict(
        image_model="wan2.1", dim=128, out_dim=16, num_heads=1, ffn_dim=128, num_layers=1,
        patch_size=(1, 2, 2), freq_dim=256, window_size=(-1, -1), qk_norm=True, cross_attn_norm=True,
        eps=1e-6, in_dim=16, model_type="t2v", text_dim=TEXT), (3, 8, 8)),
}  # fmt: skip


def model_of(kind, config):
    """A MODEL of a family; the same weights each time."""
    family = getattr(families, kind)(dict(config))
    family.unet_config = dict(config)
    family.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        model = family.get_model(TOLD, "", device="cpu")
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for path, weight in model.diffusion_model.named_parameters():
                weight.copy_(drawn(path, weight.shape, generator))
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, device, torch.device("cpu"))


def drawn(path, shape, generator):
    if len(shape) > 1:
        return torch.randn(shape, generator=generator) / shape[1:].numel() ** 0.5
    return torch.full(shape, float(path.endswith(("weight", "scale"))))


class Family:
    """A MODEL, conditionings of its kind of different lengths, and an empty latent."""

    CATEGORY, FUNCTION = "test", "make"
    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "LATENT")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": (list(FAMILIES),)}}

    def make(self, name):
        kind, config, shape = FAMILIES[name]
        model = model_of(kind, config)
        generator = torch.Generator().manual_seed(1)

        def text(tokens):
            return [
                [
                    torch.randn(1, tokens, TEXT, generator=generator),
                    {"pooled_output": torch.randn(1, POOLED, generator=generator), "guidance": 3.5},
                ]
            ]

        channels = model.get_model_object("latent_format").latent_channels
        latent = {"samples": torch.zeros(1, channels, *shape)}
        return model, text(7), text(5), latent


class Texts:
    """Two conditionings of different lengths and of a width, with a pooled one where that has a width."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("CONDITIONING", "CONDITIONING")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"width": ("INT", {"max": 8192}), "pooled": ("INT", {"max": 8192})}}

    def make(self, width, pooled):
        generator = torch.Generator().manual_seed(1)
        whole = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
        return tuple([[torch.randn(1, tokens, width, generator=generator), dict(whole)]] for tokens in (7, 5))


class Inpainting:
    """A MODEL that takes a mask and the image around it beside the latent, and conditionings."""

    CATEGORY, FUNCTION = "test", "make"
    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        generator = torch.Generator().manual_seed(1)
        texts = ([[torch.randn(1, tokens, TEXT, generator=generator), {}]] for tokens in (7, 5))
        return model_of("SD20", UNET | dict(in_channels=9)), *texts
