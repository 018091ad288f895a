"""An adapter inside somebody else's network, by PEFT, and out again without a trace.

LoRA (arXiv 2106.09685), rsLoRA (2312.03732), DoRA (2402.09353), and LyCORIS' (2309.14859) LoHa and LoKr. The
frozen reference is the same network with the adapter off, or with other weights that are held beside the
trained ones.
"""

import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from .low_rank import LowRankUpdate
from .randomness import Device, forked
from .randomness import seed as seed_draws

ADAPTER = "d3po"
ADAPTERS = ("LoRA", "rsLoRA", "DoRA", "LoHa", "LoKr")
TARGETS = ("attention", "attention and feed-forward", "all linear", "all linear and convolutions")
ATTENTION, FEED_FORWARD = ("attn", "attention"), ("ff", "feed_forward", "mlp")
# Flux and its like compute both at once in their single blocks, by a layer into them and one out of them
BOTH = re.compile(r"\bsingle_blocks\.\d+\.linear[12]$")
EMBEDDER = re.compile(r"embed|\btxt_in\b")  # of time, text or size: some are called an MLP, or have attention
# a weight's name in LoRA files -> where PEFT keeps that of an adapter, by its name, in a layer
PARTS = {
    "lora_down.weight": "lora_A.{}.weight",
    "lora_up.weight": "lora_B.{}.weight",
    "dora_scale": "lora_magnitude_vector.{}.weight",
    **{
        name: f"{name}.{{}}"
        for name in "hada_w1_a hada_w1_b hada_w2_a hada_w2_b lokr_w1 lokr_w2 lokr_w2_a lokr_w2_b".split()
    },
}
NORM_RATIO = "norm_ratio"
FIRST_ZERO = ("lora_up.weight", "hada_w2_b", "lokr_w1")  # the factor with which an update begins at 0

Layer: TypeAlias = Any  # one of PEFT's: what it has depends on the adapter's kind


def target_modules(root: Module, targets: str = "attention") -> list[str]:
    """Paths of the layers of `root` that a plain name stands for (one of TARGETS). Raises ValueError if there
    are none."""
    if targets not in TARGETS:
        raise ValueError(f"targets is {targets!r}, but must be one of: {', '.join(TARGETS)}")
    kinds = (torch.nn.Linear, torch.nn.Conv2d) if targets.endswith("convolutions") else (torch.nn.Linear,)
    names = {"attention": ATTENTION, "attention and feed-forward": ATTENTION + FEED_FORWARD}.get(targets)
    paths = [
        path
        for path, layer in root.named_modules()
        if isinstance(layer, kinds) and (names is None or _in_block(path, names))
    ]
    if not paths:
        raise ValueError(f"this model has no layers that {targets!r} stands for: choose wider LoRA targets")
    return paths


def _in_block(path: str, names: tuple[str, ...]) -> bool:
    """Whether a layer belongs to what begins or ends with one of the names, in a network's blocks."""
    named = any(part.startswith(names) or part.endswith(names) for part in path.split("."))
    return (named or bool(BOTH.search(path))) and not EMBEDDER.search(path)


def _peft() -> Any:
    """The package PEFT: seconds to load, and nothing but adapters needs it."""
    # PEFT loads it, and its notices on kernels of its own are of no use here
    quantised = logging.getLogger("bitsandbytes")
    level = quantised.level
    quantised.setLevel(logging.ERROR)
    try:
        import peft
        import peft.tuners.tuners_utils
    except ImportError as error:
        raise ValueError(
            f"adapter: LoRAs are trained by the package peft, which cannot be imported ({error}). Install it "
            "into the Python that runs ComfyUI with: pip install peft"
        ) from error
    finally:
        quantised.setLevel(level)
    return peft


