"""LoRA files of an adapter's weights, which programs merge to what the adapter computes."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .adapter import NORM_RATIO


def to_state_dict(
    weights: Mapping[str, Tensor],
    alpha: float,
    rename: Callable[[str], str] | None = None,
    adapter: str = "LoRA",
) -> dict[str, Tensor]:
    """Adapter weights -> a LoRA file's tensors, which the host merges to what the adapter computes.

    rename maps a layer's path to its name in the file; by default "diffusion_model." + path, which the host
    reads. For SD1.5 A1111, Forge and diffusers read the kohya names, "lora_unet_" + the diffusers path with
    underscores.

    DoRA's W + dW is scaled by dora_scale / |W| in the host and in those that have its code, where the paper
    (and PEFT) divide by |W + dW|.
    """
    rename = rename or (lambda path: f"diffusion_model.{path}")
    out = {}
    for name, tensor in weights.items():
        [(path, part)] = re.findall(r"^(.+?)\.([^.]+(?:\.weight)?)$", name)
        if part == NORM_RATIO:
            continue
        if part == "dora_scale":
            ratio = weights[f"{path}.{NORM_RATIO}"]
            tensor = tensor.view_as(ratio) / ratio
        rank = len(weights[f"{path}.lora_down.weight"]) if adapter == "rsLoRA" else 0
        out[f"{rename(path)}.{part}"] = tensor
        out[f"{rename(path)}.alpha"] = torch.tensor(file_alpha(alpha, rank, adapter))
    return out


def file_alpha(alpha: float, rank: int, adapter: str) -> float:
    """The alpha of a LoRA file, by which programs scale the update to alpha / rank. They know no rsLoRA: its
    alpha is one that comes to alpha / sqrt(rank)."""
    return alpha * math.sqrt(rank) if adapter == "rsLoRA" else float(alpha)


def save_lora(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, object]) -> None:
    """Write a LoRA file; metadata values become strings, as the format asks."""
    plain = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=plain)


def load_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a LoRA file. Raises ValueError, naming the file, for one that is not."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a LoRA file ({error}); nothing was changed") from error
    if not any(kind in name for name in tensors for kind in ("lora", "hada_", "lokr_")):
        raise ValueError(f"{path} holds no LoRA weights; nothing was changed")
    return tensors, metadata
