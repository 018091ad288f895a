"""Passes that are made to fit into memory, and learn the same."""

import dataclasses

import pytest
import torch

from d3po_core.training.adapter import Adapter
from d3po_core.training.checkpointing import blocks
from d3po_core.training.loop import Example, Trainer
from d3po_core.training.memory import ALL, SPARE, Need, needed
from tests.core.gradients import assert_same, gradients, still

PAIRS = (((0, 1), (0, 2), (2, 1), (3, 1)), ((1, 0),))


class Scarce:
    """A denoiser on a device that has memory for so many candidates at a time, with gradients."""

    def __init__(self, denoise, most):
        self.denoise, self.most, self.passes = denoise, most, []

    def __call__(self, x, sigma):
        if torch.is_grad_enabled():
            self.passes.append(len(x))
            if len(x) > self.most:
                raise torch.cuda.OutOfMemoryError("as a test")
        return self.denoise(x, sigma)


def network(toy, depth, dtype=torch.float32):
    """The tiny network with so many blocks."""
    net = toy.net(dtype=dtype)
    blocks = [toy.net(seed, dtype).transformer_blocks[0] for seed in range(1, depth)]
    net.transformer_blocks.extend(blocks)
    return net


@pytest.fixture
def start(toy):
    """(adapter away from its start, examples, sizes of passes with gradients), with memory for so many
    candidates at a time."""

    def make(most=99, depth=1, **options):
        net = network(toy, depth, torch.float64)
        adapter = Adapter(net, rank=2, alpha=3.0, targets="all linear and convolutions", **options)
        denoise = toy.Denoiser(net)
        with adapter.off():
            examples = toy.examples(denoise, PAIRS, dtype=torch.float64, policy="elsewhere")
        toy.stir(adapter)
        scarce = Scarce(denoise, most)
        return adapter, [Example(example.preferences, scarce) for example in examples], scarce.passes

    return make


def need_of(adapter, run):
    return needed(adapter.root, blocks(adapter.root, adapter.layers.values()), run)