class Adapter:
    """Adapter layers injected into `root`. Make one, train its parameters, and `eject` it: `root` is then as
    before.

    rank, alpha  LoRA's update is (alpha / rank) B A, rsLoRA's (alpha / sqrt(rank)) B A; B starts at 0, so
                 that at first policy and reference are one. So does a factor of the others
    targets      which layers, one of TARGETS
    dropout      share of a layer's inputs that its update does not see while training; LoHa and LoKr have
                 none
    seed         makes the first weights repeatable
    device       where the adapter's weights live (default: with the layers they adapt); they are float32,
                 unless the layers are float64
    adapter      its kind, one of ADAPTERS

    Raises ValueError where the model has no such layers, or the adapter cannot be on them.
    """

    def __init__(
        self,
        root: Module,
        rank: int = 8,
        alpha: float = 8.0,
        targets: str = "attention",
        dropout: float = 0.0,
        seed: int = 0,
        device: Device = None,
        adapter: str = "LoRA",
    ) -> None:
        self.root, self._device = root, device
        self._held: set[str] = set()
        self.rank, self.alpha, self.targets, self.adapter = rank, alpha, targets, adapter
        paths = target_modules(root, targets)
        config = _config(adapter, rank, alpha, dropout, paths)
        if adapter == "DoRA":
            adapted: list[Layer] = [root.get_submodule(path) for path in paths]
            _require_plain_weights([layer.weight for layer in adapted], device, dropout)
        self._attributes = set(vars(root))
        self._place = next(root.get_submodule(paths[0]).parameters()).device
        self._requires_grad = {name: p.requires_grad for name, p in root.named_parameters()}
        try:
            self._inject(ADAPTER, config, seed)
            if adapter == "DoRA":
                self._measure_again()
        except BaseException:  # out of memory half way, say
            self.eject()
            raise

    def _inject(self, name: str, config: Any, seed: int = 0) -> None:
        """Put an adapter into the layers under this name, for PEFT, and make it the active one."""
        with forked(self._place), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
            seed_draws(seed % 2**63, self._place)
            _peft().inject_adapter_in_model(config, self.root, adapter_name=name)
        for parameter in self.parameters(name):
            wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
            parameter.data = parameter.data.to(self._device, wide)
        for layer in self.layers.values():
            if self.adapter in ("LoRA", "rsLoRA"):
                layer.cast_input_dtype_enabled, layer.lora_variant[name] = False, LowRankUpdate
            elif self.adapter == "LoKr" and name in layer.lokr_w2:  # LyCORIS scales factors of low rank alone
                layer.scaling[name] = 1.0

    def _measure_again(self) -> None:
        """DoRA's magnitudes in float32, as the forward pass does, or it would not begin at 1."""
        for layer in self.layers.values():
            magnitude = layer.lora_magnitude_vector[ADAPTER]
            magnitude.update_layer(
                base_layer=layer.base_layer,
                lora_A=layer.lora_A[ADAPTER].weight,
                lora_B=layer.lora_B[ADAPTER].weight,
                scaling=layer.scaling[ADAPTER],
            )
            if not magnitude.weight.all():
                raise ValueError(
                    "adapter: DoRA scales every row of a layer's weights, and some rows of this model are "
                    "zero. Choose LoRA or rsLoRA, or narrower targets"
                )

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The adapted layers by path."""
        tuner = _peft().tuners.tuners_utils.BaseTunerLayer
        return {path: layer for path, layer in self.root.named_modules() if isinstance(layer, tuner)}

    def named_parameters(self, name: str = ADAPTER) -> Iterator[tuple[str, Parameter]]:
        """(path.part, parameter) of every layer, with the parts that files have: for LoRA lora_down.weight,
        which is A, and lora_up.weight, which is B. Of the trained weights, or of those that are held under a
        name."""
        places = {part: where.format(name) for part, where in PARTS.items()}
        for path, layer in self.layers.items():
            own = dict(layer.named_parameters())
            yield from ((f"{path}.{part}", own[where]) for part, where in places.items() if where in own)

    def parameters(self, name: str = ADAPTER) -> list[Parameter]:
        return [parameter for _, parameter in self.named_parameters(name)]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the network is the one without this adapter."""
        was_off = [(layer, layer.disable_adapters) for layer in self.layers.values()]
        for layer, _ in was_off:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer, off in was_off:
                layer.enable_adapters(not off)

    def hold(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Keep other weights of this adapter (a `weights()` of it) beside the trained ones, frozen, under a
        name; what it held before goes. Raises ValueError as `load`."""
        try:
            if name not in self._held:
                self._inject(name, _config(self.adapter, self.rank, self.alpha, 0.0, self.layers))
                self._held.add(name)
        finally:
            self._switch(ADAPTER)
        self.load(weights, name)

    @contextmanager
    def acting(self, name: str) -> Iterator[None]:
        """Inside, the network has the weights that are held under this name, without dropout. No weight is
        copied."""
        was = next(iter(self.layers.values())).active_adapters
        try:
            self._switch(name)
            yield
        finally:
            self._switch(was)

    def _switch(self, name: str | list[str]) -> None:
        for layer in self.layers.values():
            layer.set_adapter(name)

    def weights(self, name: str = ADAPTER) -> dict[str, Tensor]:
        """A copy of the trained weights, or of those that are held under a name, on the CPU. For DoRA with
        each layer's norm_ratio, which its files need and `load` has no use for."""
        copied = {part: p.detach().to("cpu", copy=True) for part, p in self.named_parameters(name)}
        if self.adapter == "DoRA":
            copied |= {
                f"{path}.{NORM_RATIO}": _norm_ratio(layer, name).cpu() for path, layer in self.layers.items()
            }
        return copied

    def load(self, weights: Mapping[str, Tensor], name: str = ADAPTER) -> None:
        """Take up weights, as the trained ones or as those that are held under a name. Raises ValueError if
        they are of another rank or kind, or for other layers."""
        mine = dict(self.named_parameters(name))
        given = {part: tensor for part, tensor in weights.items() if not part.endswith(NORM_RATIO)}
        if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in given.items()}:
            raise ValueError(
                "the LoRA to continue from has another rank, other targets or another base model than "
                f"this one ({self.adapter} of rank {self.rank}, {self.targets}): set the same, or start a "
                "new run"
            )
        with torch.no_grad():
            for part, parameter in mine.items():
                parameter.copy_(given[part])

    def begin_from(self, initial: Mapping[str, tuple[Tensor, Tensor, float | None]]) -> None:
        """Let a fresh adapter compute what another LoRA does, layer's path -> (up [out, r], down [r, in],
        alpha); its further rank learns from there. Convolutions have two more axes; without an alpha the
        scale is 1.

        Raises ValueError, before anything changes, if it does not go into this adapter.
        """
        if self.adapter not in ("LoRA", "rsLoRA"):
            raise ValueError(
                f"adapter: a LoRA file to start from does not go into {self.adapter}. Choose LoRA or "
                "rsLoRA, or start from nothing in Load Run"
            )
        outside = sorted(set(initial) - set(self.layers))
        if outside:
            raise ValueError(
                f"targets: the LoRA file to start from also adapts layers outside of {self.targets!r}, such "
                f"as {outside[0]}. Choose wider targets"
            )
        needed = max(len(down) for _, down, _ in initial.values())
        if needed > self.rank:
            raise ValueError(
                f"rank: the LoRA file to start from has rank {needed}, and this one {self.rank}. Set rank to "
                f"{needed} or more"
            )
        with torch.no_grad():
            for path, (up, down, alpha) in initial.items():
                layer, rank = self.layers[path], len(down)
                A, B = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
                scale = (1.0 if alpha is None else alpha / rank) / layer.scaling[ADAPTER]
                A[:rank] = down.to(A).reshape(A[:rank].shape)
                B[:, :rank] = scale * up.to(B).reshape(B[:, :rank].shape)

    @torch.no_grad()
    def pull_back(self, share: float, towards: str | None, weights: Mapping[str, Tensor]) -> None:
        """Leave in weights, by the trained ones' names, this share of what they have moved: of their whole
        update, or of the way from the weights that are held under a name."""
        held = dict(self.named_parameters(towards)) if towards else {}
        for name, weight in weights.items():
            if towards:
                weight.lerp_(held[name].to(weight), 1 - share)
            elif name.endswith(FIRST_ZERO):
                weight.mul_(share)
            elif name.endswith("dora_scale"):
                base = self.layers[name.removesuffix(".dora_scale")].base_layer.weight
                weight.lerp_(base.to(weight).flatten(1).norm(dim=1).view_as(weight), 1 - share)

    def eject(self) -> None:
        """Give `root` its own layers back."""
        for path, layer in self.layers.items():
            parent, _, name = path.rpartition(".")
            setattr(self.root.get_submodule(parent), name, layer.base_layer)
        for name in set(vars(self.root)) - self._attributes:
            delattr(self.root, name)
        for name, parameter in self.root.named_parameters():
            parameter.requires_grad_(self._requires_grad[name])


