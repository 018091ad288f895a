"""Losses of pairs beyond D3PO and Diffusion-DPO, which test_loss.py has."""

import math

import pytest
import torch

from d3po_core.candidates.kernels import log_ratio
from d3po_core.training import losses

LN2 = math.log(2)
W, L = [0.05, -0.3, 0.4], [-0.02, 0.06, -0.5]

PAIR_LOSSES = {
    "d3po": lambda w, l: losses.d3po(w, l, beta=3.0),
    "dpo": lambda w, l: losses.dpo(w, l, beta=3.0),
    "smoothed dpo": lambda w, l: losses.dpo(w, l, beta=3.0, label_smoothing=0.2),
    "ipo": lambda w, l: losses.ipo(w, l, beta=3.0),
    "mapo": lambda w, l: losses.mapo(1 + w, 1 + l, timesteps=3),
    "anchored dpo": lambda w, l: losses.dpo(w, l, beta=3.0) + 0.5 * losses.sft(w),
}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def slopes(value, *inputs):
    return [slope.tolist() for slope in torch.autograd.grad(value, inputs)]


# --- all of them ---


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_gradients_match_finite_differences(name):
    assert torch.autograd.gradcheck(
        PAIR_LOSSES[name], (tensor(*W).requires_grad_(), tensor(*L).requires_grad_())
    )


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_losses_are_the_mean_over_pairs_in_whatever_order(name):
    f, each = PAIR_LOSSES[name], [PAIR_LOSSES[name](tensor(w), tensor(l)).item() for w, l in zip(W, L)]
    assert f(tensor(*W), tensor(*L)).shape == ()
    assert f(tensor(*W), tensor(*L)).item() == pytest.approx(sum(each) / 3, abs=1e-14)
    assert f(tensor(*W[::-1]), tensor(*L[::-1])).item() == pytest.approx(sum(each) / 3, abs=1e-14)


@pytest.mark.parametrize("name", ["d3po", "dpo", "smoothed dpo"])
def test_logistic_losses_start_at_ln_2_whatever_beta(name):
    assert PAIR_LOSSES[name](torch.zeros(5), torch.zeros(5)).item() == pytest.approx(LN2, abs=1e-7)


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("name", ["d3po", "dpo", "smoothed dpo", "ipo", "anchored dpo"])
def test_losses_and_gradients_stay_finite_for_huge_log_ratios(name, size):
    w, l = torch.tensor([size], requires_grad=True), torch.tensor([-size], requires_grad=True)
    value = PAIR_LOSSES[name](w, l)
    assert value.isfinite() and tensor(slopes(value, w, l)).isfinite().all()


def test_an_images_pixels_are_averaged_before_the_sigmoid_and_pairs_after_it():
    (x_w, x_l), (mean_w, mean_l), (ref_w, ref_l), std = (
        randn(2, 3, 1, 4, 4),
        randn(2, 3, 1, 4, 4, seed=1),
        randn(2, 3, 1, 4, 4, seed=2),
        torch.tensor(0.7),
    )
    gain = [
        ((x - ref) ** 2 - (x - mean) ** 2) / (2 * 0.49)
        for x, mean, ref in ((x_w, mean_w, ref_w), (x_l, mean_l, ref_l))
    ]
    expected = -sum(log_sigmoid(3.0 * (gain[0][i].mean() - gain[1][i].mean()).item()) for i in range(3)) / 3
    value = losses.dpo(
        log_ratio(x_w, mean_w, ref_w, std), log_ratio(x_l, mean_l, ref_l, std), beta=3.0
    ).item()
    assert value == pytest.approx(expected, rel=1e-6)
    assert abs(value - -torch.nn.functional.logsigmoid(3.0 * (gain[0] - gain[1])).mean().item()) > 0.1
    assert abs(value - -log_sigmoid(3.0 * (gain[0] - gain[1]).mean().item())) > 0.01


# --- DPO ---


def test_dpo_is_minus_log_sigmoid_of_the_margin():
    expected = -sum(log_sigmoid(2.0 * (w - l)) for w, l in zip(W, L)) / 3
    assert losses.dpo(tensor(*W), tensor(*L), beta=2.0).item() == pytest.approx(expected, abs=1e-14)