SETTINGS = still(beta=3.0, dpo_beta=50.0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("per_pass", [0, 1])
def test_checkpointing_leaves_gradients_and_metrics_as_they_are_to_the_bit(start, dropout, per_pass):
    settings = dataclasses.replace(SETTINGS, candidates_per_pass=per_pass)
    adapter, examples, passes = start(dropout=dropout)
    usual, metrics = gradients(adapter, dataclasses.replace(settings, checkpointing="off"), examples)
    count, forwards = len(passes), []
    hook = adapter.root.transformer_blocks[0].ff.register_forward_hook(lambda *_: forwards.append(1))
    again, same_metrics = gradients(adapter, dataclasses.replace(settings, checkpointing="on"), examples)
    hook.remove()
    assert all(map(torch.equal, usual, again)) and metrics == same_metrics
    with_gradients = sum(n > 0 for n in passes[count:])
    assert len(forwards) > 2 * with_gradients, "each block runs twice, and in reference passes once"


@pytest.mark.parametrize(
    "most, checkpointing, tried",
    [
        (4, "automatic", [4]),
        (3, "automatic", [4, 4, 2]),
        (1, "automatic", [4, 4, 2, 1]),
        (1, "on", [4, 2, 1]),
    ],
)
def test_after_too_little_memory_an_update_is_made_again_with_less_at_a_time(
    start, most, checkpointing, tried
):
    adapter, examples, _ = start()
    usual, metrics = gradients(adapter, SETTINGS, examples)
    adapter, examples, passes = start(most)
    trainer = Trainer(adapter, dataclasses.replace(SETTINGS, checkpointing=checkpointing))
    fewer = trainer.update(examples)
    assert [n for n, before in zip(passes, [0, *passes]) if n != before or n > most][: len(tried)] == tried
    assert fewer == pytest.approx(metrics, rel=1e-9)
    assert_same([p.grad for p in adapter.parameters()], usual, tolerance=1e-10)
    count = len(passes)
    trainer.update(examples)
    assert max(passes[count:]) <= most, "it is found out once"


def test_where_not_even_one_candidate_fits_the_error_comes_out(start):
    adapter, examples, passes = start(0)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        Trainer(adapter, SETTINGS).update(examples)
    assert passes == [4, 4, 2, 1]


def test_what_is_needed_is_the_sum_over_blocks_or_with_checkpointing_the_largest(toy):
    x, sigma = torch.ones(2, 2, 4, 4), torch.ones(2)
    tokens = 2 * 16 * 4 * 4  # bytes of a block's input, which counts as kept for the block and in it
    needs = []
    for depth in (1, 3):
        net, kept = network(toy, depth), []
        adapter = Adapter(net, rank=2, targets="all linear")
        weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            net(x, sigma)
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        truth = sum(size for place, size in sizes.items() if place not in weights)
        needs.append(need_of(adapter, lambda: net(x, sigma)))
        assert truth <= needs[-1].whole <= truth + depth * tokens
    one, three = needs
    assert one.checkpointed == one.whole, "of one block all is the largest"
    assert three.checkpointed == one.checkpointed + 2 * tokens and three.whole > 2 * one.whole


A, B, C = (torch.nn.Identity() for _ in range(3))


@pytest.mark.parametrize(
    "free, last",
    [
        (0, [C]),  # 30 bytes are kept at a time anyhow
        (10 + 49, [C]),
        (10 + 50, [C, B]),
        (10 + 70, [C, B, A]),
    ],
)
def test_the_last_blocks_are_not_gone_through_again_where_there_is_room(free, last):
    need = Need(10, [(A, 20), (B, 30), (C, 20)])
    assert (need.whole, need.checkpointed, need.last(free)) == (80, 40, last)
    assert Need(10, [*need.calls, (C, 20)]).last(free) == [], "what a first call kept is there until the end"


@pytest.mark.parametrize("blocks_left", [1, 2, 3])
def test_what_is_not_gone_through_again_fits_and_changes_no_bit(start, blocks_left):
    adapter, examples, _ = start(depth=4)
    usual, _ = gradients(adapter, SETTINGS, examples)
    x, sigma = examples[0].candidates.looked_at()
    need = need_of(adapter, lambda: examples[0].denoise(x, sigma.to(x).expand(1)))
    each = need.calls[-1][1]
    free = SPARE * 4 * (need.always + blocks_left * each + 1)
    adapter, examples, _ = start(depth=4)
    forwards = []
    for number, block in enumerate(adapter.root.transformer_blocks):
        block.ff.register_forward_hook(
            lambda *_, n=number: forwards.append(n) if torch.is_grad_enabled() else None
        )
    partly, _ = gradients(adapter, SETTINGS, examples, room=lambda *_: int(free) + 8)
    forwards = forwards[4:]  # the first pass is to find out
    left = len(adapter.root.transformer_blocks) - blocks_left
    assert all(map(torch.equal, usual, partly))
    again = [forwards.count(n) for n in range(4)]
    assert again[left:] == [again[-1]] * blocks_left and again[:left] == [2 * again[-1]] * left


@pytest.mark.parametrize("checkpointing", ["automatic", "on", "off"])
@pytest.mark.parametrize("share", [5.0, 0.3])
def test_passes_are_made_to_fit_into_what_is_free(start, checkpointing, share):
    adapter, examples, passes = start(depth=4)
    x, sigma = examples[0].candidates.looked_at()
    need = need_of(adapter, lambda: examples[0].denoise(x, sigma.to(x).expand(1)))
    passes.clear()
    asked, free = [], int(share * SPARE * 4 * need.whole)

    def room(size, least):
        asked.append((size, least))
        return free

    trainer = Trainer(adapter, dataclasses.replace(SETTINGS, checkpointing=checkpointing), room=room)
    trainer.update(examples)
    least = need.whole if checkpointing == "off" else need.checkpointed
    assert asked == [(int(SPARE * 4 * need.whole), int(SPARE * least))] and passes[0] == 1
    used = checkpointing == "on" or checkpointing == "automatic" and share < 1
    assert trainer.passes.checkpointed == used
    fitting = free // int(SPARE * (need.checkpointed if used else need.whole))
    assert max(passes) == min(4, max(1, fitting))


def test_looking_ahead_draws_nothing_and_too_little_memory_for_it_is_no_error(start):
    adapter, examples, _ = start(dropout=0.5)
    usual, _ = gradients(adapter, SETTINGS, examples)
    adapter, examples, _ = start(dropout=0.5)
    seen, _ = gradients(adapter, SETTINGS, examples, room=lambda *_: ALL)
    assert all(map(torch.equal, usual, seen))
    adapter, examples, passes = start(most=1)
    left = [1]
    deny = lambda x, sigma: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("as a test"))
    scarce = examples[0].denoise
    once = lambda x, sigma: (
        deny(x, sigma) if torch.is_grad_enabled() and left and left.pop() else scarce(x, sigma)
    )
    asked = []
    trainer = Trainer(adapter, SETTINGS, room=lambda size, least: asked.append(size) or 0)
    trainer.update([Example(example.preferences, once) for example in examples])
    assert asked == [ALL] and set(passes) == {1} and trainer.passes.checkpointed
