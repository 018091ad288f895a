"""The trainer's batched, cached gradients against a naive loop and finite differences, in float64."""

import pytest
import torch

from d3po_core.candidates.preferences import Preferences
from d3po_core.training.loop import Example, Trainer
from tests.core.gradients import assert_same, gradients, log_p, still

PAIRS = (((0, 1), (0, 2), (2, 1), (3, 1)), ((1, 0),))
CASES = pytest.mark.parametrize(
    "weighting, beta, clip",
    [("paper", 3.0, 0.1), ("standardised", 20.0, 0.03), ("paper", 3.0, 0.0), ("standardised", 20.0, 0.0)],
)


def naive(adapter, settings, batch):
    """Pair by pair and step by step, four passes each: (gradients, metrics)."""
    losses, winners, losers, margins, clipped = [], [], [], [], []
    for example in batch:
        for pair in example.preferences.pairs:
            for i in range(len(example.candidates.sigmas) - 2):
                ratios = []
                for candidate in pair:
                    policy, weight = log_p(example, candidate, i)
                    with adapter.off():
                        reference, _ = log_p(example, candidate, i)
                    ratios.append(policy - reference)
                weight = weight if settings.weighting == "standardised" else 1.0
                w, l = (weight * ratio for ratio in ratios)
                if settings.clip:
                    kept = [r.exp().clamp(1 - settings.clip, 1 + settings.clip).log() for r in (w, l)]
                    clipped += [float(abs(r.expm1()) > settings.clip) for r in (w, l)]
                else:
                    kept = [w, l]
                losses.append(-torch.sigmoid(settings.beta * (kept[0] - kept[1])).log())
                winners.append(ratios[0].item())
                losers.append(ratios[1].item())
                margins.append(settings.beta * (w - l).item())
    mean_loss = torch.stack(losses).mean()
    metrics = {
        "loss": mean_loss.item(),
        "winner log-ratio": winners,
        "loser log-ratio": losers,
        "margin": margins,
        "implicit accuracy": [float(m > 0) for m in margins],
    } | ({"clip fraction": clipped} if clipped else {})
    return torch.autograd.grad(mean_loss, adapter.parameters()), {
        name: value if isinstance(value, float) else sum(value) / len(value)
        for name, value in metrics.items()
    }


@pytest.fixture
def stirred(toy, setup):
    """(adapter away from its start, examples sampled by the base) in float64."""
    denoise, adapter = setup(dtype=torch.float64)
    with adapter.off():
        examples = toy.examples(denoise, PAIRS, dtype=torch.float64, policy="elsewhere")
    toy.stir(adapter)
    return adapter, examples


@CASES
def test_an_update_equals_the_naive_loop_of_four_passes_per_pair(stirred, weighting, beta, clip):
    adapter, examples = stirred
    settings = still(weighting=weighting, beta=beta, clip=clip)
    ours, metrics = gradients(adapter, settings, examples)
    theirs, expected = naive(adapter, settings, examples)
    assert_same(ours, theirs)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-9)
    if clip:  # some ratios are held, some are not
        assert 0 < metrics["clip fraction"] < 1


@CASES
def test_gradients_equal_central_finite_differences(toy, setup, weighting, beta, clip):
    denoise, adapter = setup(dtype=torch.float64, targets="attention")
    with adapter.off():
        examples = toy.examples(denoise, PAIRS, dtype=torch.float64)
    toy.stir(adapter, size=0.3)
    trainer = Trainer(adapter, still(weighting=weighting, beta=beta, clip=clip), reference_policy="base")
    trainer.update(examples)
    analytic = [parameter.grad.clone() for parameter in adapter.parameters()]
    h, numeric = 1e-5, []
    for parameter in adapter.parameters():
        flat, slopes = parameter.data.view(-1), torch.zeros(parameter.numel(), dtype=torch.float64)
        for k in range(0, parameter.numel(), 2):
            value, sides = flat[k].item(), []
            for side in (h, -h):
                flat[k] = value + side
                sides.append(trainer.update(examples)["loss"])
            flat[k] = value
            slopes[k] = (sides[0] - sides[1]) / (2 * h)
        numeric.append(slopes)
    assert_same([g.flatten()[::2] for g in analytic], [g[::2] for g in numeric], tolerance=1e-6)


