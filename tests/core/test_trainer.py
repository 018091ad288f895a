import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from d3po_core.candidates.preferences import Preferences
from d3po_core.training.adapter import Adapter
from d3po_core.training.learner import NonFiniteLoss
from d3po_core.training.loop import Example, Settings, Trainer
from tests.core.gradients import overall

PAIRS = (((0, 1), (0, 2), (2, 1)), ((1, 0),), ((0, 1), (0, 2)))
BRISK = Settings(beta=20.0, clip=0.0, weighting="standardised", learning_rate=3e-3, sets_per_update=2)
RANDOM = dataclasses.replace(BRISK, step_fraction=0.67, seed=5)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def start(toy, setup):
    """A trainer and its examples, the same ones every time."""

    def make(settings=BRISK, pairs=PAIRS, policy="base", reference_policy="base", **adapter):
        denoise, adapter = setup(**adapter)
        with adapter.off():
            examples = toy.examples(denoise, pairs, policy=policy)
        denoise.batches.clear()
        denoise.with_gradient.clear()
        return Trainer(adapter, settings, reference_policy), examples

    return make


def test_the_defaults_are_d3pos(start):
    settings = Settings()
    assert (settings.beta, settings.clip, settings.weighting, settings.reference) == (
        0.1,
        0.1,
        "paper",
        "base",
    )
    assert (settings.learning_rate, settings.weight_decay, settings.max_grad_norm) == (3e-5, 1e-4, 1.0)
    group = start(settings)[0].optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (3e-5, 1e-4)


def test_the_first_metrics_are_those_of_a_policy_that_is_the_reference(start):
    trainer, examples = start(Settings())
    first = trainer.fit(examples)[0]
    assert set(overall(first)) == {
        "loss",
        "winner log-ratio",
        "loser log-ratio",
        "margin",
        "implicit accuracy",
        "KL to reference",
        "shift of predictions",
        "clip fraction",
        "gradient norm",
    }
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["implicit accuracy"] == pytest.approx(0.5)
    assert first["clip fraction"] == 0 and first["gradient norm"] > 0
    for name in ("winner log-ratio", "loser log-ratio", "margin", "KL to reference", "shift of predictions"):
        assert first[name] == 0, name


def test_training_on_fixed_picks_raises_the_margin_and_the_accuracy(start):
    trainer, examples = start(dataclasses.replace(BRISK, epochs=8, learning_rate=1e-2))
    steps = []
    history = trainer.fit(examples, lambda: steps.append(trainer.step))
    last = history[-1]
    assert len(history) == trainer.step == 16
    assert len(steps) == trainer.steps_in(examples) and set(steps) == set(range(16))
    assert last["margin"] > history[len(history) // 2]["margin"] > history[0]["margin"] == 0
    assert last["implicit accuracy"] > 0.9 and last["loss"] < math.log(2) - 0.05
    assert last["winner log-ratio"] > last["loser log-ratio"] and last["KL to reference"] > 0


def test_the_base_is_as_before_after_training_and_ejecting(start):
    trainer, examples = start()
    net = trainer.adapter.root
    x, sigma = examples[0].candidates.states[1], torch.full((3,), 4.0)
    with trainer.adapter.off():
        before = net(x, sigma)
    trainer.fit(examples)
    trainer.adapter.eject()
    assert torch.equal(net(x, sigma), before)


@pytest.mark.parametrize("pairs", [((0, 1),), ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))])
def test_a_candidate_takes_one_policy_pass_per_step_however_many_pairs_it_is_in(start, pairs):
    trainer, (example,) = start(pairs=(pairs,), policy="elsewhere")
    counted, steps, used = (
        example.denoise,
        len(example.candidates.actions),
        len({c for pair in pairs for c in pair}),
    )
    for _ in range(2):
        trainer.update([example])
    policy = [n for n, grad in zip(counted.batches, counted.with_gradient) if grad]
    reference = [n for n, grad in zip(counted.batches, counted.with_gradient) if not grad]
    assert policy == 2 * steps * [used]
    assert reference == steps * [example.candidates.count]


def test_candidates_outside_every_pair_take_no_policy_pass(start):
    trainer, (example,) = start(pairs=(((0, 3),),))
    trainer.update([example])
    assert [n for n, grad in zip(example.denoise.batches, example.denoise.with_gradient) if grad] == 3 * [2]


def test_the_recorded_reference_costs_one_candidate_of_a_step_once(start):
    trainer, (example,) = start(pairs=PAIRS[:1])
    for _ in range(3):
        trainer.update([example])
    assert [n for n, grad in zip(example.denoise.batches, example.denoise.with_gradient) if not grad] == 3 * [
        1
    ]


