"""What holds for every method in the trainer, and what for some."""

import math
from dataclasses import replace

import pytest
import torch

from d3po_core.training.evaluation import evaluate
from d3po_core.training.loop import Example, Settings, Trainer
from d3po_core.training.methods import METHODS, NOISED, PAIRS, TASTE
from tests.core.gradients import assert_same, gradients, log_p, overall, still
from tests.core.judged import JUDGED, SETTINGS, Predictor, update


def any_kind(recorded, drawn, name, **options):
    return (drawn if METHODS[name].terms == NOISED else recorded)(**options)


@pytest.mark.parametrize("per_pass", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_how_candidates_are_split_into_passes_does_not_matter(toy, recorded, drawn, name, per_pass):
    adapter, examples = any_kind(recorded, drawn, name)
    start = adapter.weights()
    toy.stir(adapter, seed=3)
    settings = replace(SETTINGS, method=name)
    whole, metrics = update(adapter, settings, examples, start)
    parts, same_metrics = update(adapter, replace(settings, candidates_per_pass=per_pass), examples, start)
    assert_same(whole, parts, tolerance=1e-9)
    assert metrics == pytest.approx(same_metrics, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_pairs_and_sets_does_not_matter(recorded, drawn, name):
    adapter, examples = any_kind(recorded, drawn, name)
    turned = [
        Example(replace(e.preferences, pairs=e.preferences.pairs[::-1]), e.denoise)
        for e in reversed(examples)
    ]
    settings = replace(SETTINGS, method=name)
    assert_same(*(update(adapter, settings, each)[0] for each in (examples, turned)), tolerance=1e-9)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.of == PAIRS])
def test_equal_images_pull_nowhere(toy, recorded, drawn, name):
    """Noise, timestep, caption and flips are alike within a pair too: else equal images would differ."""
    one = (dict(pairs=((0, 1), (2, 3)), scores=(1.0, 0.0, 1.0, 0.0)),)
    adapter, (example,) = any_kind(recorded, drawn, name, judged=one)
    held = example.candidates
    if not held.recorded:
        same = replace(held, latents=held.latents[:1].expand(4, -1, -1, -1))
    else:
        same = replace(
            held,
            states=held.states[:, :1].expand(-1, 4, -1, -1, -1),
            denoised=held.denoised[:, :1].expand(-1, 4, -1, -1, -1),
        )
    unprompted = lambda x, sigma: 0.5 * example.denoise(x, sigma)
    equal = Example(replace(example.preferences, candidates=same), example.denoise, unprompted)
    settings = replace(SETTINGS, method=name, winner_weight=0.0, caption_dropout=0.5, draws_per_set=8)
    found, metrics = update(adapter, settings, [equal])
    assert abs(metrics["margin"]) < 1e-12
    if name in ("MaPO", "Diffusion-SDPO"):  # these also lower the winner's own error
        return
    assert all(gradient.abs().max() < 1e-13 for gradient in found)
    assert metrics["loss"] == pytest.approx(0.25 if name == "IPO" else math.log(2), abs=1e-12)
    assert metrics["winner log-ratio"] == pytest.approx(metrics["loser log-ratio"], abs=1e-12)


AT_THE_START = {
    "D3PO": math.log(2),
    "Diffusion-DPO": math.log(2),
    "IPO": 0.25,
    "DPO with label smoothing": math.log(2),
    "DPO with winner anchor": math.log(2),
    "Diffusion-SDPO": math.log(2),
    "beta-DPO": math.log(2),
    "Diffusion-KTO": 0.5,
    "DDPO": 0.0,
    "DPOK": 0.0,
    "reward-weighted": 0.0,
    "supervised": 0.0,
}


@pytest.mark.parametrize("name", AT_THE_START)
def test_before_training_the_loss_is_that_of_a_policy_that_is_the_reference(recorded, drawn, name):
    adapter, examples = any_kind(recorded, drawn, name, size=0.0, dtype=torch.float32)
    _, metrics = gradients(adapter, replace(SETTINGS, method=name), examples)
    assert metrics["loss"] == pytest.approx(AT_THE_START[name], abs=1e-6) and metrics["gradient norm"] > 0
    # the reference's pass holds all candidates, a method's those it learns from: float32 differs by batch
    assert abs(metrics["winner log-ratio"]) < 1e-7 and metrics["KL to reference"] < 1e-12


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, method in METHODS.items()
        if method.of == PAIRS and name not in ("DPO with winner anchor", "MaPO", "Diffusion-SDPO")
    ],
)
def test_at_the_start_swapping_every_pair_negates_the_gradient(recorded, drawn, name):
    adapter, examples = any_kind(recorded, drawn, name, size=0.0)
    swapped = [
        Example(replace(e.preferences, pairs=tuple((l, w) for w, l in e.preferences.pairs)), e.denoise)
        for e in examples
    ]
    settings = replace(SETTINGS, method=name)
    ours, theirs = (gradients(adapter, settings, each)[0] for each in (examples, swapped))
    assert_same(ours, [-g for g in theirs], tolerance=1e-9)


