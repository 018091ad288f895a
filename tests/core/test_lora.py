import math

import pytest
import torch
from peft import inject_adapter_in_model
from torch import nn

from d3po_core.candidates import kernels
from d3po_core.training import losses
from d3po_core.training.adapter import ADAPTERS, TARGETS, Adapter, target_modules

WIDEST = "all linear and convolutions"


@pytest.fixture(params=ADAPTERS)
def kind(request):
    return request.param


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(3, 2, 4, 4, generator=generator).to(dtype), torch.tensor([9.0, 2.0, 0.5], dtype=dtype)


def anatomy(net):
    """What must be as before: the tree, whose modules they are, attributes, weights and what trains."""
    return (
        [(path, id(module), type(module), module.training) for path, module in net.named_modules()],
        [set(vars(module)) for module in net.modules()],
        [(name, id(p), p.requires_grad, p.clone().tolist()) for name, p in net.named_parameters()],
        list(net.state_dict()),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("targets", TARGETS)
def test_at_first_the_network_computes_what_it_did_to_the_bit(toy, kind, targets, dtype):
    net = toy.net(dtype=dtype)
    x, sigma = inputs(dtype)
    before = net(x, sigma)
    adapter = Adapter(net, rank=2, alpha=3.0, targets=targets, adapter=kind)
    assert torch.equal(net(x, sigma), before)
    assert {p.dtype for p in adapter.parameters()} == {
        torch.float64 if dtype == torch.float64 else torch.float32
    }


def test_at_first_the_log_ratio_is_exactly_zero_and_the_loss_ln_2(toy, setup, kind):
    denoise, adapter = setup(adapter=kind)
    trajectory = toy.record(denoise)
    for i in trajectory.actions:
        step = trajectory.sigmas[i], trajectory.sigmas[i + 1]
        x, sigma = trajectory.states[i], step[0].expand(trajectory.count)
        mean = trajectory.kernel.mean(x, denoise(x, sigma), *step)
        with adapter.off():
            ref_mean = trajectory.kernel.mean(x, denoise(x, sigma), *step)
        ratio = kernels.log_ratio(trajectory.states[i + 1], mean, ref_mean, trajectory.kernel.std(*step))
        assert (ratio == 0).all()
        assert losses.d3po(ratio[:1], ratio[1:2]).item() == pytest.approx(math.log(2), abs=1e-7)


@pytest.mark.parametrize("targets", TARGETS)
def test_eject_restores_the_network_to_the_bit_also_after_training(toy, kind, targets):
    net = toy.net()
    net.conv_in.weight.requires_grad_(True)
    x, sigma = inputs()
    before, output = anatomy(net), net(x, sigma).detach()
    adapter = Adapter(net, rank=2, targets=targets, adapter=kind)
    assert anatomy(net)[0] != before[0]
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    toy.stir(adapter)
    net(x, sigma).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net(x, sigma), output)
    adapter.eject()
    assert anatomy(net) == before
    assert torch.equal(net(x, sigma), output)


def test_an_ejected_network_takes_another_adapter(toy, setup, kind):
    denoise, adapter = setup(adapter=kind)
    adapter.eject()
    again = Adapter(denoise.net, rank=2, alpha=3.0, targets=WIDEST, adapter=kind)
    assert all(
        torch.equal(a, b) for a, b in zip(adapter.weights().values(), again.weights().values(), strict=True)
    )


@pytest.mark.parametrize("kind, parts", [("LoRA", 2), ("rsLoRA", 2), ("DoRA", 3), ("LoHa", 4), ("LoKr", 2)])
def test_only_the_adapter_trains(setup, kind, parts):
    denoise, adapter = setup(adapter=kind)
    trained = {id(p) for p in denoise.net.parameters() if p.requires_grad}
    assert trained == {id(p) for p in adapter.parameters()} and len(trained) == parts * len(adapter.layers)


