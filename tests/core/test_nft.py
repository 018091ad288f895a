"""DiffusionNFT: its loss, and what updates by it do to a set."""

from dataclasses import replace

import pytest
import torch

from d3po_core.candidates.preferences import Preferences
from d3po_core.training import losses
from d3po_core.training.loop import Example, Trainer
from tests.core.gradients import still
from tests.core.judged import MASK, Predictor, images

ADVANTAGES, BETA, KL_WEIGHT = [1.7, -0.4, -6.0, 9.0], 0.3, 0.25
SETTINGS = still(method="DiffusionNFT", draws_per_set=8)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def normal(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 2, 4, 4, generator=generator, dtype=torch.float64)


def written_out(v, o, x0, kl, of):
    """The paper's loss with the weights that it has at `of`; of(...) picks the elements it is a mean over."""
    value = 0.0
    for k, advantage in enumerate(ADVANTAGES):
        r = 0.5 + 0.5 * min(1.0, max(-1.0, advantage / 5))
        sides = [(r, BETA, 1 - BETA), (1 - r, -BETA, 1 + BETA)]
        for share, of_v, of_o in sides:
            weight = of(of_v * v[0][k] + of_o * o[k] - x0[k]).abs().mean()
            value += share * of(of_v * v[1][k] + of_o * o[k] - x0[k]).square().mean() / weight * 5 / BETA
        value += KL_WEIGHT * 2 * kl[k]
    return value / len(ADVANTAGES)


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_the_loss_is_the_papers_and_its_gradient_holds_the_weights(mask):
    v, o, x0, kl = normal(0), normal(1), normal(2), tensor(0.1, 0.2, 0.0, 0.7)
    of = lambda error: error if mask is None else error[mask[0] == 1]

    def loss(v):
        return losses.nft(v - o, o - x0, tensor(*ADVANTAGES), kl, BETA, KL_WEIGHT, mask)

    leaf = v.clone().requires_grad_()
    assert loss(leaf).item() == pytest.approx(written_out((v, v), o, x0, kl, of).item(), rel=1e-12)
    (slope,) = torch.autograd.grad(loss(leaf), leaf)
    for place in [(0, 0, 1, 1), (1, 1, 2, 0), (2, 0, 2, 1), (3, 1, 1, 0), (0, 1, 3, 3)]:
        step = torch.zeros_like(v)
        step[place] = 1e-6
        ends = [written_out((v, v + sign * step), o, x0, kl, of) for sign in (1, -1)]
        assert slope[place].item() == pytest.approx((ends[0] - ends[1]).item() / 2e-6, abs=1e-8)
        assert (slope[place] != 0) == (mask is None or bool(mask[0][place[1:]]))


def test_where_the_policy_has_not_moved_the_pull_is_the_advantage_and_none_without_one():
    error, kl = normal(1), torch.zeros(4)
    shift = torch.zeros_like(error).requires_grad_()
    size = error.abs().mean((1, 2, 3))
    for advantage in (tensor(1.2, -0.7, 0.0, -5.0), torch.zeros(4)):
        (slope,) = torch.autograd.grad(losses.nft(shift, error, advantage, kl, BETA), shift)
        expected = (2 * advantage / size / 4).view(4, 1, 1, 1) * error / error[0].numel()
        torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-15)
    assert not slope.any()


def test_an_image_that_is_met_exactly_divides_by_no_zero():
    nothing = torch.zeros(1, 2, 4, 4).requires_grad_()
    value = losses.nft(nothing, torch.zeros_like(nothing), torch.ones(1), torch.zeros(1))
    assert value == 0 and not torch.autograd.grad(value, nothing)[0].any()


@pytest.mark.parametrize(
    "said",
    [
        dict(pairs=(), scores=(0.5, 3.0, -1.0, 0.4)),
        dict(pairs=((1, 0), (1, 2), (1, 3), (0, 3), (0, 2), (3, 2))),
        dict(pairs=(), liked=(None, True, False, None)),
    ],
    ids=["scores", "ranking", "thumbs"],
)
def test_a_step_makes_the_best_likelier_and_the_worst_less_likely(setup, said):
    _, adapter = setup(dtype=torch.float64)
    example = Example(Preferences(images((0.0, 4.0, -4.0, 0.0), 0), **said), Predictor(adapter.root))
    trainer = Trainer(adapter, replace(SETTINGS, learning_rate=1e-3))
    trainer.update([example])
    judged = trainer.judged(example)
    moved = torch.stack([term.all_values().log_ratio for term in judged.measured(64)]).mean(0)
    best, worst = (judged.members.tolist().index(i) for i in (1, 2))
    assert moved[best] > 0 > moved[worst]
    assert moved[best] == moved.max() and moved[worst] == moved.min()


def test_a_reference_that_sampled_is_asked_once(drawn):
    counts = {}
    for reference in ("base", "round start"):
        adapter, examples = drawn()
        Trainer(adapter, replace(SETTINGS, reference=reference)).update(examples[:1])
        counts[reference] = len(examples[0].denoise.batches) / SETTINGS.draws_per_set
    assert counts == {"base": 3, "round start": 2}
