"""What all probes are, what they know of the pack, and names of what they see by its content."""

import hashlib
import json
import sys

import torch

import nodes as host_nodes


class Probe:
    """A node that shows the JSON which `look` returns."""

    CATEGORY, OUTPUT_NODE, RETURN_TYPES, FUNCTION = "test", True, (), "show"
    KIND, BESIDE = "*", {}  # the value's type, and further inputs of `look`

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"value": (cls.KIND,), **cls.BESIDE},
            "optional": {"nonce": ("STRING", {"default": ""})},
        }

    def show(self, value, nonce="", **beside):
        return {"ui": {"text": [json.dumps(self.look(value, **beside))]}}


def sha(*tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def text_sha(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def of_pack(name):
    """A module of the pack, as the host has loaded it."""
    nodes = host_nodes.NODE_CLASS_MAPPINGS["D3POKSampler"].__module__.rsplit(".", 1)[0]
    return sys.modules[f"{nodes}.{name}" if name == "host" else f"{nodes.rsplit('.', 1)[0]}.d3po_core.{name}"]


def of_nodes(name):
    """A module of the pack's nodes."""
    package = host_nodes.NODE_CLASS_MAPPINGS["D3POLoadRun"].__module__.rpartition(".")[0]
    return sys.modules[f"{package}.{name}"]
