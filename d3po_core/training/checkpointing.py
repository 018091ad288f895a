"""Gradient checkpointing (arXiv 1604.06174): the blocks of a network keep their inputs alone for the backward
pass, and are gone through again when it comes to them.

torch.utils.checkpoint does it too, but where a block writes over what its gradient needs, as those of Flux's
kind do, it takes what stands there then, and says nothing. Here such tensors are copied.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module, ModuleDict, ModuleList, Sequential

from .randomness import Device, repeated

CHECKPOINTING = AUTOMATIC, ON, OFF = ("automatic", "on", "off")
LISTS = (ModuleList, ModuleDict, Sequential)
Seen: TypeAlias = Callable[[Module, list[Tensor], bool], None]


def blocks(network: Module, layers: Collection[Module] = ()) -> list[Module]:
    """The elements of a network's lists of modules that have parts of their own: transformer and residual
    blocks. An element with a stack of blocks in it is no block, but these are.

    layers  what counts as one layer, whatever it is made of: those with an adapter
    """
    found: list[Module] = []
    for child in network.children():
        if not isinstance(child, LISTS):
            found += [] if child in layers else blocks(child, layers)
            continue
        for element in _elements(child, layers):
            found += blocks(element, layers) if _has_stack(element, layers) else [element]
    return found


def _elements(several: Module, layers: Collection[Module]) -> Iterator[Module]:
    """The elements of a list that are no layers, and those of lists in it."""
    for element in several.children():
        if isinstance(element, LISTS):
            yield from _elements(element, layers)
        elif element not in layers and next(element.children(), None):
            yield element


def _has_stack(module: Module, layers: Collection[Module]) -> bool:
    """Whether a list in it has several elements of one kind."""
    for child in module.children():
        if isinstance(child, LISTS):
            kinds = [type(element) for element in _elements(child, layers)]
            if len(kinds) > len(set(kinds)):
                return True
        elif child not in layers and _has_stack(child, layers):
            return True
    return False


class Checkpointing:
    """Blocks that keep their inputs alone, while they are `applied`.

    device  on which they draw random numbers, if they do
    seen    is told, after each call of a block with gradients: which, all that its gradient needs, and
            whether it writes over some of that or of what goes into it
    """

    def __init__(self, of: Collection[Module], device: Device = None, seen: Seen | None = None) -> None:
        self.blocks = [_Block(module, device, seen) for module in dict.fromkeys(of)]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the blocks are gone through again in the backward pass. Their modules are as before
        afterwards."""
        with ExitStack() as stack:
            for block in self.blocks:
                stack.enter_context(block.applied())
            yield


class _Block:
    """A block in whose place its inputs are kept."""

    def __init__(self, module: Module, device: Device, seen: Seen | None) -> None:
        self.module, self.device, self.seen = module, device, seen
        self.written_over: set[int] = set()  # numbers of what its gradient needs, and it writes over

    @contextmanager
    def applied(self) -> Iterator[None]:
        attributes = vars(self.module)
        before = {name: value for name, value in attributes.items() if name == "forward"}
        self.forward = self.module.forward
        attributes["forward"] = self
        try:
            yield
        finally:
            del attributes["forward"]
            attributes.update(before)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        tensors: list[Tensor] = []
        inputs = _each((args, kwargs), lambda tensor: _Place(tensors, tensor))  # the host changes its dicts
        before = [
            (tensor.detach().clone().requires_grad_(tensor.requires_grad), tensor._version)
            for tensor in tensors
        ]
        once = _Pass(self, inputs, keep=self.seen is not None)
        with saved_tensors_hooks(once.number, once.numbered):
            output = self.forward(*args, **kwargs)
        once.copied = [tensor._version != version for tensor, (_, version) in zip(tensors, before)]
        handle: Any = _Keep.apply(  # type: ignore[no-untyped-call]
            torch.empty(0, requires_grad=True),
            *(copy if copied else tensor for tensor, (copy, _), copied in zip(tensors, before, once.copied)),
        )
        once.keeper = handle.grad_fn
        if self.seen:
            over = any(tensor._version != version for tensor, version in zip(once.kept, once.versions))
            self.seen(self.module, once.kept, over or any(once.copied))
            once.kept = []
        return output


class _Place:
    """Where a tensor belongs among inputs: its place in a list of them."""

    def __init__(self, tensors: list[Tensor], tensor: Tensor) -> None:
        self.at = len(tensors)
        tensors.append(tensor)


class _Keep(torch.autograd.Function):
    """Keeps tensors as autograd does, which tells if they are written over before they are asked for."""

    @staticmethod
    def forward(ctx: Any, handle: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return handle.clone()


class _Pass:
    """One call of a block. What its gradient needs has a number until it is made again.

    inputs  its arguments, with places for tensors
    copied  of each tensor of these, whether it is a copy, as the block writes over it
    """

    copied: list[bool]
    keeper: Any

    def __init__(self, block: _Block, inputs: Any, keep: bool) -> None:
        self.block, self.inputs = block, inputs
        self.draws = repeated(block.device)
        self.count, self.keep = 0, keep
        self.kept: list[Tensor] = []
        self.versions: list[int] = []

    def number(self, tensor: Tensor) -> int:
        if self.keep:
            self.kept.append(tensor)
            self.versions.append(tensor._version)
        self.count += 1
        return self.count - 1

    def numbered(self, number: int) -> Tensor:
        if not self.kept:
            made = self._made_again()
            if over := {n for n, (tensor, version) in enumerate(made) if tensor._version != version}:
                self.block.written_over |= over
                made = self._made_again()
            self.kept = [tensor for tensor, _ in made]
        return self.kept[number]

    def _made_again(self) -> list[tuple[Tensor, int]]:
        """(tensor, its version when it was kept) of all that the gradient needs."""
        made: list[tuple[Tensor, int]] = []

        def keep(tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            if len(made) in self.block.written_over:
                tensor = tensor.clone()
            made.append((tensor, tensor._version))
            return tensor

        with torch.enable_grad(), self.draws():
            tensors = [
                tensor.clone() if copied else tensor
                for tensor, copied in zip(self.keeper.saved_tensors, self.copied)
            ]
            args, kwargs = _each(self.inputs, lambda place: tensors[place.at], _Place)
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                self.block.forward(*args, **kwargs)
        if len(made) != self.count:
            raise RuntimeError(
                "model: something on it does another thing when a block of the network is gone through "
                "again, as checkpointing does. Set checkpointing to off, or take that node out, before both "
                "the sampler and the train step"
            )
        return made


def _each(value: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """A copy of nested dicts, lists and tuples with everything of a kind in them changed. Tensors of
    inference mode stay, as nothing can write over them."""
    if isinstance(value, kind):
        return value if isinstance(value, Tensor) and value.is_inference() else change(value)
    if type(value) is dict:
        return {key: _each(item, change, kind) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_each(item, change, kind) for item in value)
    return value
