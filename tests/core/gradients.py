"""The gradient of one update, whether it is another's, and what it is by the definitions."""

import math

import torch

from d3po_core.training.loop import Settings, Trainer


def still(**options):
    """Settings under which an update computes gradients and leaves the weights."""
    return Settings(**{"learning_rate": 0.0, "weight_decay": 0.0, "max_grad_norm": math.inf} | options)


def gradients(adapter, settings, batch, **options):
    """(gradient of each weight, metrics) of one update."""
    trainer = Trainer(adapter, settings, **options)
    metrics = trainer.update(batch)
    return [parameter.grad.clone() for parameter in adapter.parameters()], metrics


def assert_same(ours, theirs, tolerance=1e-7):
    scale = torch.cat([g.flatten() for g in theirs]).abs().max().item()
    assert scale > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


def log_p(example, candidate, i):
    """(log-prob of one candidate's step, the factor that standardises it), from the definitions."""
    trajectory = example.candidates
    sigma, sigma_next = trajectory.sigmas[i].double(), trajectory.sigmas[i + 1].double()
    up = min(sigma_next, trajectory.kernel.eta * sigma_next * (1 - sigma_next**2 / sigma**2).sqrt())
    down = (sigma_next**2 - up**2).clamp_min(0).sqrt()
    x, x_next = (trajectory.states[j, candidate : candidate + 1] for j in (i, i + 1))
    x0 = example.denoise(x, sigma[None])
    density = torch.distributions.Normal(x0 + (down / sigma) * (x - x0), up)
    return inside(trajectory, density.log_prob(x_next)).mean(), up / (sigma - down)


def inside(candidates, values):
    """The elements of values [1, C, H, W] inside a set's mask, which has ones and zeros."""
    return values if candidates.mask is None else values[candidates.mask == 1]


def overall(metrics):
    """Metrics without those of one quarter of the noise schedule, which an update may have or not."""
    return {name: value for name, value in metrics.items() if "noise quarter" not in name}
