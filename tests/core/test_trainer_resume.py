"""Going on in the middle of a fit, stopping in it, and what it keeps of thousands of sets."""

import dataclasses
import gc
import math
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from d3po_core.candidates.images import CleanCandidates
from d3po_core.candidates.preferences import Preferences
from d3po_core.training.evaluation import evaluate
from d3po_core.training.loop import Example, Settings, Trainer
from tests.core.gradients import overall

PAIRS = (((0, 1), (0, 2), (2, 1)), ((1, 0),), ((0, 1), (0, 2)))
BRISK = Settings(
    beta=20.0,
    clip=0.0,
    weighting="standardised",
    learning_rate=3e-3,
    sets_per_update=2,
    epochs=3,
    seed=5,
    step_fraction=0.67,
    dpo_beta=50.0,
    draws_per_set=2,
)
UPDATES = 9  # 3 epochs of 5 sets, 2 an update


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def start(toy, setup):
    """A trainer and its examples: three with a trajectory, two without, one of ties. Always the same ones."""

    def make(settings=BRISK, stir=True, loss_scale=1.0, **adapter):
        denoise, adapter = setup(**adapter)
        with adapter.off():
            examples = toy.examples(denoise, PAIRS, policy="elsewhere")
        for seed, pairs in enumerate(PAIRS[:2]):
            latents = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
            images = CleanCandidates(
                latents, torch.tensor([0.1, 0.5, 1.0, 3.0, 9.0]), "v", f"images {seed}", "net"
            )
            examples.append(Example(Preferences(images, pairs), denoise))
        if stir:
            toy.stir(adapter)
        examples.insert(2, Example(Preferences(examples[0].candidates, ()), denoise))
        return Trainer(adapter, settings, "base", loss_scale=loss_scale), examples

    return make


@pytest.fixture(params=["base", "round start"])
def whole(request, start, tmp_path):
    """(settings, an uninterrupted fit's trainer and history, the folder with its state after each update)."""
    settings = dataclasses.replace(BRISK, reference=request.param)
    trainer, examples = start(settings, dropout=0.3)

    def keep(history):
        save_file(trainer.state()[0], tmp_path / f"{len(history)}.safetensors")

    keep([])
    return settings, trainer, trainer.fit(examples, after_update=keep), tmp_path


@pytest.mark.parametrize("done", [0, 1, 2, 3, 4, 7, UPDATES])
def test_a_fit_that_goes_on_in_the_middle_ends_as_the_uninterrupted_one_to_the_bit(start, whole, done):
    settings, trainer, history, folder = whole
    again, examples = start(settings, dropout=0.3, seed=99)
    again.load_state(load_file(folder / f"{done}.safetensors"), done)
    assert again.updates_in(examples) == UPDATES == len(history)
    steps, left, numbers = [], again.steps_in(examples, done), []
    rest = again.fit(
        examples,
        lambda: steps.append(1),
        history=history[:done],
        round_start=trainer.round_start,
        after_update=lambda made: numbers.append(len(made)),
    )
    assert rest == history and again.step == UPDATES and len(steps) == left
    assert numbers == list(range(done + 1, UPDATES + 1))
    assert same(again.state()[0], trainer.state()[0])


def test_a_second_fit_can_go_on_in_the_middle_too(start):
    trainer, examples = start()
    trainer.fit(examples)
    kept = {}
    history = trainer.fit(examples, after_update=lambda made: kept.update({len(made): trainer.state()}))
    again, examples = start()
    again.load_state(*kept[4])
    assert again.step == UPDATES + 4
    assert again.fit(examples, history=history[:4]) == history and same(again.state()[0], trainer.state()[0])


def test_going_on_without_the_reference_or_beyond_the_end_is_an_error(start):
    trainer, examples = start(dataclasses.replace(BRISK, reference="round start"))
    with pytest.raises(ValueError, match="without the LoRA as it was at the round's start"):
        trainer.fit(examples, history=[{}, {}])
    with pytest.raises(ValueError, match=f"cannot go on after update {UPDATES + 1}: .* make {UPDATES}"):
        trainer.fit(examples, history=[{}] * (UPDATES + 1), round_start=trainer.round_start)
    assert trainer.step == 0


def test_the_rounds_start_is_what_the_lora_was_when_the_fit_or_the_trainer_began(start):
    trainer, examples = start(dataclasses.replace(BRISK, reference="round start"))
    first = trainer.adapter.weights()
    assert same(trainer.round_start, first)
    trainer.fit(examples)
    assert same(trainer.round_start, first) and not same(trainer.adapter.weights(), first)
    trainer.fit(examples, stop=lambda made: True)
    assert not same(trainer.round_start, first)
    assert start()[0].round_start is None


def test_stop_ends_a_fit_after_the_update_that_it_follows(start):
    trainer, examples = start()
    history = trainer.fit(examples, stop=lambda made: len(made) == 4)
    assert len(history) == trainer.step == 4
    other, examples = start()
    assert other.fit(examples)[:4] == history


