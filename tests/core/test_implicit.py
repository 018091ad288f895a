"""The implicit reward against closed forms in float64, the trainer and other libraries' statistics."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from d3po_core.candidates.images import CleanCandidates
from d3po_core.candidates.preferences import Preferences
from d3po_core.training import implicit
from d3po_core.training.adapter import Adapter
from d3po_core.training.evaluation import evaluate
from d3po_core.training.loop import Example, Settings, Trainer
from d3po_core.training.randomness import generator_of

SIGMAS = torch.linspace(0.03, 3.83, 50, dtype=torch.float64).exp() - 1
PREDICTIONS = pytest.mark.parametrize("prediction", ["epsilon", "v"])


def clean(latents, prediction="epsilon", name="images"):
    return CleanCandidates(latents, SIGMAS, prediction, name, "net")


def random_images(n, seed=0, size=4):
    return torch.randn(n, 2, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(gain):
    """The denoiser x0 = gain x, which knows no sigma."""
    return lambda x, sigma: gain * x


# --- errors ---


def linear_errors(candidates, gain, draws, seed):
    """(gain (x0 + sigma noise) - x0)^2 in closed form: a quadratic in the noise, over the target's scale."""
    rows = []
    for sigma, noise in candidates.draws(draws, seeded(seed)):
        level, x0 = sigma.item(), candidates.latents
        square = lambda a, b: (a * b).flatten(1).mean(1)
        error = (
            (gain - 1) ** 2 * square(x0, x0)
            + 2 * gain * (gain - 1) * level * square(x0, noise)
            + gain**2 * level**2 * square(noise, noise)
        )
        rows.append(error / (level**2 if candidates.prediction == "epsilon" else level**2 / (1 + level**2)))
    return torch.stack(rows)


@PREDICTIONS
def test_errors_of_a_linear_denoiser_are_a_known_quadratic(prediction):
    candidates = clean(random_images(5), prediction)
    ours = implicit.errors(candidates, linear(0.3), 7, seeded(3))
    assert ours.shape == (7, 5) and ours.dtype == torch.float64
    torch.testing.assert_close(ours, linear_errors(candidates, 0.3, 7, 3), rtol=1e-10, atol=1e-12)


def test_errors_have_the_expectation_that_the_papers_have():
    """E[(g (x0 + s n) - x0)^2 / s^2] = (g - 1)^2 mean(x0^2) / s^2 + g^2, over n ~ N(0, 1) at one level."""
    images, level = random_images(3, size=8), 1.7
    candidates = CleanCandidates(
        images, torch.tensor([level], dtype=torch.float64), "epsilon", "images", "net"
    )
    ours = implicit.errors(candidates, linear(0.6), 2000, seeded())
    expected = 0.16 * images.square().mean((1, 2, 3)) / level**2 + 0.36
    torch.testing.assert_close(ours.mean(0), expected, rtol=0.01, atol=0)


def test_levels_rise_from_draw_to_draw():
    """A denoiser that gives nothing back has mean(x0^2) / sigma^2, which tells the level."""
    ours = implicit.errors(clean(torch.ones(1, 2, 4, 4, dtype=torch.float64)), linear(0.0), 10, seeded())
    assert (ours.diff(dim=0) < 0).all()


def test_all_candidates_have_one_noise_and_one_level():
    candidates = clean(random_images(1).expand(3, -1, -1, -1))
    ours = implicit.errors(candidates, linear(0.7), 6, seeded())
    assert torch.equal(ours, ours[:, :1].expand_as(ours))
    assert len(set(ours[:, 0].tolist())) == 6


@pytest.mark.parametrize("per_pass", [1, 2, 3])
def test_how_many_go_together_changes_nothing_but_the_passes(per_pass):
    batches = []

    def denoise(x, sigma):
        assert sigma.shape == (len(x),)
        batches.append(len(x))
        return 0.5 * x

    candidates = clean(random_images(5))
    ours = implicit.errors(candidates, denoise, 4, seeded(), per_pass=per_pass)
    assert torch.equal(ours, implicit.errors(candidates, linear(0.5), 4, seeded(), per_pass=5))
    assert sum(batches) == 20 and max(batches) == per_pass


# --- rewards ---


def test_rewards_are_half_beta_times_what_the_error_fell_by():
    error, ref_error = torch.tensor([[1.0, 3.0]]).double(), torch.tensor([[2.0, 2.5]]).double()
    assert implicit.rewards(error, ref_error, beta=10.0).tolist() == [[5.0, -2.5]]
    assert implicit.rewards(error, ref_error).tolist() == [[2500.0, -1250.0]]


