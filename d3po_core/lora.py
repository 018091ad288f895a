"""A LoRA inside somebody else's network, by PEFT, and out again without a trace; its file formats.

The frozen reference is the same network with the adapter off.
"""

import json
import re
from contextlib import contextmanager
from functools import cached_property

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

ADAPTER = "d3po"
TARGETS = ("attention", "attention and feed-forward", "all linear", "all linear and convolutions")


def target_modules(root, targets="attention"):
    """Paths of the layers of `root` that a plain name stands for (one of TARGETS). Raises ValueError if there are none."""
    if targets not in TARGETS:
        raise ValueError(f"targets is {targets!r}, but must be one of: {', '.join(TARGETS)}")
    kinds = (torch.nn.Linear, torch.nn.Conv2d) if targets.endswith("convolutions") else (torch.nn.Linear,)
    names = {"attention": ("attn", "attention"), "attention and feed-forward": ("attn", "attention", "ff", "mlp")}
    wanted = names.get(targets)
    found = [path for path, layer in root.named_modules() if isinstance(layer, kinds)
             and (wanted is None or any(part.startswith(wanted) or part.endswith(wanted) for part in path.split(".")))]
    if not found:
        raise ValueError(f"this model has no layers that {targets!r} stands for: choose wider LoRA targets")
    return found


class Adapter:
    """LoRA layers injected into `root`. Make one, train its parameters, and `eject` it: `root` is then as before.

    rank, alpha  the update is (alpha / rank) B A; B starts at 0, so that at first policy and reference are one
    targets      which layers, one of TARGETS
    seed         makes A repeatable
    device       where the LoRA's weights live (default: with the layers they adapt); they are float32, unless the
                 layers are float64
    """

    def __init__(self, root, rank=8, alpha=8.0, targets="attention", dropout=0.0, seed=0, device=None):
        self.root = root
        self.rank, self.alpha, self.targets = rank, alpha, targets
        paths = target_modules(root, targets)
        self._attributes = set(vars(root))
        self._requires_grad = {name: p.requires_grad for name, p in root.named_parameters()}
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout,
                            target_modules="|".join(map(re.escape, paths)))  # in a list PEFT matches by ending
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed % 2 ** 63)
                inject_adapter_in_model(config, root, adapter_name=ADAPTER)
            for layer in self.layers.values():
                for part in (layer.lora_A, layer.lora_B):
                    part.to(device=device, dtype=torch.promote_types(part[ADAPTER].weight.dtype, torch.float32))
        except BaseException:  # out of memory half way, say
            self.eject()
            raise

    @cached_property
    def layers(self):
        """The LoRA layers by path."""
        return {path: layer for path, layer in self.root.named_modules() if isinstance(layer, LoraLayer)}

    def named_parameters(self):
        """(path.lora_down.weight, A) and (path.lora_up.weight, B) of every layer."""
        for path, layer in self.layers.items():
            yield f"{path}.lora_down.weight", layer.lora_A[ADAPTER].weight
            yield f"{path}.lora_up.weight", layer.lora_B[ADAPTER].weight

    def parameters(self):
        return [parameter for _, parameter in self.named_parameters()]

    @contextmanager
    def off(self):
        """Inside, the network is the one without this LoRA."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    @contextmanager
    def using(self, weights):
        """Inside, the network has another state of this LoRA (a `weights()` of it), and no dropout."""
        mine = self.weights()
        self.load(weights)
        for layer in self.layers.values():
            layer.lora_dropout.eval()
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.lora_dropout.train()
            self.load(mine)

    def weights(self):
        """A copy of the LoRA's weights by name, on the CPU."""
        return {name: p.detach().to("cpu", copy=True) for name, p in self.named_parameters()}

    def load(self, weights):
        """Take up weights by name. Raises ValueError if they are of another rank, or for other layers."""
        mine = dict(self.named_parameters())
        if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in weights.items()}:
            raise ValueError("the LoRA to continue from has another rank, other targets or another base model than "
                             f"this one (rank {self.rank}, {self.targets}): set the same, or start a new run")
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(weights[name])

    def eject(self):
        """Give `root` its own layers back."""
        for path, layer in self.layers.items():
            parent, _, name = path.rpartition(".")
            setattr(self.root.get_submodule(parent), name, layer.base_layer)
        for name in set(vars(self.root)) - self._attributes:
            delattr(self.root, name)
        for name, parameter in self.root.named_parameters():
            parameter.requires_grad_(self._requires_grad[name])


def to_state_dict(weights, alpha, rename=None):
    """Adapter weights -> a LoRA file's tensors.

    rename maps a layer's path to its name in the file; by default "diffusion_model." + path, which the host reads.
    For SD1.5 A1111, Forge and diffusers read the kohya names, "lora_unet_" + the diffusers path with underscores.
    """
    rename = rename or (lambda path: f"diffusion_model.{path}")
    out = {}
    for name, tensor in weights.items():
        path, _, part = name.rpartition(".lora_")
        out[f"{rename(path)}.lora_{part}"] = tensor
        out[f"{rename(path)}.alpha"] = torch.tensor(float(alpha))
    return out


def from_state_dict(tensors):
    """A LoRA file's tensors under the host's names -> (adapter weights, alpha). Inverse of `to_state_dict`.

    Raises ValueError for tensors that are not such a LoRA.
    """
    prefix = "diffusion_model."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if not k.endswith(".alpha")}
    alphas = {float(v) for k, v in tensors.items() if k.endswith(".alpha")}
    if len(alphas) != 1 or not all(k.startswith(prefix) for k in tensors) or not all(
            k.endswith((".lora_down.weight", ".lora_up.weight")) for k in weights):
        raise ValueError("these weights are not a LoRA of this pack: continue from one that D3PO trained")
    return weights, alphas.pop()


def save_lora(tensors, path, metadata):
    """Write a LoRA file; metadata values become strings, as the format asks."""
    plain = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=plain)


def load_lora(path):
    """(tensors, metadata) of a LoRA file. Raises ValueError, naming the file, for one that is not."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a LoRA file ({error}); nothing was changed") from error
    if not any(".lora_" in name for name in tensors):
        raise ValueError(f"{path} holds no LoRA weights; nothing was changed")
    return tensors, metadata
