"""Warmup and cosine, each against torch's own."""

import math

import pytest
import torch

from d3po_core.training.optimizers import SCHEDULES, learning_rate_factor


def torchs(scheduler, steps, **options):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule, factors = scheduler(optimizer, **options), []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return factors


def test_warmup_is_torchs_linear_one():
    expected = torchs(torch.optim.lr_scheduler.LinearLR, 20, start_factor=1 / 8, total_iters=7)
    assert [learning_rate_factor("constant", step, 8, 0, 1) for step in range(20)] == pytest.approx(expected)
    assert expected[0] == 1 / 8 and expected[7:] == [1.0] * 13


def test_cosine_is_torchs_and_spans_a_train_step():
    expected = torchs(torch.optim.lr_scheduler.CosineAnnealingLR, 30, T_max=30)
    assert [learning_rate_factor("cosine", 100 + done, 0, done, 30) for done in range(30)] == pytest.approx(
        expected
    )
    assert learning_rate_factor("cosine", 0, 0, 0, 30) == 1 and expected[-1] > 0


def test_warmup_and_cosine_multiply_and_constant_without_warmup_is_one():
    assert learning_rate_factor("cosine", 2, 10, 2, 6) == pytest.approx(
        0.3 * 0.5 * (1 + math.cos(math.pi / 3))
    )
    assert {learning_rate_factor("constant", step, 0, step, 9) for step in range(9)} == {1.0}
    assert SCHEDULES == ("constant", "cosine")


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="'linear', but must be one of: constant, cosine"):
        learning_rate_factor("linear", 0, 0, 0, 1)