LEARNING = still(
    learning_rate=5e-3,
    beta=20.0,
    dpo_beta=60.0,
    clip=0.0,
    weighting="standardised",
    epochs=40,
    ratio_clip=0.2,
    reward_beta=1.0,
    mapo_beta=3.0,
    draws_per_set=4,
    sets_per_update=2,
)


# a taste's gradient goes through the network, and one that was never trained leads it anywhere
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.of != TASTE])
def test_training_moves_the_preferred_candidates_ahead(recorded, drawn, name):
    adapter, examples = any_kind(recorded, drawn, name, size=0.0, dtype=torch.float32)
    trainer = Trainer(adapter, replace(LEARNING, method=name))
    before = evaluate(trainer, examples)
    trainer.fit(examples)
    after = evaluate(trainer, examples)
    assert before["held-out accuracy"] == 0.5 and after["held-out margin"] > before["held-out margin"] == 0
    assert after["held-out accuracy"] > 0.7


@pytest.mark.parametrize("name", METHODS)
def test_training_that_was_stopped_goes_on_to_the_bit(recorded, drawn, name):
    settings = replace(LEARNING, method=name, epochs=6, sets_per_update=1, candidates_per_pass=2)
    adapter, examples = any_kind(recorded, drawn, name, size=0.0, dtype=torch.float32)
    whole, kept = Trainer(adapter, settings), {}
    history = whole.fit(examples, after_update=lambda made: kept.update({len(made): whole.state()}))
    adapter, examples = any_kind(recorded, drawn, name, size=0.0, dtype=torch.float32)
    again = Trainer(adapter, settings)
    again.load_state(*kept[5])
    assert again.fit(examples, history=history[:5], round_start=whole.round_start) == history
    (one, _), (other, _) = whole.state(), again.state()
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# --- what holds for some ---


def test_ddpos_first_gradient_is_the_policy_gradient(recorded):
    """advantage * d log p, by REINFORCE, where the policy has not moved since it sampled."""
    adapter, examples = recorded()
    ours, metrics = gradients(adapter, replace(SETTINGS, method="DDPO"), examples)
    value, count = 0.0, 0
    for example, judged in zip(examples, JUDGED):
        scores = torch.tensor(judged["scores"], dtype=torch.float64)
        gains = (scores - scores.mean()) / (scores.std(correction=0) + 1e-6)
        actions = range(len(example.candidates.sigmas) - 2)
        value -= sum(
            gain * log_p(example, i, step)[0] for i, gain in enumerate(gains) for step in actions
        ) / len(actions)
        count += len(scores)
    assert_same(ours, torch.autograd.grad(value / count, adapter.parameters()), tolerance=1e-6)
    assert metrics["loss"] == pytest.approx(0, abs=1e-6)


def test_ddpo_takes_the_recorded_x0_of_the_policy_that_sampled(toy, recorded):
    adapter, examples = recorded(dtype=torch.float32)
    settings = replace(SETTINGS, method="DDPO")

    def passes(policy):
        denoise = examples[0].denoise
        by_start = [
            Example(
                replace(
                    e.preferences,
                    candidates=replace(
                        toy.record(denoise, e.candidates.count, seed, torch.float32), policy=policy
                    ),
                ),
                denoise,
            )
            for seed, e in enumerate(examples)
        ]
        trainer = Trainer(adapter, settings, "base", start_policy="start")
        denoise.batches.clear(), denoise.with_gradient.clear()
        trainer.update(by_start)
        return sum(n for n, grad in zip(denoise.batches, denoise.with_gradient) if not grad)

    candidates, steps = 6, 3
    # the base as reference, and one check of each step of both recordings
    assert passes("start") == candidates * steps + 2 * steps
    assert passes("elsewhere") == 2 * candidates * steps


