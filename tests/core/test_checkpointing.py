"""Blocks that are gone through again in the backward pass: the gradient is the same to the bit, and the
network afterwards too."""

import pytest
import torch
from torch import nn

from d3po_core.training.adapter import Adapter
from d3po_core.training.checkpointing import Checkpointing, blocks
from d3po_core.training.memory import needed
from tests.core.conftest import Block, Net
from tests.core.test_lora import anatomy

WIDTH = 4


class Streams(nn.Module):
    """Two streams, each written over by what is added to it, as in Flux's blocks."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.norm, self.ff, self.gate = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.attn = nn.Linear(width, width)

    def forward(self, img, txt, *, vec, options):
        options["seen"].append(options["block"])
        gates = [scale * self.gate(vec["time"][0]) for scale in options["scales"]]
        img += gates[0] * torch.tanh(self.attn(self.norm(img)))
        held = torch.sigmoid(img)
        img += held * self.ff(img)
        held *= 1.0
        txt += gates[1] * self.ff(self.norm(txt))
        return img, txt


class TwoStreams(nn.Module):
    def __init__(self):
        super().__init__()
        self.img_in, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.double_blocks = nn.ModuleList([Streams() for _ in range(3)])

    def forward(self, x):
        img, txt, vec = self.img_in(x), 2 * x, {"time": (x.mean(1, keepdim=True),)}
        options = {"seen": [], "scales": [0.5, 0.25]}
        for i, block in enumerate(self.double_blocks):
            options["block"] = i  # as the host does: what is run again has to see its own
            img, txt = block(img, txt, vec=vec, options=options)
        self.seen = options["seen"]
        return self.out(img) + txt


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh())

    def forward(self, x):
        return x + self.layers(x)


class Transformer(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Block(2) for _ in range(depth)])


class UNet(nn.Module):
    """Shaped as the host's: lists of sequences, of residual blocks and of transformers of several blocks."""

    def __init__(self, depth):
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2))
        self.input_blocks = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(2, 2, 1)), nn.Sequential(Residual(), Transformer(depth))]
        )
        self.middle_block = nn.Sequential(Residual(), Transformer(1), Residual())


@pytest.fixture
def two_streams():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TwoStreams().requires_grad_(False)


def gradient(adapter, run, checkpointing=None):
    """The gradient of each weight of the adapter, with draws that are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        with torch.enable_grad():
            if checkpointing:
                with checkpointing.applied():
                    output = run()
            else:
                output = run()
            return torch.autograd.grad(output.square().sum(), adapter.parameters())


def checkpointing_of(adapter, **options):
    return Checkpointing(blocks(adapter.root, adapter.layers.values()), **options)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_gradient_is_the_same_to_the_bit(toy, dropout):
    net, generator = toy.net(), torch.Generator().manual_seed(1)
    adapter = Adapter(net, rank=2, targets="all linear and convolutions", dropout=dropout)
    toy.stir(adapter)
    x = torch.randn(3, 2, 4, 4, generator=generator)
    run = lambda: net(x, torch.tensor([9.0, 2.0, 0.5]))
    usual = gradient(adapter, run)
    assert all(map(torch.equal, usual, gradient(adapter, run, checkpointing_of(adapter))))
    assert any(g.any() for g in usual)


def test_so_is_that_of_what_goes_in_where_no_weight_learns(toy):
    net = toy.net()
    adapter = Adapter(net, rank=2, targets="all linear and convolutions")
    toy.stir(adapter)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def slope():
        return torch.autograd.grad(net(x, torch.tensor([9.0, 2.0, 0.5])).square().sum(), x)[0]

    with adapter.off():
        usual = slope()
        with checkpointing_of(adapter).applied():
            assert torch.equal(slope(), usual) and usual.any()


def test_blocks_that_write_over_their_inputs_have_the_same_gradient_to_the_bit(toy, two_streams):
    adapter = Adapter(two_streams, rank=2, targets="all linear", dropout=0.3)
    toy.stir(adapter)
    x = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(2))
    run, checkpointing = lambda: two_streams(x), checkpointing_of(adapter)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(adapter, run)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        usual = gradient(adapter, run)
    for _ in range(2):  # the first time it is found out what is written over
        assert all(map(torch.equal, usual, gradient(adapter, run, checkpointing)))
    assert two_streams.seen == [0, 1, 2], "what a block is told when it runs again stays there"
    need = needed(two_streams, blocks(two_streams, adapter.layers.values()), run)
    assert need.written_over and need.last(2**40) == [], "each of them has to be gone through again"


def test_what_is_written_over_between_blocks_is_told_as_ever(toy):
    net = toy.net()
    adapter = Adapter(net, rank=2, targets="all linear")
    toy.stir(adapter)
    x = torch.randn(2, 3, 4)

    def run():
        tokens = x + adapter.layers["time_embed"](torch.ones(1))
        after = net.transformer_blocks[0](tokens)
        tokens += 1
        return after

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(adapter, run, checkpointing_of(adapter))


def test_a_block_that_does_another_thing_the_second_time_is_an_error(toy):
    net, calls = toy.net(), []
    adapter = Adapter(net, rank=2, targets="all linear")
    (block,) = net.transformer_blocks
    block.ff.register_forward_hook(lambda *_: calls.append(1) or (_[2] * _[2] if len(calls) > 1 else None))
    with pytest.raises(RuntimeError, match="model: something on it .* Set checkpointing to off"):
        gradient(adapter, lambda: net(torch.ones(1, 2, 4, 4), torch.ones(1)), checkpointing_of(adapter))


def test_inside_a_block_nothing_is_kept_but_its_inputs(toy):
    net = toy.net()
    adapter = Adapter(net, rank=2, targets="all linear")
    kept = []
    checkpointing = checkpointing_of(adapter, seen=lambda block, needed, over: kept.append(len(needed)))
    outside = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: outside.append(t) or t, lambda t: t)
    with checkpointing.applied(), hooks:
        net(torch.ones(2, 2, 4, 4), torch.ones(2))
    inputs = [t for t in outside if t.shape == (2, 16, 4)]
    assert kept[0] > 15 and len(inputs) == 1


def test_the_network_is_as_before_also_after_an_error_and_the_reference_is_not_kept(toy):
    net = toy.net()
    adapter = Adapter(net, rank=2)
    before = anatomy(net)
    own = net.transformer_blocks[0].forward = net.transformer_blocks[0].forward  # somebody else's
    with pytest.raises(ArithmeticError), checkpointing_of(adapter).applied():
        assert net.transformer_blocks[0].forward is not own
        with torch.no_grad():
            assert torch.equal(
                net(torch.ones(1, 2, 4, 4), torch.ones(1)), net(torch.ones(1, 2, 4, 4), torch.ones(1))
            )
        raise ArithmeticError
    assert vars(net.transformer_blocks[0]).pop("forward") is own
    assert anatomy(net) == before


def test_blocks_are_found_by_the_shape_of_the_network(two_streams):
    assert blocks(Net()) and list(map(type, blocks(two_streams))) == 3 * [Streams]
    deep = list(map(type, blocks(UNet(2))))
    assert deep == [Residual, Block, Block, Residual, Transformer, Residual]
    assert list(map(type, blocks(UNet(1)))) == [Residual, Transformer, Residual, Transformer, Residual]
    net = UNet(2)
    adapter = Adapter(net, rank=1, targets="all linear and convolutions")
    assert list(map(type, blocks(net, adapter.layers.values()))) == deep, "a layer with an adapter is none"
