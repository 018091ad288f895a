"""Nested dicts, lists, tuples, JSON scalars and tensors in one safetensors file, without pickle.

The file's metadata holds {"d3po": JSON of {"format": FORMAT, "tree": structure}}. In the structure a scalar
and a list stand for themselves, a dict is {"dict": {...}}, a tuple {"tuple": [...]}, a float that JSON lacks
{"float": "nan"}, and a tensor {"tensor": name}, where name is the tensor's sha256 (`tensor_name`) and its
name in the file.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Structure: TypeAlias = Any  # JSON

FORMAT = "d3po.tree/1"


def pack(tree: object, root: str) -> tuple[Structure, dict[str, Tensor]]:
    """(structure, {name: tensor}) of a tree; the tensors are copies in main memory, alike ones only once.

    Raises TypeError, with the path inside the tree, for what is not of the tree's kinds. `root` names the
    tree.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Structure:
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) is list:
            return [walk(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if type(value) is tuple:
            return {"tuple": [walk(item, f"{path}[{i}]") for i, item in enumerate(value)]}
        if type(value) is dict:
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(
                        f"{path or root} has the key {key!r}, and only text can be stored as a key"
                    )
            return {
                "dict": {key: walk(item, f"{path}.{key}" if path else key) for key, item in value.items()}
            }
        if type(value) in (torch.Tensor, torch.nn.Parameter) and _is_plain(value):
            copy = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            name = tensor_name(copy)
            tensors[name] = copy
            return {"tensor": name}
        raise TypeError(
            f"{path or root} is a {type(value).__name__}, which cannot be stored: only dicts, lists, "
            "tuples, text, numbers and plain tensors can"
        )

    return walk(tree, ""), tensors


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and not tensor.is_meta
        and not tensor.is_quantized
        and not tensor.dtype.is_complex
    )


def unpack(structure: Structure, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `pack` took apart."""
    if isinstance(structure, list):
        return [unpack(item, tensors) for item in structure]
    if not isinstance(structure, dict):
        return structure
    ((kind, value),) = structure.items()
    kinds: dict[str, Callable[[], Any]] = {
        "dict": lambda: {key: unpack(item, tensors) for key, item in value.items()},
        "tuple": lambda: tuple(unpack(item, tensors) for item in value),
        "float": lambda: float(value),
        "tensor": lambda: tensors[value],
    }
    return kinds[kind]()


def tree_name(structure: Structure) -> str:
    """sha256 of a tree, its tensors included."""
    return hashlib.sha256(json.dumps(structure, allow_nan=False).encode()).hexdigest()


def tensor_name(tensor: Tensor) -> str:
    """sha256 of a contiguous tensor: of its dtype and shape as text, then its bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tree(structure: Structure, tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"d3po": json.dumps({"format": FORMAT, "tree": structure})})


def load_tree(path: Path, name: str) -> Any:
    """The tree of that name. Raises ValueError, naming the file, if it holds another, is damaged or is
    none."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["d3po"])
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']!r}")
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
        if tree_name(header["tree"]) != name or any(
            tensor_name(tensor) != key for key, tensor in tensors.items()
        ):
            raise ValueError("its content is not what was stored")
        return unpack(header["tree"], tensors)
    except (
        SafetensorError,
        OSError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ValueError(f"{path} is not a conditioning file, or is damaged ({error})") from error
