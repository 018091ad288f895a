import math

import pytest
import torch

from d3po_core.training import losses

LN2 = math.log(2)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_d3po_closed_form():
    w, l = [0.05, -0.08], [-0.02, 0.01]
    expected = sum(-math.log(sigmoid(2.0 * (a - b))) for a, b in zip(w, l)) / 2
    assert losses.d3po(tensor(*w), tensor(*l), beta=2.0, clip=0.1).item() == pytest.approx(
        expected, abs=1e-14
    )


def test_d3po_clamps_each_ratio_not_the_margin():
    expected = -math.log(sigmoid(2.0 * (math.log(1.1) - math.log(0.9))))
    assert losses.d3po(tensor(3.0), tensor(-5.0), beta=2.0, clip=0.1).item() == pytest.approx(
        expected, abs=1e-14
    )
    one_side = -math.log(sigmoid(2.0 * (math.log(1.1) - 0.02)))
    assert losses.d3po(tensor(3.0), tensor(0.02), beta=2.0, clip=0.1).item() == pytest.approx(
        one_side, abs=1e-14
    )


def test_d3po_gradient_closed_form():
    w, l = tensor(0.05).requires_grad_(), tensor(-0.02).requires_grad_()
    losses.d3po(w, l, beta=2.0, clip=0.1).backward()
    slope = 2.0 * (1 - sigmoid(2.0 * 0.07))
    assert w.grad.item() == pytest.approx(-slope, abs=1e-14)
    assert l.grad.item() == pytest.approx(slope, abs=1e-14)


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_d3po_gradients_match_finite_differences(clip):
    w, l = tensor(0.05, -0.3, 0.4).requires_grad_(), tensor(-0.02, 0.06, -0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: losses.d3po(a, b, beta=3.0, clip=clip), (w, l))


def test_losses_start_at_ln_2():
    zero = torch.zeros(5)
    assert losses.d3po(zero, zero).item() == pytest.approx(LN2, abs=1e-7)
    error = torch.rand(5, generator=torch.Generator().manual_seed(0))
    assert losses.diffusion_dpo(error, error + 1, error, error + 1).item() == pytest.approx(LN2, abs=1e-7)


def test_swapping_winner_and_loser_negates_the_margin_and_not_the_loss():
    w, l = tensor(0.05), tensor(-0.02)
    assert losses.d3po_margin(w, l, 2.0) == -losses.d3po_margin(l, w, 2.0) == 2.0 * (w - l)
    forward, backward = losses.d3po(w, l, 2.0).item(), losses.d3po(l, w, 2.0).item()
    assert forward < LN2 < backward
    assert math.exp(-forward) + math.exp(-backward) == pytest.approx(1, abs=1e-14)


def test_papers_clamp_holds_the_loss_between_0_683_and_0_703():
    best, worst = (losses.d3po(tensor(a), tensor(-a), beta=0.1, clip=0.1).item() for a in (100.0, -100.0))
    assert round(best, 3) == 0.683 and round(worst, 3) == 0.703


def test_no_gradient_outside_the_clamp():
    w, l = tensor(0.2, 0.05, -0.2).requires_grad_(), tensor(0.0, 0.3, -0.3).requires_grad_()
    losses.d3po(w, l, beta=1.0, clip=0.1).backward()
    assert (w.grad != 0).tolist() == [False, True, False]
    assert (l.grad != 0).tolist() == [True, False, False]


def test_clip_0_is_no_clamp():
    assert losses.d3po(tensor(7.0), tensor(-3.0), beta=1.0, clip=0).item() == pytest.approx(
        math.log1p(math.exp(-10))
    )
    assert torch.equal(losses.clamp_ratio(tensor(7.0, -9.0), 0), tensor(7.0, -9.0))


@pytest.mark.parametrize("margins", [(8.0, -8.0), (1.0, 3.0)])
def test_the_sigmoid_comes_before_the_mean_over_pairs(margins):
    expected = sum(math.log1p(math.exp(-m)) for m in margins) / 2
    mean_first = math.log1p(math.exp(-sum(margins) / 2))
    zero = tensor(0.0, 0.0)
    for value in (
        losses.d3po(tensor(*margins), zero, beta=1.0, clip=0),
        losses.diffusion_dpo(zero, tensor(*margins), zero, zero, beta=2.0),
    ):
        assert value.item() == pytest.approx(expected, abs=1e-12)
        assert abs(value.item() - mean_first) > 0.01


def test_diffusion_dpo_closed_form():
    w, l, ref_w, ref_l = [0.10, 0.30], [0.20, 0.25], [0.12, 0.28], [0.19, 0.26]
    inside = [-0.5 * 50 * ((a - b) - (c - d)) for a, b, c, d in zip(w, l, ref_w, ref_l)]
    expected = sum(-math.log(sigmoid(x)) for x in inside) / 2
    value = losses.diffusion_dpo(tensor(*w), tensor(*l), tensor(*ref_w), tensor(*ref_l), beta=50.0)
    assert value.item() == pytest.approx(expected, abs=1e-12)


def test_diffusion_dpo_falls_where_the_winners_error_falls_and_defaults_to_beta_5000():
    w, l = tensor(0.1).requires_grad_(), tensor(0.1).requires_grad_()
    losses.diffusion_dpo(w, l, tensor(0.1), tensor(0.1)).backward()
    assert w.grad.item() == pytest.approx(0.25 * 5000) and l.grad.item() == pytest.approx(-0.25 * 5000)


def test_diffusion_dpo_gradients_match_finite_differences():
    errors = [
        torch.rand(4, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(4)
    ]
    w, l = errors[0].requires_grad_(), errors[1].requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: losses.diffusion_dpo(a, b, *errors[2:], beta=7.0), (w, l))


def test_losses_stay_finite_for_huge_margins():
    assert losses.d3po(torch.tensor([-1e4]), torch.tensor([0.0]), beta=1.0, clip=0).item() == pytest.approx(
        1e4
    )
    assert losses.diffusion_dpo(*torch.tensor([[0.0], [1e4], [0.0], [0.0]]), beta=2.0).item() == 0


def test_clip_fraction_is_the_share_of_clamped_ratios():
    ratios = tensor(0.0, 0.09, math.log1p(0.1), 0.2, -0.05, math.log1p(-0.1), -0.2, -9.0)
    assert losses.clip_fraction(ratios, 0.1).item() == 5 / 8


def test_ratio_clip_fraction_is_the_share_of_candidates_without_a_gradient():
    log_ratio = tensor(0.0, 0.2, 0.2, -0.2, -0.2, 0.05, 0.2, -0.2).requires_grad_()
    advantage = tensor(1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 0.0, 0.0)
    losses.ddpo(log_ratio, advantage, clip=0.1).backward()
    held = (log_ratio.grad == 0) & (advantage != 0)
    assert held.tolist() == [False, True, False, False, True, False, False, False]
    assert losses.ratio_clip_fraction(log_ratio.detach(), advantage, 0.1) == held.double().mean()
