"""Write the small emoji checkpoints from their compact forms: python tools/expand_model.py EMOJI FLOW

The compact form keeps large weights as 8-bit integers with a scale for each output channel. Of CLIP-L it
keeps only the embeddings of the words it knows: its twelve layers are the identity, here zeros written out.
The flow model's compact form is what its UNet's weights differ by from the other's.
"""

import lzma
import sys
from pathlib import Path

import torch
from safetensors.torch import load, save_file

COMPACT = Path(__file__).resolve().parent.parent / "model" / "emoji.safetensors.xz"
FLOW = COMPACT.with_name("emoji-flow.safetensors.xz")
CLIP = "cond_stage_model.transformer.text_model."
WIDTH, TOKENS, POSITIONS, LAYERS = 768, 49408, 77, 12
A, AN = 320, 550  # CLIP's tokens of these words


def quantise(weight, largest=127):
    """(int8 values up to `largest`, scale per output channel) of a weight [out, ...]."""
    flat = weight.float().flatten(1)
    scale = flat.abs().amax(1).clamp_min(1e-12) / largest
    return (flat / scale[:, None]).round().to(torch.int8).reshape(weight.shape), scale


def dequantise(values, scale):
    return values.float() * scale.float().reshape(-1, *[1] * (values.ndim - 1))


def clip_text_model(tokens, token_embedding, position_embedding, norm):
    """CLIP-L's state dict with twelve layers that add nothing. norm: (weight, bias) of the final norm."""
    embedding = torch.zeros(TOKENS, WIDTH)
    embedding[tokens.long()] = token_embedding.float()
    if AN not in tokens:  # the captions that the model was trained on said "a apple"
        embedding[AN] = embedding[A]
    out = {
        "embeddings.token_embedding.weight": embedding,
        "embeddings.position_embedding.weight": position_embedding,
        "final_layer_norm.weight": norm[0],
        "final_layer_norm.bias": norm[1],
    }
    for layer in range(LAYERS):
        prefix = f"encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out[f"{prefix}self_attn.{name}.weight"] = torch.zeros(WIDTH, WIDTH)
            out[f"{prefix}self_attn.{name}.bias"] = torch.zeros(WIDTH)
        for name, wide, narrow in (("fc1", 4 * WIDTH, WIDTH), ("fc2", WIDTH, 4 * WIDTH)):
            out[f"{prefix}mlp.{name}.weight"] = torch.zeros(wide, narrow)
            out[f"{prefix}mlp.{name}.bias"] = torch.zeros(wide)
        for name in ("layer_norm1", "layer_norm2"):
            out[f"{prefix}{name}.weight"] = torch.ones(WIDTH)
            out[f"{prefix}{name}.bias"] = torch.zeros(WIDTH)
    return {CLIP + name: tensor for name, tensor in out.items()}


def dequantised(compact):
    """Compact tensors -> weights by name, without the text encoder's."""
    out = {}
    for name, tensor in compact.items():
        if name.endswith(".int8"):
            name = name.removesuffix(".int8")
            out[name] = dequantise(tensor, compact[f"{name}.scale"])
        elif not name.endswith(".scale") and not name.startswith("text."):
            out[name] = tensor
    return out


def expand(compact):
    """Compact tensors -> a checkpoint's state dict in float16."""
    out = dequantised(compact) | clip_text_model(
        compact["text.tokens"],
        compact["text.token"],
        compact["text.position"],
        (compact["text.norm.weight"], compact["text.norm.bias"]),
    )
    return {name: tensor.half().contiguous() for name, tensor in out.items()}


def expand_flow(checkpoint, difference):
    """The flow model's state dict, by the other's and the compact form of what it differs by."""
    moved = {name: checkpoint[name].float() + tensor for name, tensor in dequantised(difference).items()}
    return checkpoint | {name: tensor.half().contiguous() for name, tensor in moved.items()}


def unpacked(file):
    """The compact tensors of a file."""
    return load(lzma.decompress(file.read_bytes()))


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    checkpoint = expand(unpacked(COMPACT))
    save_file(checkpoint, sys.argv[1])
    save_file(expand_flow(checkpoint, unpacked(FLOW)), sys.argv[2])


if __name__ == "__main__":
    main()