@pytest.mark.parametrize("per_pass", [1, 2, 3])
def test_candidates_per_pass_changes_memory_and_not_the_gradient(stirred, per_pass):
    adapter, examples = stirred
    together, metrics = gradients(adapter, still(beta=3.0), examples)
    apart, metrics_apart = gradients(adapter, still(beta=3.0, candidates_per_pass=per_pass), examples)
    assert_same(apart, together, tolerance=1e-10)
    assert metrics_apart == pytest.approx(metrics, rel=1e-9)


def test_the_recorded_reference_gives_the_gradient_of_a_reference_pass(stirred):
    adapter, examples = stirred
    recorded, _ = gradients(adapter, still(beta=3.0), examples, reference_policy="elsewhere")
    computed, _ = gradients(adapter, still(beta=3.0), examples)
    assert_same(recorded, computed, tolerance=1e-10)


def test_a_recorded_reference_is_refused_when_the_model_changed_under_its_name(stirred):
    adapter, examples = stirred
    before, _ = gradients(adapter, still(beta=3.0), examples)
    adapter.root.conv_out.get_base_layer().weight.mul_(1.5)
    recorded, _ = gradients(adapter, still(beta=3.0), examples, reference_policy="elsewhere")
    computed, _ = gradients(adapter, still(beta=3.0), examples)
    assert_same(recorded, computed, tolerance=1e-12)
    with pytest.raises(AssertionError):
        assert_same(before, computed, tolerance=1e-2)


def test_the_order_of_pairs_and_of_examples_does_not_matter(stirred):
    adapter, examples = stirred
    turned = [
        Example(Preferences(example.candidates, example.preferences.pairs[::-1]), example.denoise)
        for example in reversed(examples)
    ]
    ours, _ = gradients(adapter, still(beta=3.0), examples)
    theirs, _ = gradients(adapter, still(beta=3.0), turned)
    assert_same(ours, theirs, tolerance=1e-10)


def test_at_the_start_swapping_winner_and_loser_negates_the_gradient(toy, setup):
    denoise, adapter = setup(dtype=torch.float64)
    examples = toy.examples(denoise, PAIRS, dtype=torch.float64)
    swapped = [
        Example(
            Preferences(example.candidates, tuple((l, w) for w, l in example.preferences.pairs)),
            example.denoise,
        )
        for example in examples
    ]
    ours, _ = gradients(adapter, still(), examples)
    theirs, _ = gradients(adapter, still(), swapped)
    assert_same(ours, [-g for g in theirs], tolerance=1e-10)


def test_every_pair_weighs_alike_whatever_set_it_belongs_to(stirred):
    adapter, (many, one) = stirred
    both, _ = gradients(adapter, still(beta=3.0), [many, one])
    alone = [gradients(adapter, still(beta=3.0), [example])[0] for example in (many, one)]
    assert_same(both, [(4 * a + b) / 5 for a, b in zip(*alone)], tolerance=1e-10)


def test_gradients_are_clipped_by_their_total_norm_and_the_metric_is_the_norm_before(stirred):
    adapter, examples = stirred
    free, metrics = gradients(adapter, still(beta=3.0), examples)
    norm = torch.cat([g.flatten() for g in free]).norm().item()
    clipped, clipped_metrics = gradients(adapter, still(beta=3.0, max_grad_norm=norm / 4), examples)
    assert metrics["gradient norm"] == clipped_metrics["gradient norm"] == pytest.approx(norm, rel=1e-9)
    assert_same(clipped, [g / 4 for g in free], tolerance=1e-4)
