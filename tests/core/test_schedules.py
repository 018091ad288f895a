"""How the paper's weighting shares out the gradient over a schedule's steps."""

import torch

from d3po_core.candidates.kernels import Ancestral, log_ratio
from tools.bench_schedules import PAPERS, shares, table

SIGMAS = torch.tensor([14.6, 4.0, 1.5, 0.4, 0.03, 0.0])


def test_a_steps_share_is_that_of_the_squared_gradient_of_its_log_ratio_by_the_predicted_noise():
    kernel, generator, squared = Ancestral(1.0), torch.Generator().manual_seed(0), []
    for sigma, sigma_next in zip(SIGMAS[:-1], SIGMAS[1:-1]):
        x, noise, z = torch.randn(3, 4000, 1, generator=generator, dtype=torch.float64)
        predicted = noise.clone().requires_grad_()
        mean = kernel.mean(x, x - sigma * predicted, sigma, sigma_next)
        x_next = (mean + kernel.std(sigma, sigma_next) * z).detach()
        squared.append(
            torch.autograd.grad(
                log_ratio(x_next, mean, mean.detach(), kernel.std(sigma, sigma_next)).sum(), predicted
            )[0]
            .square()
            .mean()
        )
    expected = torch.stack([*squared, torch.zeros((), dtype=torch.float64)])
    assert torch.allclose(shares(SIGMAS), expected / expected.sum(), atol=0.02)
    assert shares(SIGMAS)[-1] == 0 and abs(shares(SIGMAS).sum() - 1) < 1e-12


def test_the_table_begins_with_the_most_even_schedule():
    rows = table(
        {"even": torch.tensor([14.6, 4.0, 1.0, 0.25, 0.0]), PAPERS: torch.tensor([14.6, 8.0, 4.0, 0.03, 0.0])}
    ).split("\n")
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| even", f"| {PAPERS}"]