def test_the_reward_of_a_linear_denoiser_is_known():
    """Policy x0 = 0.8 x, reference 0.5 x: the one with the higher gain denoises bright images better."""
    images = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64).view(3, 1, 1, 1).expand(3, 2, 16, 16)
    candidates = clean(images)
    policy, reference = (implicit.errors(candidates, linear(g), 40, seeded(1)) for g in (0.8, 0.5))
    ours = implicit.rewards(policy, reference, beta=2.0).mean(0)
    expected = (linear_errors(candidates, 0.5, 40, 1) - linear_errors(candidates, 0.8, 40, 1)).mean(0)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    assert ours.argsort(descending=True).tolist() == [2, 1, 0]


def test_one_model_twice_gives_exactly_0():
    candidates = clean(random_images(3).float())
    one, other = (implicit.errors(candidates, linear(0.9), 5, seeded(2)) for _ in range(2))
    assert not implicit.rewards(one, other).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value):
    error = torch.tensor([[1.0, value]]).double()
    with pytest.raises(ValueError, match="not a finite number.*bf16 or fp32"):
        implicit.rewards(error, torch.ones(1, 2).double())


@PREDICTIONS
def test_margins_are_those_of_the_trainers_held_out_pairs(toy, prediction):
    """The same draws through an adapter's two policies: the trainer's evaluation and ours must agree."""
    net = toy.net(dtype=torch.float64)
    adapter, denoise = Adapter(net, rank=2, alpha=3.0, targets="all linear"), toy.Denoiser(net)
    toy.stir(adapter, size=0.3)
    pairs = ((0, 1), (2, 1), (3, 0))
    sets = [clean(random_images(4, seed), prediction, f"images {seed}") for seed in range(3)]
    told = evaluate(
        Trainer(adapter, Settings(dpo_beta=70.0)),
        [Example(Preferences(one, pairs), denoise) for one in sets],
        draws=6,
    )
    margins = []
    for one in sets:
        policy = implicit.errors(one, denoise, 6, generator_of(one.set_id))
        with adapter.off():
            reference = implicit.errors(one, denoise, 6, generator_of(one.set_id))
        mean = implicit.rewards(policy, reference, beta=70.0).mean(0)
        margins.append(torch.stack([mean[w] - mean[l] for w, l in pairs]))
    result = implicit.accuracy(margins)
    assert result.margin == pytest.approx(told["held-out margin"], rel=1e-9) and abs(result.margin) > 1e-6
    assert result.share == told["held-out accuracy"]


# --- noise ---


def test_the_standard_error_is_by_differences_of_neighbours():
    values = torch.tensor([[1.0, 0.0], [4.0, 0.0], [2.0, 0.0]]).double()
    assert implicit.standard_error(values).tolist() == pytest.approx([math.sqrt((9 + 4) / 2 / 6), 0.0])


def test_of_independent_draws_it_is_the_usual_one():
    values = torch.randn(8, 50_000, generator=seeded(), dtype=torch.float64) * 3
    assert implicit.standard_error(values).square().mean() == pytest.approx(9 / 8, rel=0.02)


def test_of_stratified_draws_it_leaves_out_what_the_levels_differ_by():
    """A trend over the levels and some noise. The spread over many repetitions is held against ours."""
    trend = 50 * torch.linspace(0, 1, 16, dtype=torch.float64)[:, None]
    values = trend + torch.randn(16, 20_000, generator=seeded(), dtype=torch.float64) * 5
    told, true = implicit.standard_error(values).square().mean().sqrt(), values.mean(0).std()
    naive = (values.var(0).mean() / 16).sqrt()
    assert told == pytest.approx(float(true), rel=0.15)
    assert naive > 2 * true


def test_differences_have_the_error_of_paired_draws():
    own, shared = (torch.randn(9, n, generator=seeded(n), dtype=torch.float64) for n in (3, 1))
    values = own + 10 * shared
    mean, error = implicit.differences(values)
    for a in range(3):
        for b in range(3):
            assert mean[a, b] == pytest.approx(float(values[:, a].mean() - values[:, b].mean()), abs=1e-12)
            assert error[a, b] == pytest.approx(float(implicit.standard_error(values[:, a] - values[:, b])))
    assert error.max() < implicit.standard_error(values).min(), (
        "what the draws share is no noise of a difference"
    )


