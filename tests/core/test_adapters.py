"""Every kind of adapter: what it computes, what its file says, training and going on with it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from d3po_core.training.adapter import ADAPTERS, Adapter
from d3po_core.training.loop import Settings, Trainer
from d3po_core.training.lora_files import load_lora, save_lora, to_state_dict

WIDEST = "all linear and convolutions"
RANK, ALPHA = 2, 3.0


def network(dtype=torch.float64):
    """A strided and a 1x1 convolution, and linear layers. All but the last are wide enough for LoKr to take
    factors of low rank."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(3, 20, 3, stride=2, padding=1), nn.Conv2d(20, 36, 1, bias=False), nn.Flatten(2),
            nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 4, bias=False), nn.Linear(4, 4))  # fmt: skip
    return net.to(dtype).requires_grad_(False)


def stirred(net, kind, size=0.3):
    """An adapter all of whose parameters have moved from where they begin."""
    adapter = Adapter(net, rank=RANK, alpha=ALPHA, targets=WIDEST, adapter=kind)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return adapter


@pytest.fixture(params=ADAPTERS)
def kind(request):
    return request.param


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def low_rank(up, down, shape):
    return (up.flatten(1) @ down.flatten(1)).reshape(shape)


def kron(a, b):
    """[p, q] and [r, s, ...] -> [pr, qs, ...], by its definition."""
    product = torch.einsum("pq,rs...->prqs...", a, b)
    return product.flatten(2, 3).flatten(0, 1)


def paper(weight, part, scale, kind):
    """The adapted weight by the papers' formulas. part(name) is the layer's tensor of that name, or None."""
    if kind in ("LoRA", "rsLoRA"):
        return weight + scale * low_rank(part("lora_up.weight"), part("lora_down.weight"), weight.shape)
    if kind == "DoRA":
        direction = weight + scale * low_rank(part("lora_up.weight"), part("lora_down.weight"), weight.shape)
        length = direction.square().flatten(1).sum(1).sqrt()
        return (part("dora_scale").flatten() / length).view(-1, *[1] * (weight.ndim - 1)) * direction
    if kind == "LoHa":
        one, other = (part(f"hada_w{i}_a") @ part(f"hada_w{i}_b") for i in (1, 2))
        return weight + scale * (one * other).view_as(weight)
    if part("lokr_w2") is not None:  # no factor of low rank, no scale
        return weight + kron(part("lokr_w1"), part("lokr_w2"))
    right = part("lokr_w2_a") @ part("lokr_w2_b")
    right = right.view(len(right), -1, *weight.shape[2:])
    return weight + scale * kron(part("lokr_w1"), right)


def host(weight, part):
    """The weight that the host merges a file's layer into (comfy/weight_adapter, 0.30)."""
    alpha = part("alpha")
    if part("hada_w1_a") is not None:
        one, other = (part(f"hada_w{i}_a") @ part(f"hada_w{i}_b") for i in (1, 2))
        return weight + alpha / len(part("hada_w1_b")) * (one * other).reshape(weight.shape)
    if part("lokr_w1") is not None:
        right = part("lokr_w2")
        scale = 1.0
        if right is None:
            right, scale = part("lokr_w2_a") @ part("lokr_w2_b"), alpha / len(part("lokr_w2_b"))
        left = part("lokr_w1")
        left = left[..., None, None] if right.ndim == 4 else left
        return weight + scale * torch.kron(left, right).reshape(weight.shape)
    down = part("lora_down.weight")
    merged = weight + alpha / len(down) * low_rank(part("lora_up.weight"), down, weight.shape)
    if part("dora_scale") is None:
        return merged
    assert part("dora_scale").shape == (
        len(weight),
        *[1] * (weight.ndim - 1),
    )  # or the host takes it for the inputs'
    norm = weight.flatten(1).norm(dim=1).view(part("dora_scale").shape)
    return merged * part("dora_scale") / norm


def replaced(net, new_weight):
    """The network with other weights: new_weight(path, weight) of every layer that has one."""
    for path, layer in net.named_modules():
        if hasattr(layer, "weight"):
            layer.weight.data = new_weight(path, layer.weight)
    return net


