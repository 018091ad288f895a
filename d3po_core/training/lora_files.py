"""LoRA files of an adapter's weights, which programs merge to what the adapter computes."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

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
    reads.

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


Change: TypeAlias = Callable[[Tensor], Tensor]
PartOfLora: TypeAlias = tuple[Tensor, Tensor, float | None, tuple[int, int] | None, Change | None]


@dataclass(frozen=True)
class Part:
    """What another program has as a layer of its own, of a layer that is fused here (as q, k and v are).

    down, up   the names of its two weights in a file
    rows       which of our layer's outputs are its own: the first of them, and how many; None for all
    change     what becomes of those rows, where the other program has them in another order; twice, nothing
    """

    down: str
    up: str
    rows: tuple[int, int] | None = None
    change: Change | None = None

    def of(self, rows: Tensor) -> Tensor:
        """Its part of something that has all rows of our layer."""
        own = rows.narrow(0, *self.rows) if self.rows else rows
        return self.change(own) if self.change else own


def to_parts(
    weights: Mapping[str, Tensor], alpha: float, parts: Mapping[str, Iterable[Part]], adapter: str = "LoRA"
) -> dict[str, Tensor]:
    """LoRA weights -> a file's tensors for a program whose layers are parts of ours, by our layer's path.

    A part's update is its rows of B A: its rows of B, and the same A. There is no alpha: B has the scale.
    Raises ValueError where a layer's parts are not all of it, each row once.
    """
    out = {}
    for path in sorted({name.removesuffix(".lora_up.weight") for name in weights if "lora_up" in name}):
        A, B = weights[f"{path}.lora_down.weight"], weights[f"{path}.lora_up.weight"]
        B = B * (file_alpha(alpha, len(A), adapter) / len(A))
        rows = torch.arange(len(B))
        if not torch.equal(torch.cat([part.of(rows) for part in parts[path]]).sort().values, rows):
            raise ValueError(
                f"naming: the parts of {path} are not all of its {len(B)} rows, each once, as this network "
                "is not as others of its family. Choose another naming"
            )
        for part in parts[path]:
            out[part.down] = A.clone()  # files hold no tensor twice
            out[part.up] = part.of(B)
    return out


def joined(parts: Iterable[PartOfLora], outputs: int) -> tuple[Tensor, Tensor, float | None]:
    """(up, down, alpha) of a layer with so many outputs, of what its parts have: to_parts' way back.

    parts  (up, down, alpha, rows, change), the last two as Part's; without an alpha the scale is 1. Parts
           with the same A share its rank, and those of others are added up.
    """
    parts = list(parts)
    if len(parts) == 1 and parts[0][3:] == (None, None):
        return parts[0][:3]
    downs: list[Tensor] = []
    for _, A, *_ in parts:
        if not any(torch.equal(A, down) for down in downs):
            downs.append(A)
    up = parts[0][0].new_zeros(outputs, sum(map(len, downs)))
    for B, A, alpha, rows, change in parts:
        at = next(i for i, down in enumerate(downs) if torch.equal(A, down))
        first, (start, count) = sum(map(len, downs[:at])), rows or (0, outputs)
        own = change(B) if change else B
        up[start : start + count, first : first + len(A)] += own * (1.0 if alpha is None else alpha / len(A))
    return up, torch.cat(downs), None


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
