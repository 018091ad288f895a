import math
import sys
from copy import deepcopy
from itertools import permutations

import pytest
import torch
from safetensors.torch import load_file, save_file

from d3po_core.training.optimizers import (
    OPTIMIZERS,
    Ema,
    learning_rate_factor,
    load_state_tensors,
    make_optimizer,
    state_tensors,
    trained_weights,
)

PACKAGES = {"AdamW 8-bit": "bitsandbytes", "AdamW schedule-free": "schedulefree"}


def optimizer_of(name, parameters, learning_rate=1e-2, weight_decay=0.1):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    return make_optimizer(name, parameters, learning_rate, weight_decay)


def make_lora(seed=0, dtype=torch.float32):
    """A and B of two layers. bitsandbytes keeps the averages of the first in 8 bits, not of the small one."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "big.lora_down.weight": (8, 640),
        "big.lora_up.weight": (640, 8),
        "small.lora_down.weight": (2, 6),
        "small.lora_up.weight": (6, 2),
    }
    return {
        name: torch.nn.Parameter(
            torch.zeros(shape, dtype=dtype)
            if "up" in name
            else torch.randn(shape, generator=generator, dtype=dtype) / 8
        )
        for name, shape in shapes.items()
    }


def gradients(step, lora):
    generator = torch.Generator().manual_seed(1000 + step)
    return {name: torch.randn(p.shape, generator=generator).to(p) + p.detach() for name, p in lora.items()}


def train(optimizer, lora, steps):
    for step in steps:
        for name, gradient in gradients(step, lora).items():
            lora[name].grad = gradient
        optimizer.step()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def weights_of(lora):
    return {name: parameter.detach().clone() for name, parameter in lora.items()}


# --- the optimizers ---


def test_adamw_is_the_papers_step(weight_decay=0.1, learning_rate=1e-2):
    lora = make_lora(dtype=torch.float64)
    expected = weights_of(lora)
    optimizer = optimizer_of("AdamW", list(lora.values()), learning_rate, weight_decay)
    m, v = ({name: torch.zeros_like(p) for name, p in lora.items()} for _ in range(2))
    for step in range(1, 8):
        given = gradients(step, lora)
        train(optimizer, lora, [step])
        for name, g in given.items():  # arXiv 1711.05101, algorithm 2
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            m_hat, v_hat = m[name] / (1 - 0.9**step), v[name] / (1 - 0.999**step)
            expected[name] = expected[name] - learning_rate * (
                m_hat / (v_hat.sqrt() + 1e-8) + weight_decay * expected[name]
            )
        for name, parameter in lora.items():
            assert torch.allclose(parameter.detach(), expected[name], rtol=0, atol=1e-12), name


def test_adamw_in_8_bits_stays_near_adamw():
    whole, small = make_lora(), make_lora()
    train(optimizer_of("AdamW", list(whole.values())), whole, range(20))
    optimizer = optimizer_of("AdamW 8-bit", list(small.values()))
    train(optimizer, small, range(20))
    first = make_lora()
    for name in whole:
        moved = (whole[name] - first[name]).norm()
        assert (whole[name] - small[name]).norm() < 0.1 * moved, name
    assert optimizer.state[small["big.lora_up.weight"]]["state1"].dtype == torch.uint8


def test_schedule_free_is_the_papers_step_and_its_average_is_what_was_learned(learning_rate=1e-2, decay=0.1):
    lora = make_lora(dtype=torch.float64)
    optimizer = optimizer_of("AdamW schedule-free", list(lora.values()), learning_rate, decay)
    x, z = weights_of(lora), weights_of(lora)
    v = {name: torch.zeros_like(p) for name, p in lora.items()}
    for step in range(1, 8):
        given = gradients(step, lora)
        y = {name: 0.9 * x[name] + 0.1 * z[name] for name in lora}
        for name, parameter in lora.items():
            assert torch.allclose(parameter.detach(), y[name], rtol=0, atol=1e-12), name
        train(optimizer, lora, [step])
        for name, g in given.items():  # arXiv 2405.15682, algorithm 1 with equal weights
            v[name] = 0.999 * v[name] + 0.001 * g**2
            z[name] = z[name] - learning_rate * (
                g / ((v[name] / (1 - 0.999**step)).sqrt() + 1e-8) + decay * y[name]
            )
            x[name] = (1 - 1 / step) * x[name] + z[name] / step
    before = weights_of(lora)
    learned = trained_weights(optimizer, lora.items())
    assert same(weights_of(lora), before) and not same(learned, before)
    for name in lora:
        assert torch.allclose(learned[name], x[name], rtol=0, atol=1e-12), name


def test_what_schedule_free_learned_is_what_its_package_says():
    lora = make_lora()
    optimizer = optimizer_of("AdamW schedule-free", list(lora.values()))
    train(optimizer, lora, range(5))
    learned = trained_weights(optimizer, lora.items())
    optimizer.eval()
    assert same(learned, weights_of(lora))


@pytest.mark.parametrize("name", ["AdamW", "AdamW 8-bit"])
def test_what_the_others_learned_are_the_parameters(name):
    lora = make_lora()
    optimizer = optimizer_of(name, list(lora.values()))
    train(optimizer, lora, range(3))
    learned = trained_weights(optimizer, lora.items())
    assert same(learned, weights_of(lora))
    learned["big.lora_up.weight"].zero_()
    assert lora["big.lora_up.weight"].any()


@pytest.mark.parametrize("name, package", PACKAGES.items())
def test_a_package_that_is_missing_is_named_with_what_to_do(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ValueError,
        match=f"optimizer: {name} needs the package {package}.* pip install {package}, or choose AdamW",
    ):
        make_optimizer(name, list(make_lora().values()), 1e-3, 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_needs_no_package_of_another(name, monkeypatch):
    for package in PACKAGES.values():
        if package != PACKAGES.get(name):
            monkeypatch.setitem(sys.modules, package, None)
    lora = make_lora()
    train(optimizer_of(name, list(lora.values())), lora, range(1))
    assert not same(weights_of(lora), weights_of(make_lora()))


def test_an_unknown_optimizer_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="'Prodigy', but must be one of: AdamW, AdamW 8-bit, AdamW schedule-free"
    ):
        make_optimizer("Prodigy", list(make_lora().values()), 1.0, 0.0)


# --- state ---


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("changing", [False, True])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(name, changing, tmp_path):
    def go_on(optimizer, lora, steps):
        for step in steps:
            if changing:
                for group in optimizer.param_groups:
                    group["lr"] = 1e-2 * learning_rate_factor("cosine", step, 4, step, 12)
            train(optimizer, lora, [step])

    whole = make_lora()
    uninterrupted = optimizer_of(name, list(whole.values()))
    go_on(uninterrupted, whole, range(12))

    first = make_lora()
    optimizer = optimizer_of(name, list(first.values()))
    go_on(optimizer, first, range(5))
    lora = {f"lora.{key}": value for key, value in trained_weights(optimizer, first.items()).items()}
    save_file(lora | state_tensors(optimizer, first.items()), tmp_path / "run.safetensors")

    tensors = load_file(tmp_path / "run.safetensors")
    second = {key: torch.nn.Parameter(tensors[f"lora.{key}"].clone()) for key in first}
    resumed = optimizer_of(name, list(second.values()))
    assert load_state_tensors(resumed, second.items(), tensors)
    assert same(weights_of(second), weights_of(first))
    go_on(resumed, second, range(5, 12))

    assert same(weights_of(second), weights_of(whole))
    assert same(trained_weights(resumed, second.items()), trained_weights(uninterrupted, whole.items()))
    assert same(state_tensors(resumed, second.items()), state_tensors(uninterrupted, whole.items()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_taking_up_a_state_does_not_share_memory_with_it(name):
    lora = make_lora()
    optimizer = optimizer_of(name, list(lora.values()))
    train(optimizer, lora, range(3))
    tensors = state_tensors(optimizer, lora.items())
    kept = deepcopy(tensors)
    train(optimizer, lora, range(3, 5))
    assert same(tensors, kept)
    load_state_tensors(optimizer, lora.items(), tensors)
    train(optimizer, lora, range(3, 5))
    assert same(tensors, kept)


def test_adamws_tensors_have_the_names_and_kinds_that_runs_on_disk_have():
    lora = make_lora()
    optimizer = optimizer_of("AdamW", list(lora.values()))
    assert state_tensors(optimizer, lora.items()) == {}
    train(optimizer, lora, range(2))
    tensors = state_tensors(optimizer, lora.items())
    assert set(tensors) == {
        f"optimizer.{name}.{part}" for name in lora for part in ("step", "exp_avg", "exp_avg_sq")
    }
    assert tensors["optimizer.small.lora_up.weight.step"].dtype == torch.float32
    assert torch.equal(
        tensors["optimizer.big.lora_up.weight.exp_avg"], optimizer.state_dict()["state"][1]["exp_avg"]
    )


def test_8_bit_averages_stay_in_8_bits():
    lora = make_lora()
    optimizer = optimizer_of("AdamW 8-bit", list(lora.values()))
    train(optimizer, lora, range(2))
    tensors = state_tensors(optimizer, lora.items())
    load_state_tensors(optimizer, lora.items(), tensors)
    kinds = {
        part: value.dtype
        for part, value in optimizer.state[lora["big.lora_up.weight"]].items()
        if part != "step"
    }
    assert kinds == {
        "state1": torch.uint8,
        "state2": torch.uint8,
        "qmap1": torch.float32,
        "qmap2": torch.float32,
        "absmax1": torch.float32,
        "absmax2": torch.float32,
    }
    assert optimizer.state[lora["small.lora_up.weight"]]["state1"].dtype == torch.float32
    step = optimizer.state[lora["big.lora_up.weight"]]["step"]
    assert step == 2 and type(step) is int  # its kernels take no tensor


@pytest.mark.parametrize("wrote, name", list(permutations(OPTIMIZERS, 2)))
def test_the_state_of_another_optimizer_starts_this_one_afresh(wrote, name):
    other = make_lora()
    writer = optimizer_of(wrote, list(other.values()))
    train(writer, other, range(3))
    tensors = state_tensors(writer, other.items())

    lora, fresh = make_lora(1), make_lora(1)
    used = optimizer_of(name, list(lora.values()))
    train(used, lora, range(3))
    with torch.no_grad():
        for key, parameter in lora.items():
            parameter.copy_(fresh[key])
    assert load_state_tensors(used, lora.items(), tensors) is False
    assert same(weights_of(lora), weights_of(fresh))
    train(used, lora, range(4))
    train(optimizer_of(name, list(fresh.values())), fresh, range(4))
    assert same(weights_of(lora), weights_of(fresh))


def test_a_state_before_the_first_step_says_that_there_is_nothing():
    for name in OPTIMIZERS:
        lora = make_lora()
        optimizer = optimizer_of(name, list(lora.values()))
        assert load_state_tensors(optimizer, lora.items(), state_tensors(optimizer, lora.items())) is False


# --- the average ---


def numbers(count, seed=0):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999])
def test_the_average_is_the_sum_of_all_weights_by_the_decays_since(decay):
    given, ema = numbers(40), Ema(decay)
    for weight in given:
        ema.update([("a", weight)])
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(40)]
    shares = [(1.0 if n == 0 else 1 - decays[n]) * math.prod(decays[n + 1 :]) for n in range(40)]
    assert sum(shares) == pytest.approx(1.0)
    expected = sum(share * weight for share, weight in zip(shares, given))
    assert torch.allclose(ema.weights()["a"], expected, rtol=0, atol=1e-12)


def test_past_its_start_the_average_is_torchs():
    given, ema = numbers(60), Ema(0.5)
    theirs = torch.optim.swa_utils.get_ema_avg_fn(0.5)
    for n, weight in enumerate(given):
        before = ema.weights().get("a")
        ema.update([("a", weight)])
        if n >= 8:  # (1 + 8) / (10 + 8) = 0.5
            assert torch.allclose(ema.weights()["a"], theirs(before, weight, None), rtol=0, atol=1e-12)


def test_one_update_is_the_weights_themselves_and_none_is_nothing():
    ema, lora = Ema(0.999), make_lora()
    assert ema.weights() == {}
    ema.update(lora.items())
    assert same(ema.weights(), weights_of(lora)) and not any(w.requires_grad for w in ema.weights().values())


def test_an_average_leaves_the_weights_alone_and_gives_copies():
    ema, lora = Ema(0.9), make_lora()
    before = weights_of(lora)
    ema.update(lora.items())
    ema.weights()["big.lora_down.weight"].zero_()
    with torch.no_grad():
        lora["big.lora_down.weight"].add_(1.0)
    assert torch.equal(ema.weights()["big.lora_down.weight"], before["big.lora_down.weight"])


@pytest.mark.parametrize("name", ["AdamW", "AdamW schedule-free"])
def test_the_average_is_taken_where_the_weights_are(name):
    lora = {
        key: torch.nn.Parameter(parameter.to("meta")) for key, parameter in make_lora().items()
    }  # copies nothing to the CPU
    optimizer, ema = optimizer_of(name, list(lora.values())), Ema(0.9)
    for parameter in lora.values():
        parameter.grad = torch.zeros_like(parameter)
    if name == "AdamW":
        optimizer.step()
    for _ in range(3):
        learned = trained_weights(optimizer, lora.items())
        assert {tensor.device.type for tensor in learned.values()} == {"meta"}
        ema.update(learned.items())


def test_a_resumed_average_equals_the_uninterrupted_one_to_the_bit(tmp_path):
    given, whole, first = numbers(20).float(), Ema(0.9), Ema(0.9)
    for weight in given:
        whole.update([("layer.lora_up.weight", weight)])
    for weight in given[:7]:
        first.update([("layer.lora_up.weight", weight)])
    save_file(
        {"lora.layer.lora_up.weight": given[6].clone()} | first.state_tensors(), tmp_path / "run.safetensors"
    )
    second = Ema(0.9)
    second.load_state_tensors(load_file(tmp_path / "run.safetensors"))
    for weight in given[7:]:
        second.update([("layer.lora_up.weight", weight)])
    assert same(second.weights(), whole.weights())
    assert set(second.state_tensors()) == {"ema.layer.lora_up.weight", "ema updates"}
    second.load_state_tensors({})
    assert second.weights() == {} and second.updates == 0
