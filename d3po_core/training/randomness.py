"""Repeatable draws: from names alone, or inside a block that leaves the random state outside untouched."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Device: TypeAlias = torch.device | str | None


class _Draws(Protocol):
    """What torch.cuda and its likes have for the random numbers of their devices."""

    def get_rng_state(self, device: torch.device, /) -> Tensor: ...

    def set_rng_state(self, new_state: Tensor, device: torch.device, /) -> None: ...


def generator_of(*names: object) -> torch.Generator:
    """A generator that depends on these names alone: a resumed run makes the same draws."""
    digest = hashlib.sha256(repr(names).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def forked(device: Device = None) -> AbstractContextManager[None]:
    """Inside, draws on the CPU and on this device leave the random state outside as it was."""
    device = torch.device(device or "cpu")
    return (
        torch.random.fork_rng([device], device_type=device.type)
        if _own_draws(device)
        else torch.random.fork_rng([])
    )


def seed(number: int, device: Device = None) -> None:
    """Seed the CPU's draws and this device's, and no other's (torch.manual_seed seeds every device)."""
    device = torch.device(device or "cpu")
    torch.default_generator.manual_seed(number)
    if draws := _own_draws(device):
        draws.set_rng_state(torch.Generator(device).manual_seed(number).get_state(), device)


def repeated(device: Device = None) -> Callable[[], AbstractContextManager[None]]:
    """A function that makes blocks in which the CPU and this device draw what they would draw now; outside
    of them the random state is as it was."""
    device = torch.device(device or "cpu")
    draws = _own_draws(device)
    state, own = torch.default_generator.get_state(), draws.get_rng_state(device) if draws else None

    @contextmanager
    def block() -> Iterator[None]:
        with forked(device):
            torch.default_generator.set_state(state)
            if draws and own is not None:
                draws.set_rng_state(own, device)
            yield

    return block


def _own_draws(device: torch.device) -> _Draws | None:
    """torch's module with the random state of such a device. None for the CPU and DirectML."""
    module = getattr(torch, device.type, None)
    return module if hasattr(module, "set_rng_state") else None
