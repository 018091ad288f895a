"""Learning along a scorer's gradient: what each method goes back through, by finite differences; resuming;
the guard."""

import math
from types import SimpleNamespace

import pytest
import torch

from d3po_core.candidates.scorers import Scorer
from d3po_core.runs.progress import Progress
from d3po_core.taste.guard import Guard
from d3po_core.training import metrics, monitor, rewards
from d3po_core.training.learner import NonFiniteLoss
from d3po_core.training.rewards import (
    ALIGNPROP,
    DRAFT,
    DRAFT_LV,
    METHODS,
    REFL,
    Recipe,
    RewardTrainer,
    Source,
)
from d3po_core.training.settings import Settings
from tests.core.conftest import stir
from tests.core.noised import clean
from tests.core.rounds import same

SIGMAS = torch.tensor([14.6, 4.0, 1.5, 0.5, 0.0])
STILL = Settings(learning_rate=0.0, weight_decay=0.0, max_grad_norm=math.inf, seed=3)
CASES = [(DRAFT, 1), (DRAFT, 3), (DRAFT, 4), (DRAFT_LV, 0), (ALIGNPROP, 0), (REFL, 0)]
RED = Scorer("red", lambda images, prompt: images[..., 0].mean((1, 2)), differentiable=True)


def decode(latents):
    """Images [n, H, W, 3] of latents [n, 2, H, W]."""
    return torch.sigmoid(torch.stack([latents[:, 0], latents[:, 1], latents.sum(1)], -1))


@pytest.fixture
def begin(setup):
    """begin(**options): a trainer of two prompts, and these."""

    def make(recipe=Recipe(), settings=STILL, scorer=RED, dtype=torch.float64, size=0.1, guided=lambda d: d):
        denoise, adapter = setup(dtype=dtype)
        stir(adapter, size=size)
        trainer = RewardTrainer(adapter, settings, recipe, scorer, decode, SIGMAS)
        sources = [
            Source(clean(1, i, dtype=dtype), guided(denoise), denoise, f"prompt {i}") for i in range(2)
        ]
        return SimpleNamespace(trainer=trainer, sources=sources, adapter=adapter, denoise=denoise)

    return make


def shifted(adapter, along, by):
    with torch.no_grad():
        for parameter, direction in zip(adapter.parameters(), along):
            parameter += by * direction


@pytest.mark.parametrize("method, last_steps", CASES)
def test_the_gradient_is_that_of_finite_differences_from_where_it_is_cut(
    begin, setup, monkeypatch, method, last_steps
):
    """Steps without a gradient are taken with weights that stay, also where the others are moved."""
    still, adapter = setup(dtype=torch.float64)
    stir(adapter)
    cut = lambda denoise: lambda x, sigma: (denoise if torch.is_grad_enabled() else still)(x, sigma)
    toy = begin(Recipe(method, pictures=3, last_steps=last_steps), guided=cut)
    toy.trainer.usual = 0.4, 0.1
    batch = toy.trainer._drawn(toy.sources)
    # gone through again in the backward pass, a step has a gradient and is taken with the trained weights
    monkeypatch.setattr(rewards, "checkpointed", lambda function: function)

    def loss(by):
        shifted(toy.adapter, along, by)
        total = torch.zeros((), dtype=torch.float64)
        for source, numbers in batch:
            images = decode(toy.trainer.sampled(source, numbers))
            total += len(numbers) / 3 * toy.trainer.loss(images[..., 0].mean((1, 2)))
        shifted(toy.adapter, along, -by)
        return total

    generator = torch.Generator().manual_seed(0)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in toy.adapter.parameters()]
    difference = (loss(1e-4) - loss(-1e-4)) / 2e-4
    monkeypatch.undo()
    toy.trainer.update(batch)
    slope = sum((p.grad * direction).sum() for p, direction in zip(toy.adapter.parameters(), along))
    assert abs(slope) > 1e-3
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-8)


def test_pictures_are_those_of_eulers_steps(begin):
    toy = begin(Recipe(DRAFT, last_steps=2))
    source = toy.sources[0]
    of_picture = [rewards.generator_of(3, "picture", number) for number in (5, 6)]
    noise = torch.cat([torch.randn(1, 2, 4, 4, generator=g, dtype=torch.float64) for g in of_picture])
    x = SIGMAS[0] * noise
    for sigma, following in zip(SIGMAS, SIGMAS[1:]):
        x0 = toy.denoise(x, sigma.double().expand(2))
        x = x0 + following / sigma * (x - x0)
    torch.testing.assert_close(toy.trainer.sampled(source, [5, 6]), x)


