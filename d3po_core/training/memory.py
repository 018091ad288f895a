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
Room: TypeAlias = Callable[[int, int], int]


class Passes:
    """How the passes of training go through a network.

    checkpointing  one of checkpointing.CHECKPOINTING; automatic: where they would not fit without
    per_pass       so many candidates at a time at most, 0: all of a set
    room           room(bytes, least) makes room for so many on the device, as far as it can, and returns how
                   many are free; with less than `least` a single candidate would not fit. None: that is
                   unknown, and is found out by running out of memory
    """

    def __init__(
        self, adapter: Adapter, device: Device, checkpointing: str, per_pass: int, room: Room | None = None
    ) -> None:
        self.adapter, self.device, self.room = adapter, device, room
        self.automatic, self.checkpointed = checkpointing == AUTOMATIC, checkpointing == ON
        self.per_pass, self.begun = per_pass, False
        self.blocks = blocks(adapter.root, adapter.layers.values())
        self._leave([])

    def _leave(self, some: list[Module]) -> None:
        """Let some blocks keep all they need, also with checkpointing."""
        self.left = some
        self.checkpointing = Checkpointing([block for block in self.blocks if block not in some], self.device)

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
            self.room(ALL, 0)
            self.checkpointed, self.per_pass = self.checkpointed or self.automatic, 1

    def _fit(self, need: "Need", together: int) -> None:
        """Let no more be kept of candidates that go through together than there is room for."""
        assert self.room
        least = need.checkpointed if self.checkpointed or self.automatic else need.whole
        free = self.room(int(SPARE * together * need.whole), int(SPARE * least)) / SPARE
        if self.automatic:
            self.checkpointed = free < together * need.whole
        each = need.checkpointed if self.checkpointed else need.whole
        if free < together * each:
            self.per_pass = max(1, int(free / each))
        if self.checkpointed:
            self._leave(need.last(int(free / self._together(together)) if self.automatic else 0))

    def lessen(self, most: int) -> bool:
        """After memory did not suffice for an update, of which so many candidates at most go through
        together: take less at a time. False where that cannot be."""
        together = self._together(most)
        if self.room:
            self.room(ALL, 0)
        if self.automatic and not self.checkpointed:
            self.checkpointed = True
        elif self.left:
            self._leave([])
        elif together > 1:
            self.per_pass = together // 2
        else:
            return False
        return True

    def _together(self, most: int) -> int:
        return min(self.per_pass or most, most)


class Need(NamedTuple):
    """Bytes that a pass keeps for its backward pass: outside of blocks and for each of these to be gone
    through again, and all that a call of a block needs, (block, bytes) in their order. written_over: whether
    blocks write over what a gradient needs, so that each has to be gone through again."""

    always: int
    calls: Sequence[tuple[Module, int]]
    written_over: bool = False

    @property
    def whole(self) -> int:
        """Without checkpointing."""
        return self.always + sum(size for _, size in self.calls)

    @property
    def checkpointed(self) -> int:
        """At most at a time with checkpointing."""
        return self.always + self._largest

    @property
    def _largest(self) -> int:
        return max((size for _, size in self.calls), default=0)

    def last(self, free: int) -> list[Module]:
        """The last blocks that need not be gone through again where so many bytes are free, or in what
        checkpointing takes anyhow.

        The backward pass begins with them, and they have given back what they kept when it comes to the
        others. Where a pass calls a block more than once that is not so: then there are none.
        """
        found: list[Module] = []
        if self.written_over or len({block for block, _ in self.calls}) < len(self.calls):
            return found
        left = max(free - self.always, self._largest)
        for block, size in reversed(self.calls):
            left -= size
            if left < 0:
                break
            found.append(block)
        return found


def needed(network: Module, of: list[Module], run: Callable[[], Tensor], device: Device = None) -> Need:
    """The Need of run(), which goes through a network with these blocks. It takes the memory of a pass with
    checkpointing."""
    weights = _storages([*network.parameters(), *network.buffers()])
    outside: list[Tensor] = []
    calls: list[tuple[Module, int]] = []
    written_over: list[bool] = []

    def keep(tensor: Tensor) -> Tensor:
        outside.append(tensor.detach())
        return tensor

    def seen(block: Module, kept: list[Tensor], over: bool) -> None:
        calls.append((block, _bytes(kept, weights)))
        written_over.append(over)

    checkpointing = Checkpointing(of, device, seen)
    with forked(device), torch.enable_grad(), checkpointing.applied():
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            run()
    return Need(_bytes(outside, weights), calls, any(written_over))


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