@pytest.mark.parametrize("per_pass", [1, 2])
def test_candidates_per_pass_bounds_every_batch(start, per_pass):
    trainer, examples = start(dataclasses.replace(BRISK, candidates_per_pass=per_pass), policy="elsewhere")
    trainer.fit(examples)
    assert max(examples[0].denoise.batches) == per_pass


def test_step_fraction_draws_other_steps_each_time_and_never_the_deterministic_one(start):
    trainer, (example,) = start(dataclasses.replace(BRISK, step_fraction=0.34), pairs=PAIRS[:1])
    seen, inner = [], example.denoise

    def spy(x, sigma):
        if torch.is_grad_enabled():
            seen.append(sigma[0].item())
        return inner(x, sigma)

    for _ in range(12):
        trainer.update([Example(example.preferences, spy)])
    assert len(seen) == 12 and set(seen) == set(example.candidates.sigmas[:3].tolist())


@pytest.mark.parametrize(
    "window, steps", [((0.0, 1.0), [0, 1, 2]), ((0.0, 0.5), [0, 1]), ((0.25, 0.5), [1]), ((0.3, 1.0), [2])]
)
def test_a_window_of_the_schedule_holds_the_steps_that_are_trained_on_and_no_others(start, window, steps):
    settings = dataclasses.replace(BRISK, window_start=window[0], window_end=window[1])
    trainer, (example,) = start(settings, pairs=PAIRS[:1])
    seen, inner = [], example.denoise

    def spy(x, sigma):
        if torch.is_grad_enabled():
            seen.append(sigma[0].item())
        return inner(x, sigma)

    trainer.update([Example(example.preferences, spy)])
    assert seen == [example.candidates.sigmas[i].item() for i in steps]
    assert trainer.steps_in([example]) == len(steps)


def test_a_window_without_a_random_step_is_an_error(start):
    trainer, examples = start(dataclasses.replace(BRISK, window_start=0.75), pairs=PAIRS[:1])
    with pytest.raises(ValueError, match="window_start, window_end: none of the 4 recorded steps"):
        trainer.fit(examples)


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}])
def test_two_runs_from_one_seed_are_equal_to_the_bit(start, options):
    def run(settings, noise):
        trainer, examples = start(settings, **options)
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        history = trainer.fit(examples) + trainer.fit(examples)
        assert torch.equal(torch.random.get_rng_state(), before)
        return trainer.state()[0], history

    (one, history), (two, again) = run(RANDOM, noise=1), run(RANDOM, noise=2)
    assert same(one, two) and history == again
    assert not same(one, run(dataclasses.replace(RANDOM, seed=6), noise=1)[0])


@pytest.mark.parametrize("reference", ["base", "round start"])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(start, tmp_path, reference):
    settings = dataclasses.replace(RANDOM, reference=reference)
    whole, examples = start(settings, dropout=0.3)
    history = [metrics for _ in range(4) for metrics in whole.fit(examples)]

    first, examples = start(settings, dropout=0.3)
    again = [metrics for _ in range(2) for metrics in first.fit(examples)]
    tensors, step = first.state()
    save_file(tensors, tmp_path / "run.safetensors")
    second, examples = start(settings, dropout=0.3, seed=99)
    second.load_state(load_file(tmp_path / "run.safetensors"), step)
    again += [metrics for _ in range(2) for metrics in second.fit(examples)]

    assert again == history and second.step == whole.step == 8
    assert same(second.state()[0], whole.state()[0])
    assert any(name.endswith("exp_avg_sq") for name in tensors) and any(
        name.endswith(".step") for name in tensors
    )


def test_a_first_state_taken_up_by_a_trained_trainer_starts_it_over(start):
    trainer, examples = start()
    tensors, step = trainer.state()
    trainer.fit(examples)
    once = trainer.state()[0]
    trainer.load_state(tensors, step)
    trainer.fit(examples)
    assert same(trainer.state()[0], once)


def test_a_state_of_another_rank_is_refused(start, setup):
    trainer, examples = start(rank=3)
    trainer.fit(examples)
    other, _ = start()
    before = other.state()[0]
    with pytest.raises(ValueError, match="another rank"):
        other.load_state(*trainer.state())
    assert same(other.state()[0], before) and other.step == 0


def infinite_gradient(denoise):
    def spoiled(x, sigma):
        x0 = denoise(x, sigma)
        if x0.requires_grad:
            x0.register_hook(lambda gradient: gradient * math.inf)
        return x0

    return spoiled


