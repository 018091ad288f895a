"""How passes fit into memory: whether blocks are gone through again in the backward pass, and how many
candidates go through the network together.

None of it changes what is learned.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module

from .adapter import Adapter
from .checkpointing import AUTOMATIC, ON, Checkpointing, blocks
from .randomness import Device, forked

if TYPE_CHECKING:
    from .judged import JudgedSet

SPARE = 1.25  # times what is kept: gradients on their way, kernels' scratch space, gaps between tensors
ALL = 2**62  # bytes
Room: TypeAlias = Callable[[int], int]


class Passes:
    """How the passes of training go through a network.

    checkpointing  one of checkpointing.CHECKPOINTING; automatic: where they would not fit without
    per_pass       so many candidates at a time at most, 0: all of a set
    room           room(bytes) makes room for so many on the device, as far as it can, and returns how many
                   are free. None: that is unknown, and is found out by running out of memory
    """

    def __init__(
        self, adapter: Adapter, device: Device, checkpointing: str, per_pass: int, room: Room | None = None
    ) -> None:
        self.adapter, self.device, self.room = adapter, device, room
        self.automatic, self.checkpointed = checkpointing == AUTOMATIC, checkpointing == ON
        self.per_pass, self.begun = per_pass, False
        self.blocks = blocks(adapter.root, adapter.layers.values())
        self.checkpointing = Checkpointing(self.blocks, device)

    def applied(self) -> AbstractContextManager[None]:
        """Inside, the network keeps for the backward pass what there is memory for."""
        return self.checkpointing.applied() if self.checkpointed else nullcontext()

    def begin(self, sets: Sequence["JudgedSet"]) -> None:
        """Decide, by one candidate's forward pass, before the first update of judged sets; later ones are
        taken to be alike."""
        if self.begun or not self.room:
            return
        self.begun = True
        judged = max(sets, key=lambda judged: math.prod(judged.candidates.latent_shape[1:]))
        x, sigma = (value.to(self.device) for value in judged.candidates.looked_at())
        denoise = lambda: judged.example.denoise(x, sigma.to(x).expand(1))
        try:
            need = needed(self.adapter.root, self.blocks, denoise, self.device)
        except torch.cuda.OutOfMemoryError:
            need = None
        if need:
            self._fit(need, self._together(max(len(judged.members) for judged in sets)))
        else:
            self.room(ALL)
            self.checkpointed, self.per_pass = self.checkpointed or self.automatic, 1

    def _fit(self, need: "Need", together: int) -> None:
        """Let no more be kept of candidates that go through together than there is room for."""
        assert self.room
        free = self.room(int(SPARE * together * need.whole)) / SPARE
        if self.automatic:
            self.checkpointed = free < together * need.whole
        each = need.checkpointed if self.checkpointed else need.whole
        if free < together * each:
            self.per_pass = max(1, int(free / each))

    def lessen(self, most: int) -> bool:
        """After memory did not suffice for an update, of which so many candidates at most go through
        together: take less at a time. False where that cannot be."""
        together = self._together(most)
        if self.room:
            self.room(ALL)
        if self.automatic and not self.checkpointed:
            self.checkpointed = True
        elif together > 1:
            self.per_pass = together // 2
        else:
            return False
        return True

    def _together(self, most: int) -> int:
        return min(self.per_pass or most, most)


class Need(NamedTuple):
    """Bytes that a pass keeps for its backward pass: as it is, and at most at a time with checkpointing."""

    whole: int
    checkpointed: int


def needed(network: Module, of: list[Module], run: Callable[[], Tensor], device: Device = None) -> Need:
    """The Need of run(), which goes through a network with these blocks. It takes the memory of a pass with
    checkpointing."""
    weights = _storages([*network.parameters(), *network.buffers()])
    outside: list[Tensor] = []
    inside: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        outside.append(tensor.detach())
        return tensor

    def seen(kept: list[Tensor]) -> None:
        inside.append(_bytes(kept, weights))

    checkpointing = Checkpointing(of, device, seen)
    with forked(device), torch.enable_grad(), checkpointing.applied():
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            run()
    always = _bytes(outside, weights)
    return Need(always + sum(inside), always + max(inside, default=0))


def _bytes(tensors: Iterable[Tensor], but: Iterable[int]) -> int:
    """The memory of tensors, each once, however many there are of it; without some."""
    return sum(size for storage, size in _storages(tensors).items() if storage not in but)


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Names of tensors' memory, and its bytes."""
    of = [tensor.untyped_storage() for tensor in tensors]
    return {storage._cdata: storage.nbytes() for storage in of}


def empty_cache(device: Device) -> None:
    """Give back what torch holds of a device's memory and does not use."""
    module: Any = getattr(torch, torch.device(device or "cpu").type, None)
    if hasattr(module, "empty_cache"):
        module.empty_cache()
