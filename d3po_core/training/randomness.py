"""Draws that may be made again: by names alone, or inside a block that leaves the random numbers outside as they were."""

import hashlib

import torch


def generator_of(*names):
    """Draws that depend on these names alone, so that a resumed run makes the same ones, in whatever order."""
    digest = hashlib.sha256(repr(names).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def forked(device=None):
    """Inside, what is drawn on the CPU and on this device changes no random numbers outside."""
    device = torch.device(device or "cpu")
    return (
        torch.random.fork_rng([device], device_type=device.type)
        if _own_draws(device)
        else torch.random.fork_rng([])
    )


def seed(number, device=None):
    """Seed the CPU's draws and this device's, and no other's (torch.manual_seed seeds every one)."""
    device = torch.device(device or "cpu")
    torch.default_generator.manual_seed(number)
    if draws := _own_draws(device):
        draws.set_rng_state(torch.Generator(device).manual_seed(number).get_state(), device)


def _own_draws(device):
    """torch's module that keeps the random numbers of such a device; None for the CPU, and where there is none (DirectML)."""
    module = getattr(torch, device.type, None)
    return module if hasattr(module, "set_rng_state") else None
