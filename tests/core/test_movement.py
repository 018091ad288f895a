"""How far pictures have moved, and the LoRA that is pulled back until they have moved no further than they
may."""

import math
from dataclasses import replace

import pytest
import torch

from d3po_core.taste import movement
from d3po_core.taste.movement import (
    APART,
    ENOUGH,
    PICTURES,
    TRIES,
    Pictures,
    Samples,
    View,
    carried_on,
    held_back,
    length,
    sampled,
    spread,
    to_sample,
    varied,
)
from d3po_core.training.adapter import Adapter
from d3po_core.training.loop import Settings, Trainer
from tests.core.noised import NetDenoiser, clean, examples_of
from tests.core.rounds import same

WIDEST = "all linear and convolutions"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("candidates, prediction", [(1, "epsilon"), (3, "v"), (2, "flow")])
def test_pictures_follow_the_probability_flow_to_where_its_closed_form_ends(
    monkeypatch, candidates, prediction
):
    monkeypatch.setattr(movement, "STEPS", 800)
    spread_of_data, images = 0.7, clean(candidates, prediction=prediction)
    flow, top = prediction == "flow", float(images.sigmas[-1])
    images.sigmas = torch.linspace(0.001, top, 1600) if flow else torch.logspace(-3, math.log10(top), 1600)

    def denoise(x, sigma):  # of data that is normal around 0
        share = (1 - sigma if flow else torch.ones_like(sigma)).view(-1, 1, 1, 1)
        noise = sigma.view(-1, 1, 1, 1)
        variance = (share * spread_of_data) ** 2 + noise**2
        return share * spread_of_data**2 / variance * x

    noise = normal(candidates, 2, 4, 4)
    first = images.noised(torch.zeros_like(noise), images.sigmas[-1], noise)
    at_first = math.hypot((1 - top if flow else 1) * spread_of_data, top)
    torch.testing.assert_close(
        sampled(denoise, images, noise), first * spread_of_data / at_first, rtol=2e-2, atol=1e-2
    )


def test_a_spread_is_the_pooled_deviation_within_sets():
    sets = [normal(4, 3, seed=1) + 10, normal(6, 3, seed=2) - 10]
    wanted = torch.cat([own - own.mean(0) for own in sets]).square().sum(0).div(8).sqrt()
    torch.testing.assert_close(spread(sets), wanted)
    still = [torch.cat([own, torch.ones(len(own), 1)], 1) for own in sets]
    assert 0 < spread(still)[-1] < 0.06 * spread(still)[0]


def test_what_all_pictures_move_by_counts_and_what_each_moves_by_itself_does_not():
    before, spreads = [normal(12, 5), normal(12, 9, seed=3)], [torch.full((5,), 2.0), torch.full((9,), 4.0)]
    after = [part + 0.5 * own for part, own in zip(before, spreads)]
    assert movement.movement(before, after, spreads) == pytest.approx(0.5)
    squares = []
    for seed in range(200):
        moved = [part + own * normal(*part.shape, seed=9 + seed) for part, own in zip(before, spreads)]
        parts = [((new - old) / own).mean(0) for old, new, own in zip(before, moved, spreads)]
        squares.append(sum(float(part.square().mean()) for part in parts) / 2)
        assert movement.movement(before, moved, spreads) < 0.35
    assert sum(squares) / 200 == pytest.approx(1 / 12, rel=0.1), "what is taken off"


class Pulled:
    """A trainer whose LoRA is of this size."""

    def __init__(self, size):
        self.size = size

    def pull_back(self, share):
        self.size *= share


@pytest.mark.parametrize("power", [0.6, 1.0, 2.0])
def test_a_lora_is_pulled_back_until_pictures_moved_no_further_than_they_may(power):
    trainer = Pulled(3.0)
    now, left = held_back(trainer, lambda: trainer.size**power, 0.5)
    assert now == trainer.size**power <= 0.5
    assert left == pytest.approx(trainer.size / 3) and (left > 0.05 or power == 0.6)
    assert held_back(trainer, lambda: trainer.size**power, 0.5) == (now, 1.0), "then it stays"


def test_what_no_pulling_brings_within_the_limit_is_taken_back():
    shares = []

    class Stubborn:
        def pull_back(self, share):
            shares.append(share)

    _, left = held_back(Stubborn(), lambda: 2.0, 0.5)
    assert left == 0 and len(shares) == TRIES and shares[-1] == 0