def test_mapo_takes_no_pass_of_a_reference(drawn):
    adapter, examples = drawn()
    _, metrics = gradients(adapter, replace(SETTINGS, method="MaPO"), examples)
    assert all(examples[0].denoise.with_gradient) and "KL to reference" not in metrics
    assert "winner log-ratio" not in metrics and 0 <= metrics["implicit accuracy"] <= 1


WRONG = {"recorded": ("MaPO", "Diffusion-DPO", "DiffusionNFT"), "drawn": ("DDPO", "DPOK")}


@pytest.mark.parametrize("name, wrong", [(name, kind) for kind, names in WRONG.items() for name in names])
def test_a_method_that_cannot_learn_from_these_candidates_says_so(recorded, drawn, name, wrong):
    adapter, examples = {"recorded": recorded, "drawn": drawn}[wrong]()
    with pytest.raises(ValueError, match=f"method: {name} learns from"):
        Trainer(adapter, replace(SETTINGS, method=name)).fit(examples)


@pytest.mark.parametrize(
    "name, judged, left",
    [
        ("Diffusion-KTO", dict(pairs=(), scores=(1.0, 1.0), liked=(True, True)), 1),
        ("supervised", dict(pairs=(), scores=(1.0, 1.0), liked=(None, True)), 1),
        ("supervised", dict(pairs=(), scores=(1.0, 1.0), liked=(False, None)), 0),
        ("Diffusion-KTO", dict(pairs=(), scores=(1.0, 1.0), liked=()), 0),
        ("DDPO", dict(pairs=(), scores=(1.0, 1.0), liked=()), 0),
        ("DDPO", dict(pairs=(), scores=(1.0, 2.0), liked=()), 1),
        ("D3PO", dict(pairs=(), scores=(1.0, 2.0), liked=(True, False)), 0),
    ],
)
def test_a_set_is_used_where_it_says_what_the_method_learns_from(recorded, name, judged, left):
    adapter, examples = recorded(judged=(judged,), dtype=torch.float32)
    trainer = Trainer(adapter, replace(SETTINGS, method=name))
    assert trainer.updates_in(examples) == left
    if left:
        assert len(trainer.fit(examples)) == 1
    else:
        with pytest.raises(ValueError, match="preferences: there is nothing to learn from"):
            trainer.fit(examples)


def test_sets_without_pairs_still_tell_how_far_liked_and_disliked_moved(recorded):
    adapter, examples = recorded(judged=(dict(pairs=(), scores=(1.0, 1.0, 1.0), liked=(True, False, None)),))
    _, metrics = gradients(adapter, replace(SETTINGS, method="Diffusion-KTO"), examples)
    assert {"winner log-ratio", "loser log-ratio", "KL to reference"} <= set(
        metrics
    ) and "margin" not in metrics
    assert metrics["winner log-ratio"] != metrics["loser log-ratio"]


def test_the_usual_margin_is_a_moving_average_over_updates(recorded):
    adapter, examples = recorded(dtype=torch.float32)
    trainer = Trainer(adapter, replace(LEARNING, method="beta-DPO", epochs=3))
    usual = 0.0
    for metrics in trainer.fit(examples):
        usual = 0.9 * usual + 0.1 * metrics["margin"]
    assert trainer.usual_margin == pytest.approx(usual) != 0


def test_captions_drop_for_a_whole_set_by_policy_and_reference_alike_at_the_rate_asked_for(drawn):
    adapter, (example, _) = drawn()
    prompted, unprompted = Predictor(adapter.root), Predictor(adapter.root)
    trainer = Trainer(adapter, replace(SETTINGS, caption_dropout=0.2, draws_per_set=10))
    for _ in range(20):
        trainer.update([Example(example.preferences, prompted, unprompted)])
    for denoise in (prompted, unprompted):
        assert set(denoise.batches) == {4} and sum(denoise.with_gradient) == len(denoise.with_gradient) / 2
    assert 0.12 < sum(unprompted.with_gradient) / 200 < 0.28
    unprompted.batches.clear()
    evaluate(trainer, [Example(example.preferences, prompted, unprompted)])
    assert not unprompted.batches


def test_without_a_denoiser_for_no_prompt_captions_stay(drawn):
    ends = []
    for dropout in (0.0, 1.0):
        adapter, examples = drawn(dtype=torch.float32)
        trainer = Trainer(
            adapter, replace(LEARNING, method="Diffusion-DPO", epochs=3, caption_dropout=dropout)
        )
        trainer.fit([replace(example, unconditional=None) for example in examples])
        ends.append(torch.cat([weight.flatten() for weight in trainer.trained().values()]))
    assert torch.equal(*ends)


