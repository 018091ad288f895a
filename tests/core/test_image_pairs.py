"""Diffusion-DPO over images without a trajectory: an independent form in float64, and what it must not do."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from d3po_core.candidates.preferences import Preferences
from d3po_core.candidates.trajectory import LazyTensor
from d3po_core.training.evaluation import evaluate
from d3po_core.training.loop import Example, Settings, Trainer
from tests.core.gradients import assert_same as gradients_agree
from tests.core.gradients import gradients, overall
from tests.core.noised import PAIRS, NetDenoiser, clean, examples_of, naive

PREDICTIONS = pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])


@pytest.fixture
def stirred(toy, setup):
    """(adapter away from its start, examples) in float64."""

    def make(prediction="epsilon", size=0.1, pairs=PAIRS, dtype=torch.float64, sigmas=None, **adapter):
        _, adapter = setup(dtype=dtype, **adapter)
        toy.stir(adapter, size=size)
        return adapter, examples_of(NetDenoiser(adapter.root, prediction), pairs, dtype=dtype, sigmas=sigmas)

    return make


def still(**options):
    """Settings under which an update computes gradients and leaves the weights."""
    return Settings(
        **{
            "learning_rate": 0.0,
            "weight_decay": 0.0,
            "max_grad_norm": math.inf,
            "dpo_beta": 30.0,
            "draws_per_set": 3,
        }
        | options
    )


assert_same = partial(gradients_agree, tolerance=1e-9)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@PREDICTIONS
@pytest.mark.parametrize("beta", [2.0, 200.0])
def test_an_update_equals_the_papers_loss_pair_by_pair(stirred, prediction, beta):
    adapter, examples = stirred(prediction)
    settings = still(dpo_beta=beta)
    ours, metrics = gradients(adapter, settings, examples)
    theirs, expected = naive(adapter, settings, examples, examples[0].denoise.seen)
    assert_same(ours, theirs)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert abs(metrics["loss"] - math.log(2)) > 1e-4


@PREDICTIONS
def test_gradients_equal_central_finite_differences(stirred, prediction):
    adapter, examples = stirred(prediction, size=0.3, targets="attention")
    trainer = Trainer(adapter, still())

    def loss():
        trainer.step = 0  # the same draws
        return trainer.update(examples)["loss"]

    loss()
    analytic = [parameter.grad.clone() for parameter in adapter.parameters()]
    h, numeric = 1e-5, []
    for parameter in adapter.parameters():
        flat, slopes = parameter.data.view(-1), torch.zeros(parameter.numel(), dtype=torch.float64)
        for k in range(0, parameter.numel(), 2):
            value, sides = flat[k].item(), []
            for side in (h, -h):
                flat[k] = value + side
                sides.append(loss())
            flat[k] = value
            slopes[k] = (sides[0] - sides[1]) / (2 * h)
        numeric.append(slopes)
    assert_same([g.flatten()[::2] for g in analytic], [g[::2] for g in numeric], tolerance=1e-6)


def test_all_candidates_of_a_draw_have_one_noise_and_one_level(stirred):
    adapter, examples = stirred()
    gradients(adapter, still(), examples)
    passes, noises = examples[0].denoise.seen, []
    assert len(passes) == 6
    for number, (x, sigma) in enumerate(passes):
        noise = (x - examples[number // 3].candidates.latents) / sigma.view(-1, 1, 1, 1)
        assert len(set(sigma.tolist())) == 1
        torch.testing.assert_close(noise, noise[:1].expand_as(noise), rtol=0, atol=1e-12)
        assert 0.5 < noise.std() < 1.5
        noises.append(noise[0])
    for a in range(6):
        assert not any(torch.allclose(noises[a], noises[b], atol=1e-3) for b in range(a))


def test_equal_images_pull_nowhere_because_they_are_noised_alike(stirred):
    adapter, (example,) = stirred(pairs=(((0, 1), (2, 1)),))
    example.candidates.latents[:] = example.candidates.latents[:1].clone()
    ours, metrics = gradients(adapter, still(), [example])
    assert metrics["margin"] == 0 and metrics["loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert metrics["gradient norm"] < 1e-12


@pytest.mark.parametrize("per_pass", [0, 1, 2])
@PREDICTIONS
def test_at_the_start_the_loss_is_ln_2_and_every_margin_0(stirred, prediction, per_pass):
    adapter, examples = stirred(prediction, size=0, dtype=torch.float32)
    first = Trainer(adapter, Settings(candidates_per_pass=per_pass)).fit(examples)[0]
    assert set(overall(first)) == {
        "loss",
        "winner log-ratio",
        "loser log-ratio",
        "margin",
        "implicit accuracy",
        "KL to reference",
        "shift of predictions",
        "gradient norm",
    }  # nothing is clipped
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and first["gradient norm"] > 0
    assert first["implicit accuracy"] == pytest.approx(0.5)
    for name in ("winner log-ratio", "loser log-ratio", "margin", "KL to reference", "shift of predictions"):
        assert first[name] == 0, name


def test_the_kl_is_half_the_mean_square_between_the_predictions(stirred):
    adapter, examples = stirred("v")
    _, metrics = gradients(adapter, still(), examples[:1])
    denoise, kls = examples[0].denoise, []
    with torch.no_grad():
        for x, sigma in denoise.seen:
            predicted = denoise.predict(x, sigma)
            with adapter.off():
                kls.append((predicted - denoise.predict(x, sigma)).square().mean() / 2)
    assert metrics["KL to reference"] == pytest.approx(sum(kls).item() / len(kls), rel=1e-9)


def test_at_the_start_swapping_winner_and_loser_negates_the_gradient(stirred):
    adapter, examples = stirred(size=0)
    swapped = [
        Example(Preferences(e.candidates, tuple((l, w) for w, l in e.preferences.pairs)), e.denoise)
        for e in examples
    ]
    assert_same(
        gradients(adapter, still(), examples)[0], [-g for g in gradients(adapter, still(), swapped)[0]]
    )


def test_a_pair_judged_both_ways_pulls_nowhere_at_the_start(stirred):
    adapter, (example,) = stirred(size=0, pairs=(((0, 1), (1, 0)),))
    assert gradients(adapter, still(), [example])[1]["gradient norm"] < 1e-12


def test_ties_pull_nowhere(stirred):
    adapter, examples = stirred(dtype=torch.float32)
    settings = Settings(learning_rate=1e-2)
    tied = Example(Preferences(examples[0].candidates, ()), examples[0].denoise)
    start, trainer = Trainer(adapter, settings).state(), Trainer(adapter, settings)
    with pytest.raises(ValueError, match="nothing to learn from.*Pick at least one winner"):
        trainer.fit([tied])
    assert same(trainer.state()[0], start[0]) and trainer.step == 0
    trainer.fit([tied, *examples])
    once = trainer.state()[0]
    trainer.load_state(*start)
    trainer.fit(examples)
    assert same(trainer.state()[0], once)


@pytest.mark.parametrize("per_pass", [1, 2, 3])
def test_candidates_per_pass_changes_memory_and_not_the_gradient(stirred, per_pass):
    adapter, examples = stirred()
    together, metrics = gradients(adapter, still(), examples)
    examples[0].denoise.batches.clear()
    apart, metrics_apart = gradients(adapter, still(candidates_per_pass=per_pass), examples)
    assert_same(apart, together)
    assert metrics_apart == pytest.approx(metrics, rel=1e-9)
    assert max(examples[0].denoise.batches) == per_pass


def test_a_candidate_takes_one_policy_and_one_reference_pass_per_draw_and_one_outside_every_pair_none(
    stirred,
):
    adapter, (example,) = stirred(pairs=(((0, 3), (1, 3), (0, 1)),))
    gradients(adapter, still(), [example])
    assert example.denoise.batches == 2 * 3 * [3]


@pytest.fixture
def mixed(toy, setup, stirred):
    """(adapter, [images, trajectory, images, trajectory]) in float64."""
    adapter, images = stirred()
    with adapter.off():
        recorded = toy.examples(toy.Denoiser(adapter.root), PAIRS, dtype=torch.float64, policy="elsewhere")
    return adapter, [images[0], recorded[0], images[1], recorded[1]]


def test_the_order_of_pairs_and_of_examples_does_not_matter(mixed):
    adapter, examples = mixed
    turned = [
        Example(Preferences(e.candidates, e.preferences.pairs[::-1]), e.denoise) for e in reversed(examples)
    ]
    settings = still(beta=3.0, step_fraction=0.67)
    assert_same(gradients(adapter, settings, examples)[0], gradients(adapter, settings, turned)[0])


def test_every_pair_weighs_alike_with_and_without_a_trajectory(mixed):
    adapter, examples = mixed
    together, metrics = gradients(adapter, still(beta=3.0), examples)
    alone = [gradients(adapter, still(beta=3.0), [example]) for example in examples]
    assert_same(together, [(4 * a + 4 * b + c + d) / 10 for a, b, c, d in zip(*(g for g, _ in alone))])
    clipped = [m["clip fraction"] for _, m in alone if "clip fraction" in m]  # where there is a trajectory
    assert len(clipped) == 2 and metrics["clip fraction"] == pytest.approx((4 * clipped[0] + clipped[1]) / 5)
    for name in set(overall(metrics)) - {"gradient norm", "KL to reference", "clip fraction"}:
        expected = sum(n * m[name] for n, (_, m) in zip((4, 4, 1, 1), alone)) / 10
        assert metrics[name] == pytest.approx(expected, rel=1e-9, abs=1e-12), name


def test_each_loss_has_a_beta_of_its_own(mixed):
    adapter, (images, recorded, *_) = mixed
    assert Settings().dpo_beta == 5000 and Settings().beta == 0.1
    for example, mine, other in ((images, "dpo_beta", "beta"), (recorded, "beta", "dpo_beta")):
        first = gradients(adapter, still(), [example])[1]
        assert gradients(adapter, still(**{other: 77.0}), [example])[1] == first
        assert gradients(adapter, still(**{mine: 77.0}), [example])[1]["loss"] != pytest.approx(
            first["loss"], rel=1e-3
        )


def test_v_weighs_the_same_x0_by_one_plus_sigma_squared_over_epsilon(stirred):
    sigma = 1.7
    adapter, (example,) = stirred(sigmas=torch.tensor([sigma]), pairs=PAIRS[:1])
    as_v = Example(Preferences(replace(example.candidates, prediction="v"), PAIRS[0]), example.denoise)
    factor = 1 + float(torch.tensor(sigma)) ** 2
    of_v, metrics_v = gradients(adapter, still(dpo_beta=10.0), [as_v])
    of_epsilon, metrics = gradients(adapter, still(dpo_beta=10.0 * factor), [example])
    assert_same(of_v, of_epsilon)
    assert metrics_v["margin"] == pytest.approx(metrics["margin"], rel=1e-9)
    assert metrics_v["winner log-ratio"] == pytest.approx(factor * metrics["winner log-ratio"], rel=1e-9)


def test_levels_are_uniform_over_the_models_and_spread_within_an_update():
    candidates, generator = clean(2, sigmas=torch.arange(1.0, 41.0)), torch.Generator().manual_seed(0)
    counts = torch.zeros(41)
    for _ in range(2000):
        drawn = [int(sigma) for sigma, _ in candidates.draws(4, generator)]
        assert [(level - 1) // 10 for level in drawn] == [0, 1, 2, 3]
        counts[drawn] += 1
    assert counts[0] == 0 and counts[1:].min() > 150 and counts[1:].max() < 250  # 200 each
    assert len({int(sigma) for _ in range(200) for sigma, _ in candidates.draws(1, generator)}) > 35


def test_draws_differ_by_update_by_set_and_by_seed_and_are_the_same_again(stirred):
    def seen(seed):
        adapter, examples = stirred(pairs=(((0, 1),), ((0, 1),)))
        trainer = Trainer(adapter, still(seed=seed, draws_per_set=1))
        for _ in range(2):
            trainer.update(examples)
        return [
            (sigma[0].item(), ((x[0] - examples[i % 2].candidates.latents[0]) / sigma[0])[0, 0, 0].item())
            for i, (x, sigma) in enumerate(examples[0].denoise.seen)
        ]

    assert seen(3) == seen(3)
    assert len({round(noise, 6) for _, noise in seen(3) + seen(4)}) == 8


def test_latents_may_stay_on_disk(stirred, tmp_path):
    adapter, (example, _) = stirred()
    latents = example.candidates.latents
    save_file({"latents": latents}, tmp_path / "images.safetensors")
    lazy = replace(
        example.candidates,
        latents=LazyTensor(tmp_path / "images.safetensors", "latents", latents.shape, latents.dtype),
    )
    assert lazy.count == 4
    on_disk = Example(Preferences(lazy, example.preferences.pairs), example.denoise)
    assert gradients(adapter, still(), [on_disk])[1] == gradients(adapter, still(), [example])[1]


def test_what_no_model_has_is_refused():
    with pytest.raises(ValueError, match="prediction is 'x0', but must be one of: epsilon, v, flow"):
        clean(2, prediction="x0")
    with pytest.raises(ValueError, match="above 0"):
        clean(2, sigmas=torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="no candidate 2"):
        Preferences(clean(2), ((0, 2),))


def brighter_wins(denoise, sets, first):
    """Sets of smooth images in which the brighter ones win."""
    for seed in range(first, first + sets):
        candidates = clean(3, seed, dtype=torch.float32)
        candidates.latents[:] = 0.3 * candidates.latents + torch.tensor([0.5, 0.0, -0.5]).view(-1, 1, 1, 1)
        yield Example(Preferences(candidates, ((0, 1), (0, 2), (1, 2))), denoise)


def test_a_few_dozen_updates_raise_the_held_out_accuracy(stirred):
    adapter, _ = stirred(size=0, dtype=torch.float32)
    denoise = NetDenoiser(adapter.root)
    train, held_out = list(brighter_wins(denoise, 12, 0)), list(brighter_wins(denoise, 12, 100))
    trainer = Trainer(adapter, Settings(dpo_beta=50.0, learning_rate=3e-3, sets_per_update=2, epochs=6))
    assert overall(evaluate(trainer, held_out)) == {
        "held-out accuracy": 0.5,
        "held-out margin": 0.0,
        "held-out KL to reference": 0.0,
        "held-out pairs": 36,
    }
    history = trainer.fit(train)
    after = evaluate(trainer, held_out)
    assert len(history) == 36
    assert after["held-out accuracy"] > 0.8 and after["held-out margin"] > 0.05
    assert sum(m["loss"] for m in history[-6:]) / 6 < math.log(2) - 0.01
    swapped = [Example(Preferences(e.candidates, ((1, 0), (2, 0), (2, 1))), e.denoise) for e in held_out]
    assert evaluate(trainer, swapped)["held-out accuracy"] == pytest.approx(1 - after["held-out accuracy"])