@pytest.mark.parametrize("power, times, now", [(1.0, 0.485 / 0.15, 0.485), (0.5, 4.0, 0.3), (2.0, None, 0.5)])
def test_a_lora_is_carried_on_until_pictures_have_moved_as_far_as_they_may(power, times, now):
    """At most twice as far at once, and so four times as far; what then is too far is pulled back."""
    start = 0.15 ** (1 / power)
    trainer = Pulled(start)
    moved, there = carried_on(trainer, lambda: trainer.size**power, 0.5)
    assert moved == trainer.size**power and there == pytest.approx(trainer.size / start)
    assert times is None and 0.35 < moved <= now or (there, moved) == pytest.approx((times, now))


@pytest.mark.parametrize("size, times", [(0.46, 1.0), (0.5, 1.0), (1.0, 0.485)])
def test_what_has_moved_pictures_far_enough_is_not_carried_on(size, times):
    trainer = Pulled(size)
    assert carried_on(trainer, lambda: trainer.size, 0.5) == (trainer.size, pytest.approx(times))


def test_few_labels_have_a_short_leash():
    assert length(0.8, ENOUGH) == length(0.8, 2000) == 0.8
    assert length(0.8, ENOUGH / 4) == pytest.approx(0.4)
    assert length(0.8, 0) == 0


@pytest.mark.parametrize(
    "prompts, wanted",
    [
        ("a", [(0, 0), (0, 1), (0, 2), (0, 3)]),
        ("ab", [(0, 0), (1, 0), (0, 1), (1, 1)]),
        ("aabac", [(0, 0), (2, 0), (4, 0), (1, 0)]),
        ("abcdef", [(0, 0), (1, 0), (2, 0), (3, 0)]),
    ],
)
def test_a_few_pictures_are_of_as_many_prompts_as_there_are(prompts, wanted):
    each = PICTURES // len(prompts)
    assert varied(prompts, each, 4) == wanted
    assert sorted(varied(prompts, each, 99)) == [(i, k) for i in range(len(prompts)) for k in range(each)]


# --- with a network ---


@pytest.fixture
def drawn_pictures(toy):
    """A trainer over a toy network and its Pictures."""

    def build(**settings):
        denoise = NetDenoiser(toy.net())
        adapter = Adapter(denoise.net, rank=2, targets=WIDEST)
        trainer = Trainer(adapter, Settings(method="Diffusion-DPO", **settings))
        sets = [clean(4, seed, dtype=torch.float32) for seed in range(3)]
        return denoise, trainer, Pictures(trainer, [View(images, denoise, denoise) for images in sets])

    return build


def test_pictures_of_a_lora_that_does_nothing_have_not_moved(drawn_pictures):
    _, trainer, pictures = drawn_pictures()
    before = trainer.state()[0]
    assert pictures.moved() == 0.0
    assert same(trainer.state()[0], before)


def test_pictures_move_with_the_lora_and_are_held(toy, drawn_pictures):
    _, trainer, pictures = drawn_pictures()
    toy.stir(trainer.adapter, size=1.0)
    far = pictures.moved()
    assert far > 0.1 and pictures.moved() == far
    now, left = held_back(trainer, pictures.moved, far / 3)
    of_final = pictures.latest
    assert 0 < now <= far / 3 and 0.05 < left < 1 and pictures.moved() == now
    assert all(map(torch.equal, of_final, pictures.latest)), "sampled last by the LoRA that is left"


def test_a_few_of_all_pictures_are_these_pictures(toy, drawn_pictures):
    _, trainer, pictures = drawn_pictures()
    started = to_sample(pictures.views)
    few = Samples(trainer, [(started[i][0], started[i][1][k : k + 1]) for i, k in [(2, 1), (0, 3)]])
    toy.stir(trainer.adapter, size=1.0)
    for own, all_ in ((few.before, pictures.before), (few.now(), pictures.now())):
        torch.testing.assert_close(
            torch.cat(own), torch.stack([all_[2][1], all_[0][3]]), rtol=1e-4, atol=1e-3
        )
    assert not torch.allclose(few.before[0], few.latest[0])