@pytest.mark.parametrize(
    "spoil", [lambda denoise: lambda x, sigma: denoise(x, sigma) * math.nan, infinite_gradient]
)
def test_a_loss_or_gradient_that_is_not_finite_changes_nothing(start, spoil):
    trainer, examples = start(RANDOM)
    smooth, smooth_examples = start(RANDOM)
    trainer.update(examples[:2])
    smooth.update(smooth_examples[:2])
    before, step = trainer.state()
    bad = Example(examples[2].preferences, spoil(examples[2].denoise))
    with pytest.raises(
        NonFiniteLoss, match="update 2: .*kept the LoRA as it was. Lower learning_rate or beta"
    ):
        trainer.update([examples[0], bad])
    after, step_after = trainer.state()
    assert same(after, before) and step_after == step == 1
    trainer.update(examples[:2])
    smooth.update(smooth_examples[:2])
    assert same(trainer.state()[0], smooth.state()[0])


def counted(denoise, passes):
    def counting(x, sigma):
        passes.append(torch.is_grad_enabled())
        return denoise(x, sigma)

    return counting


def test_in_half_precision_a_loss_that_is_not_finite_ends_and_such_a_gradient_is_tried_at_lower_scales(
    start,
):
    for spoil, tries in (
        (lambda denoise: lambda x, sigma: denoise(x, sigma) * math.nan, 1),
        (infinite_gradient, 5),
    ):
        trainer, (example, *_) = start()
        trainer.loss_scale, passes = 2.0**4, []
        with pytest.raises(NonFiniteLoss, match="update 1"):
            trainer.update([Example(example.preferences, counted(spoil(example.denoise), passes))])
        assert sum(passes) == tries * len(example.candidates.actions)
        assert trainer.loss_scale == 2.0 ** (5 - tries)


def test_only_ties_are_an_error_that_says_what_to_do(start):
    trainer, examples = start()
    tied = [Example(Preferences(example.candidates, ()), example.denoise) for example in examples]
    with pytest.raises(ValueError, match="nothing to learn from.*Pick at least one winner"):
        trainer.fit(tied)
    with pytest.raises(ValueError, match="nothing to learn from"):
        trainer.fit([])


def test_tied_sets_are_left_out(start):
    with_tie, examples = start()
    tied = Example(Preferences(examples[0].candidates, ()), examples[0].denoise)
    with_tie.fit([tied, *examples])
    without, examples = start()
    without.fit(examples)
    assert same(with_tie.state()[0], without.state()[0])


def test_the_reference_is_the_base_or_the_lora_at_the_start_of_the_round(start):
    base, examples = start()
    rounds, same_examples = start(dataclasses.replace(BRISK, reference="round start"))
    assert base.fit(examples) == rounds.fit(same_examples)
    second = base.fit(examples)[0], rounds.fit(same_examples)[0]
    assert second[0]["KL to reference"] > 0 and second[0]["loss"] < math.log(2) - 1e-4
    assert second[1]["KL to reference"] < 1e-9 and second[1]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for trainer, examples, moved in ((base, examples, False), (rounds, same_examples, True)):
        example = examples[0]
        action = example.candidates.actions[-1]
        far = (trainer.reference.x0(example, action) - example.candidates.denoised[action]).abs().max()
        assert (far > 1e-4) == moved


def test_the_reference_is_computed_without_dropout(toy, start):
    settings = dataclasses.replace(BRISK, reference="round start")
    references = []
    for dropout in (0.0, 0.5):
        trainer, examples = start(settings, policy="elsewhere", dropout=dropout)
        toy.stir(trainer.adapter)
        trainer.fit(examples[:1])
        references.append(torch.stack([trainer.reference.x0(examples[0], i) for i in range(3)]))
    assert torch.equal(*references)


def test_dropout_acts_on_the_policy(toy, start):
    losses = []
    for dropout in (0.0, 0.5):
        trainer, examples = start(dropout=dropout)
        toy.stir(trainer.adapter)
        losses.append(trainer.update(examples)["loss"])
    assert losses[0] != losses[1]


def test_huge_seeds_work(start):
    trainer, examples = start(dataclasses.replace(RANDOM, seed=2**64 - 1), dropout=0.3, seed=2**64 - 1)
    assert all(math.isfinite(metrics["loss"]) for metrics in trainer.fit(examples))
    other, examples = start(dataclasses.replace(RANDOM, seed=2**64 - 2), dropout=0.3, seed=2**64 - 1)
    other.fit(examples)
    assert not same(trainer.state()[0], other.state()[0])


def test_an_adapter_that_lives_on_goes_on_from_where_it_is(toy, start):
    trainer, examples = start()
    trainer.fit(examples)
    net = toy.net()
    Adapter(net, rank=2, alpha=3.0, targets="all linear and convolutions").load(trainer.adapter.weights())
    x, sigma = examples[0].candidates.states[1], torch.full((3,), 4.0)
    assert torch.equal(net(x, sigma), trainer.adapter.root(x, sigma))
