"""How other programs name a network's layers, as far as the host's Load LoRA reads the same names."""

import re

import comfy.lora
import comfy.model_base as families
import comfy.utils

from ..d3po_core.training.lora_files import Part

# kohya's trainers have these families' layers under the names that the host has them
KOHYA = (
    families.SDXL,
    families.SD3,
    families.Flux,
    families.Flux2,
    families.Chroma,
    families.QwenImage,
    families.WAN21,
    families.WAN22,
)
NOTHING = re.compile("(?!)")
# the host has two names for some layers: that of diffusers' Flux, and that of its Flux.2
FLUX = re.compile(r"\.ff(_context)?\.net\.|single_\w+\.\d+\.(attn\.to_[qkv]$|proj_)|\.time_text_embed\.")
FLUX2 = re.compile(r"\.ff(_context)?\.linear_|\.to_qkv_mlp_proj$|single_\w+\.\d+\.attn\.to_out$")
# which of the host's names diffusers has: how they begin, and which of those are none of the family's
DIFFUSERS = {
    families.SD3: ("transformer.", NOTHING),
    families.Flux: ("transformer.", FLUX2),
    families.Flux2: ("transformer.", FLUX),
    families.Chroma: ("transformer.", FLUX2),
    families.QwenImage: ("transformer.", NOTHING),
    # names of its own trainer; what is outside of its blocks diffusers takes for something else
    families.HunyuanVideo: ("transformer.", re.compile(r"^transformer\.(?!(double|single)_blocks)")),
    # names of the host, as it has none of diffusers', but diffusers has its own
    families.WAN21: ("diffusion_model.", NOTHING),
    families.WAN22: ("diffusion_model.", NOTHING),
}


def kohya_names(model):
    """path -> "lora_unet_" + the layer's path with underscores, for SD1.5 and SD2 its path in diffusers."""
    network = model.model
    if _is_unet(network) and not isinstance(network, families.SDXL):
        names = {
            theirs.removesuffix(".weight"): name.removesuffix(".weight")
            for name, theirs in comfy.utils.unet_to_diffusers(network.model_config.unet_config).items()
            if name.endswith(".weight") and not name.startswith("add_embedding")
        }
    elif type(network) in KOHYA or type(network) is families.Lumina2 and not _is_z_image(network):
        names = {path: path for path, _ in network.diffusion_model.named_modules()}
    else:
        raise ValueError(
            "naming: kohya's names are known for SD1.5, SD2, SDXL, SD3, Flux, Flux.2, Chroma, Lumina 2, "
            "Qwen-Image and Wan only. Choose another naming"
        )
    return {path: "lora_unet_" + name.replace(".", "_") for path, name in names.items()}


def diffusers_parts(model):
    """path -> [Part, ...]: what diffusers has as layers of its own of one, and its pipelines load by name.

    The host's tables of names say which rows of the layer each of them is, and what becomes of them.
    """
    prefix, others = _in_diffusers(model.model)
    parts = {}
    for name, target in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        if name.startswith(prefix) and not others.search(name):
            path, rows, change = layer_of(target)
            parts.setdefault(path, []).append(Part(*_in_file(name), rows, change))
    return parts


def layer_of(target):
    """(layer's path, rows, change), as Part's, of what the host's tables of names lead to."""
    weight, rows, change = (*([target] if isinstance(target, str) else target), None, None)[:3]
    return weight.removeprefix("diffusion_model.").removesuffix(".weight"), rows and rows[1:], change


def require_names(names, layers, naming):
    """Raise ValueError unless each of a LoRA's layers has a name."""
    missing = [path for path in layers if path not in names]
    if missing:
        raise ValueError(
            f"naming: {naming} has no name for {len(missing)} of this LoRA's layers, such as {missing[0]}. "
            "Choose ComfyUI's naming; for other programs train with targets 'attention and feed-forward'"
        )


def _is_unet(network):
    return "num_res_blocks" in network.model_config.unet_config


def _is_z_image(network):
    return bool(network.model_config.unet_config.get("z_image_modulation"))


def _in_diffusers(network):
    if _is_unet(network):
        other = "class_embedding" if isinstance(network, families.SDXL) else "add_embedding"
        return "unet.", re.compile(other)
    if _is_z_image(network):
        return "transformer.", NOTHING
    if type(network) not in DIFFUSERS:
        raise ValueError(
            "naming: diffusers and ComfyUI have names in common for SD1.5, SD2, SDXL, SD3, Flux, Flux.2, "
            "Chroma, Z-Image, Qwen-Image, HunyuanVideo and Wan only. Choose another naming"
        )
    return DIFFUSERS[type(network)]


def _in_file(name):
    """The names of a layer's two weights, which are older than PEFT's for UNets."""
    if not name.startswith("unet."):
        return f"{name}.lora_A.weight", f"{name}.lora_B.weight"
    joint = "_lora" if ".processor." in name else ".lora"
    return f"{name}{joint}.down.weight", f"{name}{joint}.up.weight"