@pytest.mark.parametrize(
    "settings, options",
    [
        (dict(ema=0.9, leash=0.1), dict(dropout=0.3)),
        (dict(optimizer="AdamW schedule-free"), {}),
        (dict(reference="round start"), dict(adapter="DoRA")),
    ],
)
def test_looking_at_pictures_between_updates_changes_nothing_that_is_learned(toy, settings, options):
    states, looks = [], []
    for looking in (False, True):
        torch.manual_seed(7)
        denoise = NetDenoiser(toy.net())
        adapter = Adapter(denoise.net, rank=2, targets=WIDEST, **options)
        toy.stir(adapter)
        trainer = Trainer(adapter, Settings(method="Diffusion-DPO", learning_rate=0.01, epochs=3, **settings))
        images = clean(4, dtype=torch.float32)
        samples = looking and Samples(trainer, to_sample([View(images, denoise, denoise)]))

        def look(history):
            if samples:
                looks.append(samples.now()[0])

        trainer.fit(examples_of(denoise, dtype=torch.float32), stop=look)
        states.append(trainer.state()[0] | {"draws": torch.get_rng_state()})
    assert same(*states)
    assert len(looks) == 5 and not torch.equal(looks[0], looks[-1])


def test_how_little_masked_candidates_differ_does_not_shorten_the_leash(toy):
    """Their spread would; with others beside them it is that of the others."""
    denoise = NetDenoiser(toy.net())
    adapter = Adapter(denoise.net, rank=2, targets=WIDEST)
    trainer = Trainer(adapter, Settings(method="Diffusion-DPO"))
    toy.stir(adapter, size=1.0)
    mask = torch.zeros(1, 2, 4, 4)
    mask[..., :1, :1] = 1

    def view(seed, masked):
        images = clean(4, seed, dtype=torch.float32)
        with adapter.off():  # candidates as the reference makes them
            images = replace(images, latents=sampled(denoise, images, normal(4, 2, 4, 4, seed=seed).float()))
        if masked:
            inside = mask * images.latents + (1 - mask) * images.latents[:1]
            images = replace(images, latents=inside, mask=mask)
        return View(images, denoise, denoise)

    def moved(views):
        return Pictures(trainer, views).moved()

    masked, whole = ([view(seed, masked) for seed in range(3)] for masked in (True, False))
    unmasked = [v._replace(candidates=replace(v.candidates, mask=None)) for v in masked]
    assert moved(unmasked) > 2 * moved(whole), "by what masked candidates differ"
    assert moved(masked) == pytest.approx(moved(whole), rel=0.5)
    assert moved([*masked, *whole]) == pytest.approx(moved(whole), rel=0.3)
    many = [view(seed, True) for seed in range(14)]
    assert len(Pictures(trainer, many).views) == PICTURES // APART


def test_held_against_the_round_s_start_it_is_that_which_pictures_moved_from(toy, drawn_pictures):
    denoise, trainer, _ = drawn_pictures(reference="round start")
    toy.stir(trainer.adapter, size=1.0)
    trainer.begin_round()
    views = [View(images, denoise, denoise) for images in [clean(4, dtype=torch.float32)]]
    pictures = Pictures(trainer, views)
    start = trainer.adapter.weights()
    assert pictures.moved() == 0.0
    toy.stir(trainer.adapter, seed=2, size=1.0)
    assert pictures.moved() > 0
    trainer.pull_back(0.0)
    assert pictures.moved() == 0.0 and same(trainer.adapter.weights(), start)


@pytest.mark.parametrize("average", [dict(ema=0.9), dict(optimizer="AdamW schedule-free"), {}])
def test_averages_of_weights_are_pulled_back_with_them(toy, average):
    denoise = NetDenoiser(toy.net())
    adapter = Adapter(denoise.net, rank=2, targets=WIDEST)
    settings = Settings(method="Diffusion-DPO", learning_rate=0.01, epochs=3, **average)
    trainer = Trainer(adapter, settings)
    trainer.fit(examples_of(denoise, dtype=torch.float32))
    before = trainer.trained()
    trainer.pull_back(0.25)
    for name, weight in trainer.trained().items():
        left = 0.25 if name.endswith("lora_up.weight") else 1.0
        torch.testing.assert_close(weight, left * before[name])