def test_every_update_of_a_mixed_fit_has_the_same_metrics(start):
    trainer, examples = start(dataclasses.replace(BRISK, sets_per_update=1))
    assert len({tuple(overall(metrics)) for metrics in trainer.fit(examples)}) == 1


def test_a_loss_scale_that_was_halved_is_part_of_the_state_and_starts_anew_with_a_fit(start):
    trainer, examples = start(loss_scale=2.0**16)
    seen = []

    def lower(made):
        seen.append(trainer.loss_scale)
        trainer.loss_scale = 2.0**9

    trainer.fit(examples, after_update=lower)
    tensors, step = trainer.state()
    scaled, plain = start(loss_scale=2.0**16)[0], start()[0]
    for other in (scaled, plain):
        other.load_state(tensors, step)
    assert (scaled.loss_scale, plain.loss_scale) == (2.0**9, 1.0)
    trainer.fit(examples, after_update=lower)
    assert seen[0] == seen[UPDATES] == 2.0**16 and seen[1] == 2.0**9
    scaled.load_state(plain.state()[0], step)
    assert scaled.loss_scale == 2.0**9


# --- examples made when they are indexed ---


class Lazily:
    """A sequence that makes its examples anew whenever it is asked, and knows how many are alive."""

    def __init__(self, examples):
        self.examples, self.alive, self.most = examples, weakref.WeakSet(), 0

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        preferences = self.examples[i].preferences
        denoise = self.examples[i].denoise

        def own(x, sigma):  # stands for the conditioning
            return denoise(x, sigma)

        copy = dataclasses.replace(preferences, candidates=dataclasses.replace(preferences.candidates))
        self.alive.add(own)
        self.most = max(self.most, len(self.alive))
        return Example(copy, own)


def test_examples_made_on_demand_train_alike_and_are_not_kept(start):
    settings = dataclasses.replace(BRISK, epochs=2, sets_per_update=1)
    trainer, kept = start(settings)
    history = trainer.fit(kept)
    gc.collect()
    again, examples = start(settings)
    lazy = Lazily(examples)
    assert again.steps_in(lazy) == again.steps_in(examples) and again.updates_in(lazy) == 10
    assert again.fit(lazy) == history and same(again.state()[0], trainer.state()[0])
    assert evaluate(again, lazy) == evaluate(trainer, kept)
    assert lazy.most <= 2  # the one in use and the one being made


# --- evaluation ---


def test_evaluating_changes_nothing(start):
    trainer, examples = start(dropout=0.3)
    trainer.fit(examples[:4], stop=lambda made: len(made) == 2)
    gradients = [parameter.grad.clone() for parameter in trainer.adapter.parameters()]
    tensors, noise = trainer.state()[0], torch.random.get_rng_state()
    first = evaluate(trainer, examples)
    assert first == evaluate(trainer, examples)
    assert (
        set(overall(first))
        == {"held-out accuracy", "held-out margin", "held-out KL to reference", "held-out pairs"}
        and first["held-out pairs"] == 10
    )
    assert same(trainer.state()[0], tensors) and torch.equal(torch.random.get_rng_state(), noise)
    assert all(torch.equal(p.grad, g) for p, g in zip(trainer.adapter.parameters(), gradients))
    with torch.no_grad():
        evaluate(trainer, examples)


def test_evaluating_between_updates_leaves_a_fit_as_it_is(start):
    settings = dataclasses.replace(BRISK, reference="round start")
    trainer, examples = start(settings, dropout=0.3)
    history = trainer.fit(examples)
    watched, examples = start(settings, dropout=0.3)
    assert watched.fit(examples, after_update=lambda *_: evaluate(watched, examples[1:])) == history
    assert same(watched.state()[0], trainer.state()[0])


@pytest.mark.parametrize(
    "change", [{"seed": 9}, {"step_fraction": 0.3}, {"draws_per_set": 1}, {"candidates_per_pass": 1}]
)
def test_a_held_out_set_is_measured_alike_in_every_run(start, change):
    trainer, examples = start()
    other, same_examples = start(dataclasses.replace(BRISK, **change))
    other.step = 3
    assert evaluate(other, same_examples) == pytest.approx(evaluate(trainer, examples), rel=1e-3)


def test_a_held_out_pair_of_a_trajectory_has_the_mean_margin_of_all_random_steps(start):
    trainer, examples = start(
        dataclasses.replace(BRISK, step_fraction=1.0, learning_rate=0.0, sets_per_update=1)
    )
    for example in examples[:2]:
        trained = trainer.update([example])
        held_out = evaluate(trainer, [example])
        assert held_out["held-out margin"] == pytest.approx(trained["margin"], rel=1e-6)
        assert held_out["held-out pairs"] == len(example.preferences.pairs)
    one = evaluate(trainer, [examples[1]])
    assert one["held-out accuracy"] == (one["held-out margin"] > 0)


def test_held_out_pairs_are_measured_without_dropout(start):
    with_dropout, examples = start(dropout=0.5)
    without, same_examples = start()
    assert evaluate(with_dropout, examples) == evaluate(without, same_examples)


