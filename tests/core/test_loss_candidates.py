"""Losses of single candidates: likes and dislikes, and the policy-gradient baselines."""

import inspect
import math

import pytest
import torch

from d3po_core.training import losses

RATIOS, SCORES, LIKED = [0.05, -0.3, 0.4, -0.01], [1.0, 4.0, 2.5, 2.5], [True, False, True, False]

CANDIDATE_LOSSES = {
    "kto": lambda r: losses.kto(r, torch.tensor(LIKED), tensor(0.03), beta=3.0),
    "ddpo": lambda r: losses.ddpo(r, tensor(*SCORES) - 2.5, clip=0.1),
    "dpok": lambda r: losses.dpok(r, tensor(*SCORES) - 2.5, r.square(), kl_weight=0.7, clip=0.1),
    "rwr": lambda r: losses.rwr(r, tensor(*SCORES)),
    "sft": losses.sft,
}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slope(f, *ratios):
    log_ratio = tensor(*ratios).requires_grad_()
    return torch.autograd.grad(f(log_ratio), log_ratio)[0].tolist()


@pytest.mark.parametrize("name", CANDIDATE_LOSSES)
def test_gradients_match_finite_differences(name):
    assert torch.autograd.gradcheck(CANDIDATE_LOSSES[name], (tensor(*RATIOS).requires_grad_(),))


@pytest.mark.parametrize("name", CANDIDATE_LOSSES)
def test_losses_are_scalars(name):
    assert CANDIDATE_LOSSES[name](tensor(*RATIOS)).shape == ()


def test_losses_do_not_depend_on_the_order_of_candidates():
    order, r, scores, liked = [2, 0, 3, 1], tensor(*RATIOS), tensor(*SCORES), torch.tensor(LIKED)
    for value, shuffled in [
        (losses.kto(r, liked, r.square()), losses.kto(r[order], liked[order], r[order].square())),
        (losses.ddpo(r, losses.advantages(scores)), losses.ddpo(r[order], losses.advantages(scores[order]))),
        (losses.rwr(r, scores), losses.rwr(r[order], scores[order])),
    ]:
        assert value.item() == pytest.approx(shuffled.item(), abs=1e-14)


# --- likes and dislikes ---


def test_kto_closed_form():
    z = 0.03
    expected = sum(1 - sigmoid(3.0 * (r - z if good else z - r)) for r, good in zip(RATIOS, LIKED)) / 4
    assert CANDIDATE_LOSSES["kto"](tensor(*RATIOS)).item() == pytest.approx(expected, abs=1e-14)


def test_kto_starts_at_a_half_and_lifts_the_liked_and_lowers_the_disliked():
    def kto(r):
        return losses.kto(r, torch.tensor([True, False]), tensor(0.0), beta=2.0)

    assert kto(tensor(0.0, 0.0)).item() == 0.5
    assert slope(kto, 0.0, 0.0) == [-2.0 / 4 / 2, 2.0 / 4 / 2]


def test_changing_every_like_mirrors_kto():
    r, liked, z = tensor(*RATIOS), torch.tensor(LIKED), tensor(0.03)
    assert (losses.kto(r, liked, z, 3.0) + losses.kto(r, ~liked, z, 3.0)).item() == pytest.approx(
        1, abs=1e-14
    )


def test_ktos_reference_point_is_the_mean_kl_and_passes_no_gradient():
    r, kl = tensor(*RATIOS).requires_grad_(), tensor(0.01, 0.02, 0.03, 0.06).requires_grad_()
    value = losses.kto(r, torch.tensor(LIKED), kl, beta=3.0)
    assert value.item() == pytest.approx(CANDIDATE_LOSSES["kto"](tensor(*RATIOS)).item(), abs=1e-14)
    assert torch.autograd.grad(value, kl, allow_unused=True) == (None,)


def test_a_higher_reference_point_makes_likes_harder_and_dislikes_easier():
    for good, sign in ((True, 1), (False, -1)):
        low, high = (
            losses.kto(tensor(0.1), torch.tensor([good]), tensor(z), beta=3.0).item() for z in (0.0, 0.5)
        )
        assert sign * (high - low) > 0.05


