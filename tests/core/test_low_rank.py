"""LoRA's update of half-precision layers: PEFT's numbers to the bit, and no float32 copy of what goes in."""

import pytest
import torch
from torch import nn

from d3po_core.training.adapter import Adapter

WIDEST = "all linear and convolutions"


class Projections(nn.Module):
    """Three layers on one input, as attention's q, k and v, behind convolutions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(2, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 1, bias=False))
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return self.out(self.q(tokens) + self.k(tokens) + self.v(tokens))


def network(dtype):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Projections().to(dtype).requires_grad_(False)


def as_peft_has_it(adapter):
    for layer in adapter.layers.values():
        layer.lora_variant.clear()
        layer.cast_input_dtype_enabled = True


def output_and_gradients(adapter, x):
    with torch.enable_grad():
        output = adapter.root(x)
        return output, torch.autograd.grad(output.float().square().sum(), [x, *adapter.parameters()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA"])
def test_outputs_and_gradients_are_pefts_to_the_bit(toy, kind, dtype):
    adapter = Adapter(network(dtype), rank=2, alpha=3.0, targets=WIDEST, adapter=kind)
    toy.stir(adapter)
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    output, gradients = output_and_gradients(adapter, x)
    as_peft_has_it(adapter)
    usual, of_peft = output_and_gradients(adapter, x)
    assert torch.equal(output, usual) and output.dtype == dtype
    assert all(map(torch.equal, gradients, of_peft)) and all(g.any() for g in gradients)
    assert {g.dtype for g in gradients[1:]} == {torch.promote_types(dtype, torch.float32)}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_layers_input_is_kept_once_and_as_it_comes(toy, dropout):
    adapter = Adapter(network(torch.bfloat16), rank=2, targets=WIDEST, dropout=dropout)
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if tensor.numel() == 2 * 16 * 8:  # tokens, and no weights
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = adapter.root(torch.ones(2, 2, 8, 8, dtype=torch.bfloat16))
    dtypes = [tensor.dtype for tensor in kept.values()]
    # the convolutions' inputs, the tokens and their sum. With dropout each layer has its own, and its mask
    assert torch.float32 not in dtypes and (dropout or dtypes == 4 * [torch.bfloat16]), dtypes
    assert output.dtype == torch.bfloat16


def test_held_weights_act_by_the_same_arithmetic(toy):
    adapter = Adapter(network(torch.bfloat16), rank=2, targets=WIDEST)
    toy.stir(adapter)
    adapter.hold("round start", adapter.weights())
    x = torch.randn(2, 2, 8, 8).bfloat16()
    policy = adapter.root(x)
    with torch.no_grad(), adapter.acting("round start"):
        assert torch.equal(adapter.root(x), policy)
    with adapter.off():
        assert not torch.equal(adapter.root(x), policy)