def test_d3po_is_dpo_where_nothing_is_clamped():
    assert (
        losses.d3po(tensor(0.05), tensor(-0.02))
        == losses.dpo(tensor(0.05), tensor(-0.02))
        == losses.d3po(tensor(0.05), tensor(-0.02), clip=0)
    )


def test_diffusion_dpo_is_dpo_of_the_errors_log_ratios():
    w, l, ref_w, ref_l = randn(4, 6).abs()
    ratio_w, ratio_l = losses.error_log_ratio(w, ref_w), losses.error_log_ratio(l, ref_l)
    assert torch.equal(ratio_w, 0.5 * (ref_w - w)), "an error above the reference's is a lower likelihood"
    assert losses.diffusion_dpo(w, l, ref_w, ref_l, beta=7.0) == losses.dpo(ratio_w, ratio_l, beta=7.0)


def test_diffusion_dpos_beta_is_halved_and_reduced_by_pair():
    errors = tensor(0.3), tensor(0.2), tensor(0.25), tensor(0.25)
    assert losses.diffusion_dpo(*errors, beta=10.0).item() == pytest.approx(
        -log_sigmoid(-0.5 * 10 * 0.1), abs=1e-14
    )


def test_error_log_ratio_is_that_of_unit_gaussians_around_the_predictions():
    target, prediction, ref_prediction = randn(3, 2, 9)
    expected = (
        torch.distributions.Normal(prediction, 1.0).log_prob(target)
        - torch.distributions.Normal(ref_prediction, 1.0).log_prob(target)
    ).mean(1)
    errors = [(x - target).square().mean(1) for x in (prediction, ref_prediction)]
    torch.testing.assert_close(losses.error_log_ratio(*errors), expected, rtol=0, atol=1e-14)