def test_kto_stays_finite_for_huge_log_ratios():
    for size, expected in ((1e6, 0.0), (-1e6, 1.0)):
        r = torch.tensor([size], requires_grad=True)
        value = losses.kto(r, torch.tensor([True]), torch.zeros(()), beta=1.0)
        assert value.item() == expected and torch.autograd.grad(value, r)[0].item() == 0


# --- advantages ---


def test_advantages_are_standardised_within_the_set():
    expected = [(s - 2.5) / (math.sqrt(4.5 / 4) + 1e-6) for s in SCORES]
    assert losses.advantages(tensor(*SCORES)).tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("scores", [(0.1, 0.1, 0.1), (7.3,), (-1e-30, -1e-30)])
def test_a_set_of_equal_scores_has_no_advantage_and_no_gradient(scores):
    advantage = losses.advantages(tensor(*scores))
    assert advantage.tolist() == [0.0] * len(scores)
    assert slope(lambda r: losses.ddpo(r, advantage), *[0.01] * len(scores)) == [0.0] * len(scores)


def test_tied_candidates_have_equal_advantages():
    assert len(set(losses.advantages(tensor(*SCORES)).tolist()[2:])) == 1


def test_advantages_do_not_depend_on_the_scores_unit():
    scores = tensor(*SCORES)
    for other in (1e-2 * scores, 1e6 * scores, scores - 100):
        assert losses.advantages(other).tolist() == pytest.approx(
            losses.advantages(scores).tolist(), abs=2e-4
        )


def test_scores_that_differ_by_rounding_alone_have_next_to_no_advantage():
    for scores in ((0.5, 0.5 + 1e-12, 0.5), (1e-9, 0.0)):
        assert losses.advantages(tensor(*scores)).abs().max() < 1e-3


def test_advantages_are_clipped_on_both_sides():
    outlier = [0.0] * 99
    assert losses.advantages(tensor(100.0, *outlier)).max() == 5
    assert losses.advantages(tensor(-100.0, *outlier), clip=2.0).min() == -2


# --- DDPO and DPOK ---


@pytest.mark.parametrize("ratio", [0.5, 0.8999, 0.9001, 1.0, 1.0999, 1.1001, 2.0])
@pytest.mark.parametrize("advantage", [-1.5, 0.0, 1.5])
def test_ddpo_is_minus_the_smaller_of_the_free_and_the_clamped_gain(ratio, advantage):
    expected = -min(advantage * ratio, advantage * min(max(ratio, 0.9), 1.1))
    assert losses.ddpo(tensor(math.log(ratio)), tensor(advantage), clip=0.1).item() == pytest.approx(
        expected, abs=1e-14
    )


@pytest.mark.parametrize("advantage, moving", [(1.5, [True, True, False]), (-1.5, [False, True, True])])
def test_clipping_stops_a_gain_that_was_had_and_never_the_way_back(advantage, moving):
    slopes = slope(
        lambda r: losses.ddpo(r, torch.full_like(r, advantage), clip=0.1), *map(math.log, (0.8, 1.0, 1.2))
    )
    assert [s != 0 for s in slopes] == moving
    assert all(s * advantage <= 0 for s in slopes)


def test_ddpos_gradient_is_the_policy_gradient_at_ratio_1():
    theta, x = (
        tensor(0.3, -0.2).requires_grad_(),
        torch.tensor([[1.0, 2.0], [0.5, -1.0], [-1.5, 0.4]]).double(),
    )
    action, advantage = tensor(0.1, -0.7, 0.9), tensor(1.0, -0.4, 2.0)

    def log_prob():
        return torch.distributions.Normal(x @ theta, 0.5).log_prob(action)

    (ppo,) = torch.autograd.grad(losses.ddpo(log_prob() - log_prob().detach(), advantage), theta)
    (reinforce,) = torch.autograd.grad(-(advantage * log_prob()).mean(), theta)
    torch.testing.assert_close(ppo, reinforce, rtol=0, atol=1e-14)