def test_no_pass_ever_holds_candidates_of_two_sets(recorded):
    """So the conditioning of one prompt, such as SDXL's sizes, cannot get mixed up with another's."""
    adapter, examples = recorded(dtype=torch.float32)
    denoisers = []
    for example in examples:
        own = {tuple(x.flatten().tolist()) for x in example.candidates.states.flatten(0, 1)}

        def denoise(x, sigma, own=own, inner=example.denoise):
            assert all(tuple(one.flatten().tolist()) in own for one in x)
            return inner(x, sigma)

        denoisers.append(Example(example.preferences, denoise))
    trainer = Trainer(adapter, replace(LEARNING, sets_per_update=2, epochs=2))
    trainer.fit(denoisers)
    evaluate(trainer, denoisers)


CHANGED = dict(
    leash=1e-3,
    beta=5.0,
    clip=0.01,
    weighting="standardised",
    reference="round start",
    learning_rate=1e-2,
    weight_decay=0.5,
    max_grad_norm=1e-3,
    epochs=2,
    sets_per_update=2,
    step_fraction=0.34,
    seed=3,
    dpo_beta=9.0,
    draws_per_set=2,
    method="IPO",
    caption_dropout=0.9,
    label_smoothing=0.4,
    winner_weight=0.9,
    winner_share=0.1,
    adaptation=0.1,
    adaptation_bound=1.01,
    optimizer="AdamW schedule-free",
    schedule="cosine",
    warmup=5,
    ema=0.9,
    window_start=0.4,
    window_end=0.3,
    mapo_beta=4.0,
    mapo_snr=2.0,
    nft_beta=0.5,
    ratio_clip=0.5,
    kl_weight=5.0,
    reward_beta=2.0,
)
METHOD_OF = dict(
    seed="Diffusion-DPO",
    dpo_beta="Diffusion-DPO",
    draws_per_set="Diffusion-DPO",
    caption_dropout="Diffusion-DPO",
    label_smoothing="DPO with label smoothing",
    winner_weight="DPO with winner anchor",
    winner_share="Diffusion-SDPO",
    adaptation="beta-DPO",
    adaptation_bound="beta-DPO",
    mapo_beta="MaPO",
    mapo_snr="MaPO",
    nft_beta="DiffusionNFT",
    ratio_clip="DDPO",
    kl_weight="DPOK",
    reward_beta="reward-weighted",
)


OF_MEMORY = {"candidates_per_pass", "checkpointing"}  # they change nothing that is learned


@pytest.mark.parametrize("name", [name for name in Settings.__dataclass_fields__ if name not in OF_MEMORY])
def test_no_setting_is_a_dead_name(recorded, drawn, name):
    """Each changes the LoRA that comes out."""
    settings = Settings(
        method=METHOD_OF.get(name, "D3PO"), learning_rate=1e-3, beta=20.0, dpo_beta=500.0, epochs=3
    )
    ends = []
    for chosen in (settings, replace(settings, **{name: CHANGED[name]})):
        adapter, examples = any_kind(recorded, drawn, settings.method, size=0.02, dtype=torch.float32)
        unprompted = lambda x, sigma: 0.5 * examples[0].denoise(x, sigma)
        trainer = Trainer(adapter, chosen)
        trainer.fit([Example(e.preferences, e.denoise, unprompted) for e in examples])
        ends.append(torch.cat([w.flatten() for w in trainer.trained().values()]))
    assert not torch.equal(*ends)


def test_every_setting_is_changed_here():
    assert set(CHANGED) == set(Settings.__dataclass_fields__) - OF_MEMORY


def test_held_out_figures_come_by_quarter_and_with_the_kl(recorded):
    adapter, examples = recorded()
    told = evaluate(Trainer(adapter, SETTINGS), examples)
    assert {name for name in told if "quarter" in name} <= {
        f"held-out margin, noise quarter {i}" for i in (1, 2, 3, 4)
    }
    assert set(overall(told)) == {
        "held-out accuracy",
        "held-out margin",
        "held-out KL to reference",
        "held-out pairs",
    }
    by_quarter = [value for name, value in told.items() if "quarter" in name]
    assert (
        min(by_quarter) <= told["held-out margin"] <= max(by_quarter) and told["held-out KL to reference"] > 0
    )