def test_label_smoothing_closed_form_and_0_is_dpo():
    margins = [2.0 * (w - l) for w, l in zip(W, L)]
    expected = -sum(0.9 * log_sigmoid(m) + 0.1 * log_sigmoid(-m) for m in margins) / 3
    smoothed = losses.dpo(tensor(*W), tensor(*L), beta=2.0, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(expected, abs=1e-14)
    assert losses.dpo(tensor(*W), tensor(*L), 2.0, 0.0).item() == pytest.approx(
        -sum(map(log_sigmoid, margins)) / 3
    )


@pytest.mark.parametrize("smoothing", [0.5, 0.2, 0.05])
def test_a_smoothed_loss_has_its_minimum_at_the_log_odds_of_a_right_label(smoothing):
    w, l = tensor(math.log((1 - smoothing) / smoothing) / 3).requires_grad_(), tensor(0.0).requires_grad_()
    for slope in slopes(losses.dpo(w, l, beta=3.0, label_smoothing=smoothing), w, l):
        assert slope[0] == pytest.approx(0, abs=1e-15)
    for side in (0.1, -0.1):
        assert losses.dpo(w + side, l, 3.0, smoothing) > losses.dpo(w, l, 3.0, smoothing)


def test_swapping_a_pair_is_swapping_the_smoothing():
    w, l = tensor(*W), tensor(*L)
    assert losses.dpo(w, l, 3.0, 0.2).item() == pytest.approx(losses.dpo(l, w, 3.0, 0.8).item(), abs=1e-14)
    assert losses.dpo(w, l, 3.0, 0.5).item() == pytest.approx(losses.dpo(l, w, 3.0, 0.5).item(), abs=1e-14)


# --- IPO ---


def test_ipo_is_beta_squared_times_the_papers_loss():
    papers = sum((w - l - 1 / (2 * 3.0)) ** 2 for w, l in zip(W, L)) / 3
    assert losses.ipo(tensor(*W), tensor(*L), beta=3.0).item() == pytest.approx(9 * papers, abs=1e-14)


@pytest.mark.parametrize("beta", [0.1, 3.0, 5000.0])
def test_ipo_has_its_minimum_of_0_where_the_log_ratios_differ_by_1_over_2_beta(beta):
    w, l = tensor(0.2 + 1 / (2 * beta)).requires_grad_(), tensor(0.2).requires_grad_()
    value = losses.ipo(w, l, beta)
    assert value.item() == pytest.approx(0, abs=1e-20)
    assert slopes(value, w, l) == [[pytest.approx(0, abs=1e-6)], [pytest.approx(0, abs=1e-6)]]
    assert losses.ipo(w + 0.1, l, beta) > 0 and losses.ipo(w - 0.1, l, beta) > 0


@pytest.mark.parametrize("beta", [0.1, 5000.0])
def test_ipo_starts_at_a_quarter_and_pulls_twice_as_hard_as_dpo_there(beta):
    w, l = tensor(0.0).requires_grad_(), tensor(0.0).requires_grad_()
    assert losses.ipo(w, l, beta).item() == 0.25
    assert slopes(losses.ipo(w, l, beta), w, l) == [[-beta], [beta]]
    assert slopes(losses.dpo(w, l, beta), w, l) == [[-beta / 2], [beta / 2]]


def test_swapping_a_pair_changes_ipo_by_twice_its_margin():
    w, l = tensor(0.05), tensor(-0.02)
    assert (losses.ipo(l, w, 3.0) - losses.ipo(w, l, 3.0)).item() == pytest.approx(2 * 3.0 * 0.07, abs=1e-14)


# --- MaPO ---


def test_mapo_closed_form():
    def likelihood(error):
        return 0.5 * error / (math.exp(0.5 * error) - 1)

    w, l = [0.10, 0.30], [0.101, 0.299]
    expected = sum(a - 0.1 * log_sigmoid(1000 * (likelihood(a) - likelihood(b))) for a, b in zip(w, l)) / 2
    assert losses.mapo(tensor(*w), tensor(*l)).item() == pytest.approx(expected, abs=1e-12)


def test_mapos_winner_error_falls_and_its_losers_rises():
    w, l = tensor(0.2).requires_grad_(), tensor(0.2).requires_grad_()
    (slope_w,), (slope_l,) = slopes(losses.mapo(w, l), w, l)
    assert slope_l < 0 and slope_w == pytest.approx(1 - slope_l, abs=1e-12)


def test_mapo_asks_for_no_reference_and_reads_equal_errors_as_ln_2():
    errors = randn(5).abs() + 0.1
    assert losses.mapo(errors, errors).item() == pytest.approx(errors.mean().item() + 0.1 * LN2, abs=1e-12)


@pytest.mark.parametrize("error", [1e-6, 1e3])
def test_mapo_stays_finite_for_tiny_and_huge_errors(error):
    w, l = torch.tensor([error], requires_grad=True), torch.tensor([0.1], requires_grad=True)
    value = losses.mapo(w, l)
    assert value.isfinite() and tensor(slopes(value, w, l)).isfinite().all()


# --- a beta that adapts ---


def test_adaptive_beta_closed_form():
    # the batch's own margin, 0.5, is in the usual one already: 0.9 * 0.1 + 0.1 * 0.5
    assert losses.adaptive_beta(tensor(0.3, 0.7), 0.1, beta=2.0, alpha=0.5).item() == pytest.approx(
        2.0 * (1 + 0.5 * (0.5 - 0.14)), abs=1e-14
    )
    assert losses.adaptive_beta(tensor(0.3, 0.7), 0.5, beta=2.0).item() == 2.0


def test_adaptive_beta_rises_with_the_margin_and_stays_within_its_bounds():
    betas = [losses.adaptive_beta(tensor(m), 0.0, beta=2.0).item() for m in (-1e6, -0.5, 0.0, 0.5, 1e6)]
    assert betas == [1.0, pytest.approx(2 * (1 - 0.27)), 2.0, pytest.approx(2 * (1 + 0.27)), 4.0]


def test_no_gradient_runs_through_an_adaptive_beta():
    w, l = tensor(*W).requires_grad_(), tensor(*L).requires_grad_()
    beta = losses.adaptive_beta(losses.d3po_margin(w, l, 2.0), 0.1, beta=2.0)
    assert not beta.requires_grad
    assert slopes(losses.dpo(w, l, beta), w, l) == slopes(losses.dpo(w, l, beta.item()), w, l)


# --- a winner that does not get worse ---


class LinearModel:
    """A winner and a loser whose residuals agree, the loser's larger: DPO drags the winner along with it."""

    def __init__(self, seed, same_input):
        inputs, targets = randn(2, 5, seed=seed), randn(2, 4, seed=seed + 100)
        self.inputs = torch.stack([inputs[0], inputs[0] + (0.0 if same_input else 0.2) * inputs[1]])
        self.targets = torch.stack([targets[0], 3 * targets[0] + 0.2 * targets[1]])
        self.weights = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)

    def log_ratios(self, weights):
        return losses.error_log_ratio(
            (self.inputs @ weights - self.targets).square().mean(1), self.targets.square().mean(1)
        ).split(1)

    def gain_of_the_winner(self, value):
        """d log-ratio of the winner / d step size of one step down the gradient, by a small step."""
        (slope,) = torch.autograd.grad(value, self.weights, retain_graph=True)
        return (
            self.log_ratios(self.weights - 1e-6 * slope)[0].item() - self.log_ratios(self.weights)[0].item()
        ) / 1e-6