def test_strict_pairs_differ_by_more_than_so_many_standard_errors():
    draws = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()  # standard error sqrt(4 / 8)
    values = torch.stack([draws + 1.0, 0 * draws, draws, 0 * draws], dim=1)
    assert implicit.strict_pairs(values) == [(0, 1), (0, 2), (0, 3)]
    assert implicit.strict_pairs(values, 1.0) == [(0, 1), (0, 2), (0, 3)]
    assert implicit.strict_pairs(values, 1.5) == [(0, 2)], (
        "the two share their draws, so nothing of it is noise"
    )


# --- accuracy ---


def test_accuracy_counts_signs_and_ties_half():
    margins = [torch.tensor([1.0, -2.0]), torch.tensor([0.0]), torch.tensor([4.0])]
    result = implicit.accuracy(margins)
    assert (result.share, result.margin) == (0.625, 0.75)
    assert 0 < result.low < result.share < result.high < 1


@pytest.mark.parametrize("right, n", [(0, 9), (1, 9), (13, 20), (20, 20), (350, 1000)])
def test_the_interval_is_wilsons(right, n):
    low, high = implicit.wilson(right / n, n)
    theirs = scipy.stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


@pytest.mark.parametrize("right, n", [(1, 9), (13, 20), (350, 1000)])
def test_pairs_of_as_many_sets_are_worth_themselves(right, n):
    assert implicit.effective_pairs([torch.tensor([float(i < right)]) for i in range(n)]) == pytest.approx(n)


def test_pairs_that_always_agree_within_a_set_are_worth_about_one_per_set():
    sets = [torch.full((7,), float(i % 3 > 0)) for i in range(30)]
    assert implicit.effective_pairs(sets) == pytest.approx(30, rel=0.05)


def test_what_pairs_are_worth_is_known_from_leaving_one_set_out_at_a_time():
    """The jackknife over sets has the same variance where all sets are of one size."""
    right = torch.from_numpy(clustered(np.random.default_rng(2), 8, 5))
    left_out = torch.stack([torch.cat([right[:i], right[i + 1 :]]).mean() for i in range(8)])
    variance = 7 / 8 * (left_out - right.mean()).square().sum()
    expected = right.var() / variance  # the sample variance, so that independent pairs are worth themselves
    assert 8 < expected < 40
    assert implicit.effective_pairs(list(right)) == pytest.approx(float(expected))


def test_pairs_are_never_worth_more_than_they_are():
    assert implicit.effective_pairs([torch.tensor([0.0, 1.0])] * 5) == 10
    assert implicit.effective_pairs([torch.tensor([0.0, 1.0])] * 4 + [torch.tensor([1.0])]) == 9
    assert implicit.effective_pairs([torch.tensor([0.5, 0.5])] * 5) == 10


@pytest.mark.parametrize("sets, worth", [([[1, 1, 1]] * 4, 4), ([[0, 0]] * 3, 3), ([[1, 0, 1, 1]], 1)])
def test_where_nothing_tells_how_alike_a_sets_pairs_are_it_is_worth_one(sets, worth):
    assert implicit.effective_pairs([torch.tensor(one, dtype=torch.float64) for one in sets]) == worth


def clustered(rng, sets, pairs, share=0.7, alike=0.5):
    """Right or wrong for each pair, [sets, pairs]: beta-binomial, of correlation `alike` within a set."""
    scale = 1 / alike - 1
    return (rng.random((sets, pairs)) < rng.beta(share * scale, (1 - share) * scale, (sets, 1))).astype(float)


def test_the_interval_holds_the_truth_95_times_in_100_though_pairs_of_a_set_are_alike():
    rng, held, naive_held, repeats = np.random.default_rng(0), 0, 0, 1500
    for _ in range(repeats):
        right = clustered(rng, 24, 8)
        result = implicit.accuracy(list(torch.from_numpy(2 * right - 1)))
        held += result.low <= 0.7 <= result.high
        naive = implicit.wilson(right.mean(), right.size)
        naive_held += naive[0] <= 0.7 <= naive[1]
    assert 0.925 < held / repeats < 0.98
    assert naive_held / repeats < 0.75, "as if all pairs were independent"


def test_the_interval_is_about_that_of_a_bootstrap_over_sets():
    rng = np.random.default_rng(1)
    right = clustered(rng, 200, 6)
    result = implicit.accuracy(list(torch.from_numpy(2 * right - 1)))
    bootstrap = scipy.stats.bootstrap(
        (right.mean(1),), np.mean, method="percentile", rng=rng
    ).confidence_interval
    assert (result.low, result.high) == pytest.approx((bootstrap.low, bootstrap.high), abs=0.01)
