"""What is drawn inside leaves the random numbers outside as they were, on the CPU and on the device used."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from d3po_core.training.randomness import forked, seed


class Accelerator(SimpleNamespace):
    """A device module as torch.cuda, torch.xpu and torch.mps are, of several devices.

    Nothing is known of another."""

    def __init__(self, count):
        self.states = [torch.Generator().manual_seed(100 + i).get_state() for i in range(count)]
        self.asked = set()

    def device_count(self):
        return len(self.states)

    def get_rng_state(self, device):
        index = device if isinstance(device, int) else device.index or 0
        self.asked.add(index)
        return self.states[index].clone()

    def set_rng_state(self, state, device):
        self.states[device if isinstance(device, int) else device.index or 0] = state.clone()


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_the_cpu_and_the_device_in_use_are_forked_and_seeded_and_no_other(monkeypatch, kind):
    accelerator, generator = Accelerator(1 if kind == "mps" else 3), torch.Generator
    monkeypatch.setattr(torch, kind, accelerator)
    monkeypatch.setattr(
        torch, "get_device_module", lambda device: accelerator
    )  # torch remembers what it gave before
    monkeypatch.setattr(torch, "Generator", lambda device: generator())
    index = accelerator.device_count() - 1
    before, on_cpu = [state.clone() for state in accelerator.states], torch.get_rng_state()
    device = torch.device(kind, index)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with forked(device):
            drawn = []
            for _ in range(2):
                seed(5, device)
                drawn.append((torch.rand(3), accelerator.get_rng_state(device)))
            assert all(map(torch.equal, *drawn)) and not torch.equal(drawn[0][1], before[index])
    assert torch.equal(torch.get_rng_state(), on_cpu) and accelerator.asked == {index}
    assert all(map(torch.equal, accelerator.states, before))


@pytest.mark.parametrize("device", ["cpu", "meta", None])
def test_where_there_is_no_accelerator_the_cpu_is_forked(device):
    before = torch.get_rng_state()
    with forked(device):
        seed(5, device)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_device_type_without_random_numbers_of_its_own_is_no_error(monkeypatch):
    monkeypatch.delattr(torch, "mps")  # as DirectML, which torch has no module for
    with forked("mps"):
        seed(5, "mps")