@pytest.mark.parametrize("space", ["outputs", "parameters"])
@pytest.mark.parametrize("method", [losses.dpo, losses.ipo])
@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
def test_a_safeguarded_step_keeps_the_winners_share_of_its_own_gain_and_a_bare_one_makes_it_worse(
    space, method, mu
):
    for seed in range(8):
        model = LinearModel(seed, same_input=space == "outputs")
        w, l = model.log_ratios(model.weights)
        gradients = (
            [target[None] for target in model.targets]
            if space == "outputs"
            else [torch.autograd.grad(x, model.weights, retain_graph=True)[0][None] for x in (w, l)]
        )
        assert model.gain_of_the_winner(method(w, l)) < 0
        own = model.gain_of_the_winner(method(w, l.detach()))
        assert model.gain_of_the_winner(method(w, losses.safeguard(l, *gradients, mu=mu))) == pytest.approx(
            mu * own, abs=1e-4 * own
        )


def test_the_safeguard_scales_each_losers_gradient_and_keeps_its_value():
    l = tensor(0.1, 0.2, 0.3, 0.4).requires_grad_()
    g_w = torch.stack([tensor(1, 0), tensor(1, 0), tensor(1, 0), tensor(0, 0)])
    g_l = torch.stack([tensor(2, 5), tensor(0.25, 1), tensor(-3, 1), tensor(1, 1)])
    safe = losses.safeguard(l, g_w, g_l, mu=0.5)
    assert torch.equal(safe, l)
    assert slopes(safe.sum(), l) == [[0.25, 1.0, 1.0, 1.0]]


def test_the_safeguard_never_enlarges_the_losers_gradient_and_passes_none_of_its_own():
    gradients = [randn(6, 2, 3, seed=seed).requires_grad_() for seed in (0, 1)]
    l = randn(6).requires_grad_()
    safe = losses.safeguard(l, *gradients)
    (scale,) = torch.autograd.grad(safe.sum(), l, retain_graph=True)
    assert (scale >= 0).all() and (scale <= 1).all() and (scale < 1).any() and (scale == 1).any()
    assert torch.autograd.grad(safe.sum(), gradients, allow_unused=True) == (None, None)


# --- an anchored winner ---


def test_sft_is_the_negative_log_likelihood_up_to_the_reference():
    log_prob, ref_log_prob = randn(4).requires_grad_(), randn(4, seed=1)
    assert losses.sft(log_prob - ref_log_prob).item() == pytest.approx(
        (ref_log_prob - log_prob).mean().item()
    )
    assert slopes(losses.sft(log_prob - ref_log_prob), log_prob) == slopes(-log_prob.mean(), log_prob)
    assert losses.sft(tensor(0.0, 0.0)).item() == 0


def test_an_anchor_of_half_beta_doubles_dpos_pull_on_the_winner_at_first_and_leaves_the_loser():
    w, l = tensor(0.0).requires_grad_(), tensor(0.0).requires_grad_()
    assert slopes(losses.dpo(w, l, 3.0) + 1.5 * losses.sft(w), w, l) == [[-3.0], [1.5]]