def _config(adapter: str, rank: int, alpha: float, dropout: float, paths: Iterable[str]) -> Any:
    """PEFT's description of an adapter on these layers."""
    if adapter not in ADAPTERS:
        raise ValueError(f"adapter is {adapter!r}, but must be one of: {', '.join(ADAPTERS)}")
    modules = "|".join(map(re.escape, paths))  # in a list PEFT matches by ending
    if adapter not in ("LoHa", "LoKr"):
        return _peft().LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            use_rslora=adapter == "rsLoRA",
            use_dora=adapter == "DoRA",
            target_modules=modules,
        )
    if dropout:  # PEFT would drop rows of the update, and divide by the share that is left, which may be none
        raise ValueError(f"dropout: {adapter} has none. Set it to 0, or choose LoRA, rsLoRA or DoRA")
    config = _peft().LoHaConfig if adapter == "LoHa" else _peft().LoKrConfig
    return config(r=rank, alpha=alpha, target_modules=modules)


def _require_plain_weights(weights: list[Tensor], device: Device, dropout: float) -> None:
    """Raise ValueError unless DoRA can compute with the weights of the layers themselves."""
    plain = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    if any(
        type(w) is not torch.nn.Parameter
        or w.dtype not in plain
        or device is not None
        and w.device.type != torch.device(device).type
        for w in weights
    ):
        raise ValueError(
            "adapter: DoRA needs the model's own weights, and these are quantised or do not all fit on the "
            "GPU. Choose LoRA or rsLoRA, or load the model in full"
        )
    if dropout and any(w.ndim > 2 and w.dtype in (torch.float16, torch.bfloat16) for w in weights):
        raise ValueError(
            "dropout: DoRA has none on convolutions of a model in half precision. Set it to 0, or choose "
            "targets without convolutions"
        )


@torch.no_grad()
def _norm_ratio(layer: Layer, name: str) -> Tensor:
    """|W + dW| / |W| of every row of a DoRA layer: [out, 1], for convolutions [out, 1, 1, 1]."""
    delta = layer.get_delta_weight(name)
    weight = layer.base_layer.weight.to(delta)
    ratio: Tensor = (weight + delta).flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
    return ratio.view(-1, *[1] * (weight.ndim - 1))