def test_ddpo_clips_by_its_papers_default():
    assert [s != 0 for s in slope(lambda r: losses.ddpo(r, torch.ones_like(r)), 0.99e-4, 1.01e-4)] == [
        True,
        False,
    ]


def test_ddpos_advantage_passes_no_gradient():
    advantage = tensor(1.0).requires_grad_()
    assert not losses.ddpo(tensor(0.1), advantage).requires_grad


@pytest.mark.parametrize("advantage", [0.0, 2.0])
def test_ddpo_does_not_overflow_where_the_ratio_does(advantage):
    r = torch.tensor([1e3], requires_grad=True)
    value = losses.ddpo(r, torch.tensor([advantage]))
    assert (
        value.item() == pytest.approx(-advantage, abs=1e-3) and torch.autograd.grad(value, r)[0].item() == 0
    )


def test_dpok_is_ddpo_with_a_weighted_kl_that_passes_its_gradient():
    r, advantage, kl = tensor(*RATIOS), 2.5 - tensor(*SCORES), tensor(0.1, 0.2, 0.3, 0.6).requires_grad_()
    assert losses.ddpo(r, advantage, clip=0.1) != losses.ddpo(r, advantage)
    value = losses.dpok(r, advantage, kl, kl_weight=0.5, clip=0.1)
    assert value.item() == pytest.approx(losses.ddpo(r, advantage, clip=0.1).item() + 0.5 * 0.3, abs=1e-14)
    assert torch.autograd.grad(value, kl)[0].tolist() == pytest.approx([0.125] * 4)


def test_dpok_with_no_advantage_only_pulls_back_to_the_reference():
    assert losses.dpok(
        tensor(0.3, 9.0), tensor(0.0, 0.0), tensor(0.2, 0.4), kl_weight=0.01
    ).item() == pytest.approx(0.003, abs=1e-14)


# --- reward-weighted likelihood ---


def test_rwr_weighs_log_likelihoods_by_the_exponentials_of_their_scores():
    weights = [math.exp(0.5 * s) for s in SCORES]
    expected = -sum(w / sum(weights) * r for w, r in zip(weights, RATIOS))
    assert losses.rwr(tensor(*RATIOS), tensor(*SCORES), beta=0.5).item() == pytest.approx(expected, abs=1e-14)


def test_rwr_of_equal_scores_is_supervised_and_of_far_ones_imitates_the_best():
    assert losses.rwr(tensor(*RATIOS), torch.full((4,), 3.0).double()).item() == pytest.approx(
        -tensor(*RATIOS).mean()
    )
    assert slope(lambda r: losses.rwr(r, tensor(0.0, 1e6)), 0.1, 0.2) == [0.0, -1.0]


def test_rwrs_scores_pass_no_gradient():
    assert not losses.rwr(tensor(0.1, 0.2), tensor(1.0, 2.0).requires_grad_()).requires_grad


@pytest.mark.parametrize(
    "method, default",
    [
        (losses.d3po, {"beta": 0.1, "clip": 0.1}),
        (losses.diffusion_dpo, {"beta": 5000.0}),
        (losses.safeguard, {"mu": 0.9}),
        (losses.mapo, {"beta": 0.1, "snr": 0.5, "timesteps": 1000}),
        (losses.ddpo, {"clip": 1e-4}),
        (losses.dpok, {"kl_weight": 1e-4, "clip": 1e-4}),
        (losses.kto, {"beta": 0.1}),
        (losses.rwr, {"beta": 0.2}),
        (losses.nft, {"beta": 1.0, "kl_weight": 1e-4, "mask": None}),
        (losses.dpo, {"beta": 0.1, "label_smoothing": 0.0}),
        (losses.ipo, {"beta": 0.1}),
        (losses.advantages, {"clip": 5.0}),
    ],
)
def test_defaults_are_those_of_the_papers_or_their_code(method, default):
    assert {
        p.name: p.default for p in inspect.signature(method).parameters.values() if p.default is not p.empty
    } == default