def test_a_policy_that_is_the_reference_ranks_held_out_pairs_by_chance(start):
    for settings, stir in ((BRISK, False), (dataclasses.replace(BRISK, reference="round start"), True)):
        trainer, examples = start(settings, stir)
        metrics = evaluate(trainer, examples[3:])
        assert metrics["held-out accuracy"] == 0.5 and metrics["held-out margin"] == pytest.approx(
            0, abs=1e-4
        )


def test_without_a_held_out_pair_there_is_nothing_but_their_number(start):
    trainer, examples = start()
    assert evaluate(trainer, []) == evaluate(trainer, [examples[2]]) == {"held-out pairs": 0}


# --- held-out figures on the way ---


def test_held_out_figures_come_with_every_so_many_updates_and_the_last(start):
    trainer, examples = start()
    history = trainer.fit(examples[:4], held_out=examples[4:], evaluate_every=4)
    measured = [i + 1 for i, metrics in enumerate(history) if "held-out accuracy" in metrics]
    assert measured == [4, len(history)] and len(history) % 4
    assert history[-1].items() >= evaluate(trainer, examples[4:]).items()
    plain, examples = start()
    without = plain.fit(examples[:4])
    assert [{k: v for k, v in m.items() if not k.startswith("held-out")} for m in history] == without
    assert same(plain.state()[0], trainer.state()[0])


def test_a_fit_that_was_stopped_early_does_not_go_on_when_it_is_taken_up_again(start):
    def enough(made):
        return len(made) >= 3

    trainer, examples = start()
    history = trainer.fit(examples, stop=enough)
    again, examples = start()
    again.load_state(*trainer.state())
    assert again.fit(examples, history=history, stop=enough) == history and again.step == 3


# --- dropout in passes ---


def test_a_candidate_that_goes_through_twice_has_the_same_dropout_both_times(start, toy):
    trainer, (example, *_) = start(dataclasses.replace(BRISK, candidates_per_pass=1), dropout=0.5)
    given = {False: [], True: []}

    def spy(x, sigma):
        x0 = example.denoise(x, sigma)
        given[torch.is_grad_enabled()].append(x0.detach())
        return x0

    trainer.reference.x0(example, 0), trainer.update([Example(example.preferences, example.denoise)])
    trainer.update([Example(example.preferences, spy)])
    without, with_gradient = (torch.cat(given[grad]) for grad in (False, True))
    assert torch.equal(without, with_gradient) and len(without) == 3 * 2
    assert not torch.equal(with_gradient[0], with_gradient[1])


# --- optimizers and averages ---

CHOICES = [
    dict(optimizer="AdamW 8-bit"),
    dict(optimizer="AdamW schedule-free"),
    dict(ema=0.9),
    dict(ema=0.9, optimizer="AdamW schedule-free"),
    dict(schedule="cosine", warmup=4),
]


@pytest.mark.parametrize("chosen", CHOICES, ids=str)
def test_a_fit_goes_on_to_the_bit_with_every_optimizer_schedule_and_average(start, chosen, tmp_path):
    settings = dataclasses.replace(BRISK, reference="round start", **chosen)
    whole, examples = start(settings)
    kept = {}
    history = whole.fit(examples, after_update=lambda made: kept.update({len(made): whole.state()}))
    save_file(kept[4][0], tmp_path / "state.safetensors")
    again, examples = start(settings)
    again.load_state(load_file(tmp_path / "state.safetensors"), 4)
    assert again.fit(examples, history=history[:4], round_start=whole.round_start) == history
    assert same(again.state()[0], whole.state()[0]) and same(again.trained(), whole.trained())


def test_the_average_is_what_training_has_arrived_at_and_what_is_measured_and_saved(start):
    weights = []
    plain, examples = start()
    plain.fit(examples, after_update=lambda made: weights.append(plain.adapter.weights()))
    averaged, examples = start(dataclasses.replace(BRISK, ema=0.5))
    averaged.fit(examples)
    assert same(averaged.adapter.weights(), plain.adapter.weights()), "it changes nothing of the training"
    expected = weights[0]
    for n, each in enumerate(weights):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = {name: decay * expected[name] + (1 - decay) * each[name] for name in each}
    found = averaged.trained()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    assert not same(found, plain.adapter.weights())
    assert same(
        {
            name.removeprefix("lora."): tensor
            for name, tensor in averaged.state()[0].items()
            if name.startswith("lora.")
        },
        found,
    )
    measured = evaluate(averaged, examples)
    averaged.adapter.load(found)
    averaged.ema = None
    assert evaluate(averaged, examples) == measured != evaluate(plain, examples)


def test_the_learning_rate_rises_and_falls(start):
    trainer, examples = start(dataclasses.replace(BRISK, schedule="cosine", warmup=3))
    rates = []
    trainer.fit(examples, after_update=lambda made: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    expected = [
        min(1, (n + 1) / 3) * 0.5 * (1 + math.cos(math.pi * n / UPDATES)) * BRISK.learning_rate
        for n in range(UPDATES)
    ]
    assert rates == pytest.approx(expected)