@pytest.mark.parametrize("method", METHODS)
def test_how_many_go_through_together_changes_nothing_that_is_learned(begin, method):
    slopes = []
    for per_pass in (0, 1):
        settings = Settings(**vars(STILL) | {"candidates_per_pass": per_pass})
        toy = begin(Recipe(method, pictures=4), settings)
        toy.trainer.update(toy.trainer._drawn(toy.sources))
        slopes.append([p.grad.clone() for p in toy.adapter.parameters()])
    torch.testing.assert_close(*slopes)


def test_every_prompt_is_drawn_once_before_one_is_drawn_again(begin):
    toy = begin(Recipe(pictures=3))
    sources, drawn = toy.sources * 2 + toy.sources[:1], []
    sources = [source._replace(text=str(i)) for i, source in enumerate(sources)]
    for toy.trainer.step in range(5):
        drawn += sorted((n, source.text) for source, own in toy.trainer._drawn(sources) for n in own)
    assert [n for n, _ in drawn] == list(range(15))
    assert all({text for _, text in drawn[i : i + 5]} == set("01234") for i in (0, 5, 10))


LEARNING = Settings(learning_rate=1e-2, ema=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_round_that_was_stopped_goes_on_to_the_same_bits(begin, tmp_path, method):
    make = lambda: begin(Recipe(method, updates=6, pictures=2), LEARNING, dtype=torch.float32)

    def stop(made):
        if len(made) == 4:  # before this update is kept
            raise KeyboardInterrupt

    progress, stopped, again, whole = Progress(tmp_path, "key"), make(), make(), make()
    with pytest.raises(KeyboardInterrupt):
        progress.fit(stopped.trainer, stopped.sources, on_update=stop)
    made, before, warning = Progress(tmp_path, "key").fit(again.trainer, again.sources)
    history = whole.trainer.fit(whole.sources)
    assert (before, warning) == (3, "") and made == history
    assert same(again.trainer.state()[0], whole.trainer.state()[0])
    assert history[-1][metrics.SCORE] > history[0][metrics.SCORE]


def test_a_score_that_is_no_number_names_the_scorer_and_leaves_the_lora(begin):
    broken = Scorer("broken", lambda images, prompt: images.sum((1, 2, 3)) / 0.0 - math.inf, True)
    toy = begin(scorer=broken)
    before = toy.adapter.weights()
    with pytest.raises(NonFiniteLoss, match="the scorer broken gave a score that is not a finite number"):
        toy.trainer.fit(toy.sources)
    assert same(before, toy.adapter.weights()) and toy.trainer.step == 0


# --- the guard ---


def guarded(begin, leash, second=None, **options):
    toy = begin(Recipe(updates=12, pictures=2), LEARNING, dtype=torch.float32, size=0.0, **options)
    guard = Guard(toy.trainer, toy.sources, leash, second)
    toy.trainer.usual = guard.usual
    history = toy.trainer.fit(toy.sources, look=guard.look, look_every=2, stop=guard.stop)
    return guard.settle(history), history, guard


def test_training_stops_where_the_objective_rises_and_fidelity_falls(begin):
    not_red = Scorer("not red", lambda images, prompt: -images[..., 0].mean((1, 2)))
    (told,), history, _ = guarded(begin, 0.0, not_red)
    assert "the objective rises and fidelity falls" in told and len(history) < 12
    assert history[-1][metrics.GAIN] > 0 > history[-1][metrics.FIDELITY]
    with_red, history, _ = guarded(begin, 0.0, RED)
    assert with_red == [] and len(history) == 12 and metrics.MOVED in history[-1]


def test_training_stops_where_pictures_moved_beyond_the_leash_and_pulls_them_back(begin):
    (stopped, pulled), history, guard = guarded(begin, 0.05)
    assert "beyond the leash of 0.05" in stopped and "pulled back" in pulled and len(history) < 12
    assert history[-1][metrics.MOVED] <= 0.05 and guard.pictures.moved() == history[-1][metrics.MOVED]


def test_a_fall_that_may_be_chance_does_not_stop_training():
    look = {metrics.GAIN: 1.0, metrics.FIDELITY: -0.3, metrics.FIDELITY_ERROR: 0.2}
    assert monitor.hacked([look], 0.85) == "" and monitor.hacked([{}], 0.85) == ""
    assert "fidelity falls" in monitor.hacked([look | {metrics.FIDELITY_ERROR: 0.1}], 0.85)