def test_off_is_the_base_and_ends_also_on_an_exception(toy, setup, kind):
    denoise, adapter = setup(adapter=kind)
    base = denoise.net(*inputs())
    toy.stir(adapter)
    tuned = denoise.net(*inputs())
    with adapter.off():
        assert torch.equal(denoise.net(*inputs()), base)
    with pytest.raises(KeyboardInterrupt), adapter.off():
        raise KeyboardInterrupt
    assert torch.equal(denoise.net(*inputs()), tuned) and not torch.equal(tuned, base)
    assert all(p.requires_grad for p in adapter.parameters())


def held(toy, adapter, **weights):
    """Hold weights beside the trained ones by name, each stirred by a seed."""
    mine = adapter.weights()
    for name, seed in weights.items():
        toy.stir(adapter, seed=seed)
        adapter.hold(name, adapter.weights())
        adapter.load(mine)


def versions(net):
    """What tells of each parameter whether it was written or replaced."""
    return [(name, id(p), p.data_ptr(), p._version) for name, p in net.named_parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_held_weights_act_as_they_do_where_they_are_the_trained_ones(toy, kind, dtype):
    net, x = toy.net(dtype=dtype), inputs(dtype)
    adapter = Adapter(net, rank=2, alpha=3.0, targets=WIDEST, adapter=kind)
    outputs = {}
    for seed in (1, 2, 3):
        toy.stir(adapter, seed=seed)
        outputs[seed] = net(*x)
        if seed < 3:
            adapter.hold(f"seed {seed}", adapter.weights())
    for seed in (2, 1, 2):
        with adapter.acting(f"seed {seed}"):
            assert torch.equal(net(*x), outputs[seed])
        assert torch.equal(net(*x), outputs[3])
    assert len({float(output.double().sum()) for output in outputs.values()}) == 3


def test_held_weights_end_also_on_an_exception(toy, setup, kind):
    denoise, adapter = setup(adapter=kind)
    toy.stir(adapter)
    held(toy, adapter, other=2)
    now = denoise.net(*inputs())
    with pytest.raises(KeyboardInterrupt), adapter.acting("other"):
        assert not torch.equal(denoise.net(*inputs()), now)
        raise KeyboardInterrupt
    assert torch.equal(denoise.net(*inputs()), now)
    assert {id(p) for p in denoise.net.parameters() if p.requires_grad} == {
        id(p) for p in adapter.parameters()
    }


def test_nothing_is_written_where_held_weights_act(toy, setup, kind):
    denoise, adapter = setup(adapter=kind)
    toy.stir(adapter)
    held(toy, adapter, other=2)
    before = versions(denoise.net)
    with adapter.acting("other"), torch.no_grad():
        denoise.net(*inputs())
        assert versions(denoise.net) == before
    assert versions(denoise.net) == before
    adapter.load(adapter.weights())
    assert versions(denoise.net) != before, "this sees what is written"


def test_held_weights_are_copies_and_may_be_replaced(toy, setup, kind):
    denoise, adapter = setup(adapter=kind)
    toy.stir(adapter, seed=1)
    first, given = denoise.net(*inputs()), adapter.weights()
    adapter.hold("other", given)
    toy.stir(adapter, seed=2)
    second = denoise.net(*inputs())
    for tensor in given.values():
        tensor.zero_()
    with adapter.acting("other"):
        assert torch.equal(denoise.net(*inputs()), first)
    adapter.hold("other", adapter.weights())
    with adapter.acting("other"):
        assert torch.equal(denoise.net(*inputs()), second)
    mine, others = adapter.weights(), adapter.weights("other")
    assert mine.keys() == others.keys() and all(torch.equal(mine[part], others[part]) for part in mine)


def test_weights_for_other_layers_are_not_held(toy, setup, kind):
    _, adapter = setup(adapter=kind)
    other = Adapter(toy.net(), rank=2, targets="attention", adapter=kind).weights()
    with pytest.raises(ValueError, match="other targets"):
        adapter.hold("other", other)


def test_eject_restores_the_network_also_where_weights_are_held(toy, kind):
    net = toy.net()
    net.conv_in.weight.requires_grad_(True)
    before = anatomy(net)
    adapter = Adapter(net, rank=2, targets=WIDEST, adapter=kind)
    held(toy, adapter, one=1, two=2)
    with pytest.raises(MemoryError), adapter.acting("two"):
        raise MemoryError
    adapter.eject()
    assert anatomy(net) == before


def test_weights_that_cannot_be_held_leave_the_adapter_and_the_network_as_they_were(toy, kind, monkeypatch):
    net = toy.net()
    before = anatomy(net)
    adapter = Adapter(net, rank=2, targets=WIDEST, adapter=kind)
    toy.stir(adapter)
    now = net(*inputs())

    def out_of_memory(config, model, **names):
        inject_adapter_in_model(config, model, **names)
        raise MemoryError

    with monkeypatch.context() as short, pytest.raises(MemoryError):
        short.setattr("peft.inject_adapter_in_model", out_of_memory)
        adapter.hold("other", adapter.weights())
    assert torch.equal(net(*inputs()), now)
    adapter.hold("other", adapter.weights())
    adapter.eject()
    assert anatomy(net) == before


@pytest.mark.filterwarnings("error")
def test_holding_weights_warns_of_nothing_and_leaves_the_global_random_numbers_alone(toy, setup, kind):
    _, adapter = setup(adapter=kind)
    before = torch.random.get_rng_state()
    adapter.hold("other", adapter.weights())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA", "DoRA"])
def test_dropout_is_there_in_training_alone(toy, setup, kind):
    denoise, adapter = setup(adapter=kind, dropout=0.5)
    toy.stir(adapter)
    without = setup(adapter=kind)
    without[1].load(adapter.weights())
    adapter.hold("other", adapter.weights())
    assert not torch.equal(denoise.net(*inputs()), denoise.net(*inputs()))
    with adapter.acting("other"):
        assert torch.equal(denoise.net(*inputs()), without[0].net(*inputs()))
    assert not torch.equal(denoise.net(*inputs()), denoise.net(*inputs()))
    with adapter.off():
        assert torch.equal(denoise.net(*inputs()), toy.net()(*inputs()))


def test_after_an_inner_acting_the_outer_one_goes_on(toy, setup, kind):
    denoise, adapter = setup(adapter=kind)
    held(toy, adapter, one=1, two=2)
    base = toy.net()(*inputs())
    with adapter.acting("one"):
        outer = denoise.net(*inputs())
        with adapter.acting("two"):
            assert not torch.equal(denoise.net(*inputs()), outer)
        with adapter.off():
            assert torch.equal(denoise.net(*inputs()), base)
        assert torch.equal(denoise.net(*inputs()), outer)
    assert torch.equal(denoise.net(*inputs()), base)


def test_the_end_of_an_inner_off_leaves_the_adapter_off(toy, setup, kind):
    denoise, adapter = setup(adapter=kind)
    base = denoise.net(*inputs())
    toy.stir(adapter)
    with adapter.off():
        with adapter.off():
            assert torch.equal(denoise.net(*inputs()), base)
        assert torch.equal(denoise.net(*inputs()), base)
    assert not torch.equal(denoise.net(*inputs()), base)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_adapters_without_dropout_refuse_it(toy, kind):
    net = toy.net()
    before = anatomy(net)
    with pytest.raises(ValueError, match=f"dropout: {kind} has none. Set it to 0"):
        Adapter(net, dropout=0.1, adapter=kind)
    assert anatomy(net) == before


def test_weights_are_copies(toy, setup, kind):
    _, adapter = setup(adapter=kind)
    before = adapter.weights()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    toy.stir(adapter)
    assert all(torch.equal(before[name], kept[name]) for name in kept)


ATTENTION = {f"transformer_blocks.0.attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
FEED_FORWARD = {"transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2"}


@pytest.mark.parametrize(
    "targets, paths",
    [
        ("attention", ATTENTION),
        ("attention and feed-forward", ATTENTION | FEED_FORWARD),
        ("all linear", ATTENTION | FEED_FORWARD | {"time_embed"}),
        (WIDEST, ATTENTION | FEED_FORWARD | {"time_embed", "conv_in", "conv_out"}),
    ],
)
def test_plain_names_choose_layers(toy, targets, paths):
    net = toy.net()
    assert set(target_modules(net, targets)) == paths
    assert set(Adapter(net, targets=targets).layers) == paths


def test_only_the_chosen_layers_are_adapted_where_other_paths_end_alike():
    net = nn.ModuleDict({"proj": nn.Linear(4, 4), "block": nn.ModuleDict({"proj": nn.Conv2d(4, 4, 1)})})
    assert target_modules(net, "all linear") == ["proj"]
    assert set(Adapter(net, targets="all linear").layers) == {"proj"}


def test_every_chosen_layer_of_a_large_network_is_adapted():
    net = nn.ModuleDict(
        {f"block{i}": nn.ModuleDict({"attn": nn.Linear(4, 4), "skip": nn.Linear(4, 4)}) for i in range(40)}
    )
    assert set(Adapter(net).layers) == {f"block{i}.attn" for i in range(40)}


def test_targets_without_a_match_are_an_error_that_says_what_to_do():
    net = nn.ModuleDict({"conv": nn.Conv2d(2, 2, 1)})
    with pytest.raises(ValueError, match="no layers that 'all linear' stands for: choose wider"):
        Adapter(net, targets="all linear")
    assert type(net["conv"]) is nn.Conv2d and not hasattr(net, "peft_config")


def test_an_unknown_kind_is_an_error_that_lists_them(toy):
    with pytest.raises(ValueError, match="adapter is 'OFT'.*LoRA, rsLoRA, DoRA, LoHa, LoKr"):
        Adapter(toy.net(), adapter="OFT")


def test_an_unknown_name_of_targets_is_an_error_that_lists_them(toy):
    with pytest.raises(ValueError, match="targets is 'everything'.*attention and feed-forward"):
        Adapter(toy.net(), targets="everything")


def test_the_seed_alone_decides_the_first_weights(toy, kind):
    def first(seed, noise):
        torch.manual_seed(noise)
        adapter = Adapter(toy.net(), rank=2, seed=seed, adapter=kind)
        return torch.cat([p.detach().flatten() for p in adapter.parameters()])

    assert torch.equal(first(3, noise=1), first(3, noise=2))
    assert not torch.equal(first(3, noise=1), first(4, noise=1))
    assert first(2**64 - 1, noise=1).isfinite().all()


def test_injecting_leaves_the_global_random_numbers_alone(toy, kind):
    net = toy.net()
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    Adapter(net, seed=5, adapter=kind).eject()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_injection_that_fails_half_way_leaves_the_network_as_it_was(toy, kind, monkeypatch):
    net = toy.net()
    before = anatomy(net)

    def out_of_memory(config, model, **names):
        inject_adapter_in_model(config, model, **names)
        raise MemoryError

    monkeypatch.setattr("peft.inject_adapter_in_model", out_of_memory)
    with pytest.raises(MemoryError):
        Adapter(net, rank=2, adapter=kind)
    assert anatomy(net) == before


@pytest.mark.parametrize(
    "spoil, options, told",
    [
        (lambda w: w.data[1].zero_(), {}, "adapter: DoRA scales every row.*some rows of this model are zero"),
        (
            lambda w: setattr(w, "data", w.data.to(torch.float8_e4m3fn)),
            {},
            "adapter: DoRA needs .*quantised.*Choose LoRA",
        ),
        (lambda w: None, {"device": "meta"}, "adapter: DoRA needs .*do not all fit on the GPU"),
        (
            lambda w: setattr(w, "data", w.data.half()),
            {"dropout": 0.1, "targets": WIDEST},
            "dropout: DoRA has none on conv",
        ),
    ],
)
def test_where_dora_cannot_be_it_says_so_and_leaves_the_network_as_it_was(toy, spoil, options, told):
    net = toy.net()
    spoil(net.conv_in.weight if "targets" in options else net.transformer_blocks[0].attn1.to_q.weight)
    before = [(path, id(module), type(module)) for path, module in net.named_modules()], set(vars(net))
    with pytest.raises(ValueError, match=told):
        Adapter(net, adapter="DoRA", **options)
    assert (
        [(path, id(module), type(module)) for path, module in net.named_modules()],
        set(vars(net)),
    ) == before