def test_an_adapter_computes_what_its_paper_says(kind, x):
    net = network()
    weights = stirred(net, kind).weights()
    scale = ALPHA / (RANK**0.5 if kind == "rsLoRA" else RANK)
    by_hand = replaced(
        network(), lambda path, weight: paper(weight, lambda name: weights.get(f"{path}.{name}"), scale, kind)
    )
    torch.testing.assert_close(net(x), by_hand(x), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(net(x), network()(x), rtol=1e-2)


def test_the_host_merges_a_file_to_what_the_adapter_computes(kind, x, tmp_path):
    net = network()
    save_lora(
        to_state_dict(stirred(net, kind).weights(), ALPHA, adapter=kind), tmp_path / "file.safetensors", {}
    )
    file, _ = load_lora(tmp_path / "file.safetensors")
    used = set()

    def part(path):
        return lambda name: used.add(name) or file.get(f"diffusion_model.{path}.{name}")

    merged = replaced(network(), lambda path, weight: host(weight, part(path)))
    rounding = (
        1e-6 if kind == "rsLoRA" else 1e-10
    )  # its alpha, with a square root in it, is float32 in a file
    torch.testing.assert_close(net(x), merged(x), rtol=rounding, atol=rounding)
    assert {name.split(".", 2)[2] for name in file} <= used


@pytest.mark.parametrize(
    "kind, parts",
    [
        ("LoRA", {"lora_down.weight", "lora_up.weight"}),
        ("rsLoRA", {"lora_down.weight", "lora_up.weight"}),
        ("DoRA", {"lora_down.weight", "lora_up.weight", "dora_scale"}),
        ("LoHa", {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
        ("LoKr", {"lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}),
    ],
)
def test_layers_can_be_renamed_in_a_file_of_any_kind(kind, parts):
    weights = stirred(network(), kind).weights()
    ours = to_state_dict(weights, ALPHA, adapter=kind)
    renamed = to_state_dict(weights, ALPHA, lambda path: f"lora_unet_{path}_x", kind)
    assert {name.split(".", 2)[2] for name in ours} == parts | {"alpha"}
    for name, tensor in ours.items():
        _, path, part = name.split(".", 2)
        assert torch.equal(renamed.pop(f"lora_unet_{path}_x.{part}"), tensor)
    assert not renamed


def test_gradients_equal_central_finite_differences(kind, x):
    """But DoRA's of A and B: it takes the norm it divides by for a constant (section 4.3)."""
    net = network()
    adapter = stirred(net, kind)
    target = torch.randn(net(x).shape, generator=torch.Generator().manual_seed(9), dtype=x.dtype)

    def loss():
        return (net(x) * target).sum()

    loss().backward()
    for name, parameter in adapter.named_parameters():
        if kind == "DoRA" and "lora_" in name:
            continue
        way = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        with torch.no_grad():
            parameter += 1e-5 * way
            ahead = loss()
            parameter -= 2e-5 * way
            behind = loss()
            parameter += 1e-5 * way
        expected = (ahead - behind) / 2e-5
        torch.testing.assert_close((parameter.grad * way).sum(), expected, rtol=1e-6, atol=1e-8, msg=name)


def test_every_parameter_learns(kind, x):
    """Also of those that have no gradient at the very first, as what they are multiplied by is 0."""
    adapter = Adapter(net := network(), rank=RANK, targets=WIDEST, adapter=kind)
    before = adapter.weights()
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
    moved = {name: not torch.equal(tensor, before[name]) for name, tensor in adapter.weights().items()}
    assert all(moved.values()), moved


def test_a_run_goes_on_to_the_bit(toy, setup, kind, tmp_path):
    settings = Settings(
        beta=20.0, clip=0.0, weighting="standardised", learning_rate=3e-3, reference="round start", seed=5
    )

    def start(**options):
        denoise, adapter = setup(adapter=kind, **options)
        with adapter.off():
            examples = toy.examples(denoise, (((0, 1),), ((1, 0), (2, 0))), policy="elsewhere")
        return Trainer(adapter, settings), examples

    through, examples = start()
    through.fit(examples)
    save_file(through.state()[0], tmp_path / "state.safetensors")
    history = through.fit(examples)
    again, examples = start(seed=99)
    again.load_state(load_file(tmp_path / "state.safetensors"), 2)
    assert again.fit(examples) == history
    one, other = through.state()[0], again.state()[0]
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_weights_of_another_kind_are_refused(setup):
    for kind in ADAPTERS[2:]:
        _, adapter = setup(adapter=kind)
        with pytest.raises(ValueError, match=f"{kind} of rank 2"):
            adapter.load(setup()[1].weights())


# --- starting from a LoRA file ---


def lora_of(net, rank, alpha, paths, dtype=torch.float32, seed=11):
    """Another LoRA for layers of `net`: path -> (up, down, alpha)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (0.3 * torch.randn(shape, generator=generator)).to(dtype)

    layers = {path: net.get_submodule(path).weight for path in paths}
    return {
        path: (draw(len(w), rank, *[1] * (w.ndim - 2)), draw(rank, *w.shape[1:]), alpha)
        for path, w in layers.items()
    }


def with_lora(net, initial):
    def merged(path, weight):
        if path not in initial:
            return weight
        up, down, alpha = initial[path]
        return weight + (1.0 if alpha is None else alpha / len(down)) * low_rank(
            up.to(weight), down.to(weight), weight.shape
        )

    return replaced(net, merged)


@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA"])
@pytest.mark.parametrize("alpha", [1.0, 4.0, None])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("paths", [("0", "1", "3", "5", "6"), ("3",)])
def test_an_adapter_begins_from_a_lora_and_what_is_left_of_its_rank_can_learn(x, kind, alpha, rank, paths):
    net = network()
    fresh = Adapter(network(), rank=3, alpha=ALPHA, targets=WIDEST, seed=4, adapter=kind).weights()
    adapter = Adapter(net, rank=3, alpha=ALPHA, targets=WIDEST, seed=4, adapter=kind)
    initial = lora_of(network(), rank, alpha, paths)
    adapter.begin_from(initial)
    torch.testing.assert_close(net(x), with_lora(network(), initial)(x), rtol=1e-10, atol=1e-12)
    weights = adapter.weights()
    for path in adapter.layers:
        used = rank if path in paths else 0
        down, up = (weights[f"{path}.lora_{part}.weight"] for part in ("down", "up"))
        assert torch.equal(down[used:], fresh[f"{path}.lora_down.weight"][used:]) and down[used:].any()
        assert not up[:, used:].any()
    net(x).square().sum().backward()
    assert all(layer.lora_B["d3po"].weight.grad[:, 2].any() for layer in adapter.layers.values())


def test_a_lora_in_half_precision_is_taken_up_in_full(x):
    net = network(torch.float32)
    initial = lora_of(net, 2, 1.5, ("0", "3"), torch.float16)
    Adapter(net, rank=2, alpha=1.0, targets=WIDEST).begin_from(initial)
    expected = with_lora(network(torch.float32), initial)
    torch.testing.assert_close(net(x.float()), expected(x.float()), rtol=1e-5, atol=1e-6)


def test_a_1x1_convolution_and_a_linear_layer_may_have_each_others_shapes_in_a_file(x):
    net = network()
    initial = lora_of(network(), 2, 1.0, ("1", "3"))
    expected = with_lora(network(), initial)
    (up, down, alpha), (up2, down2, _) = initial.values()
    Adapter(net, rank=2, targets=WIDEST).begin_from(
        {
            "1": (up.flatten(1), down.flatten(1), alpha),
            "3": (up2[..., None, None], down2[..., None, None], alpha),
        }
    )
    torch.testing.assert_close(net(x), expected(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"rank": 4}, "rank: .*has rank 5, and this one 4. Set rank to 5 or more"),
        ({"targets": "all linear"}, "targets: .*outside of 'all linear', such as 0. Choose wider"),
        ({"adapter": "DoRA"}, "adapter: .*does not go into DoRA. Choose LoRA or rsLoRA"),
        ({"adapter": "LoHa"}, "adapter: .*does not go into LoHa. Choose LoRA or rsLoRA"),
    ],
)
def test_a_lora_that_does_not_go_into_the_adapter_is_refused_and_nothing_changes(options, told):
    net = network()
    initial = lora_of(net, 2, 1.0, ("3",)) | lora_of(net, 5, 1.0, ("0",))
    adapter = Adapter(net, **{"rank": 5, "targets": WIDEST} | options)
    before = adapter.weights()
    with pytest.raises(ValueError, match=told):
        adapter.begin_from(initial)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.weights().items())
