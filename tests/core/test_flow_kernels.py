"""Steps of flow models, against their papers' code written anew with velocities, and on a toy whose marginals
are known."""

import math

import pytest
import torch

from d3po_core.candidates.kernels import (
    Ancestral,
    FlowAncestral,
    FlowCPS,
    FlowDDIM,
    FlowSDE,
    described,
    kernel_of,
    log_ratio,
)

# a schedule of 10 steps, shifted by 3
SIGMAS = [3 * s / (1 + 2 * s) for s in torch.linspace(1, 0, 11, dtype=torch.float64)]
STEPS = list(zip(SIGMAS, SIGMAS[1:]))
SECOND = float(SIGMAS[1])
KERNELS = [FlowAncestral(), FlowAncestral(0.4), FlowSDE(0.7, SECOND), FlowCPS(), FlowCPS(0.3)]
KERNELS += [FlowCPS(1.0), FlowDDIM(), FlowDDIM(0.4)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ancestral_step(x, v, sigma, sigma_next, eta):
    """ComfyUI's: down by an Euler step, up again by noise."""
    down = sigma_next * (1 + (sigma_next / sigma - 1) * eta)
    at_down = x + v * (down - sigma)
    scale = (1 - sigma_next) / (1 - down)
    return scale * at_down, (sigma_next**2 - down**2 * scale**2) ** 0.5


def sde_step(x, v, sigma, sigma_next, a):
    """Flow-GRPO's."""
    dt = sigma_next - sigma
    g = a * (sigma / (1 - (SECOND if sigma == 1 else sigma))) ** 0.5
    mean = x * (1 + g**2 / (2 * sigma) * dt) + v * (1 + g**2 * (1 - sigma) / (2 * sigma)) * dt
    return mean, g * (-dt) ** 0.5


def cps_step(x, v, sigma, sigma_next, a):
    """Coefficients-preserving: both ends of the line that x lies on, and new noise for a part of the old."""
    std = sigma_next * math.sin(a * math.pi / 2)
    clean, noise = x - sigma * v, x + (1 - sigma) * v
    return (1 - sigma_next) * clean + (sigma_next**2 - std**2) ** 0.5 * noise, std


def ddim_step(x, v, sigma, sigma_next, eta):
    """Song et al.'s equations 12 and 16, of x in coordinates in which its variance is kept. At sigma 1
    ComfyUI's step keeps nothing."""
    norm, norm_next = (((1 - s) ** 2 + s**2) ** 0.5 for s in (sigma, sigma_next))
    abar, abar_next = ((1 - sigma) / norm) ** 2, ((1 - sigma_next) / norm_next) ** 2
    clean, noise = x - sigma * v, x + (1 - sigma) * v
    eta = 1.0 if sigma == 1 else eta
    std = eta * ((1 - abar_next) / (1 - abar)).sqrt() * (1 - abar / abar_next).sqrt()
    old = (1 - abar_next - std**2).clamp(min=0).sqrt()
    return norm_next * (abar_next.sqrt() * clean + old * noise), norm_next * std


THEIRS = {FlowAncestral: ancestral_step, FlowSDE: sde_step, FlowCPS: cps_step, FlowDDIM: ddim_step}


def share_of(kernel):
    return kernel.a if isinstance(kernel, (FlowCPS, FlowSDE)) else kernel.eta


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_each_step_is_its_papers(kernel):
    for i, (sigma, sigma_next) in enumerate(STEPS[:-1]):
        x, v = normal(2, 4, 3, 3, seed=i), normal(2, 4, 3, 3, seed=50 + i)
        mean, std = THEIRS[type(kernel)](x, v, sigma, sigma_next, share_of(kernel))
        ours = kernel.mean(x, x - sigma * v, sigma, sigma_next)
        torch.testing.assert_close(ours, mean, rtol=1e-10, atol=1e-10)
        assert float(kernel.std(sigma, sigma_next)) == pytest.approx(float(std), rel=1e-10)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_the_last_step_is_x0_and_no_action(kernel):
    x, x0 = normal(1, 4, 3, 3), normal(1, 4, 3, 3, seed=1)
    assert kernel.std(*STEPS[-1]) == 0
    assert torch.equal(kernel.mean(x, x0, *STEPS[-1]), x0)


def variances(kernel, sigmas, spread):
    """(of x, as the flow has it) at each noise level but the first, where images are normal with this
    deviation and the denoiser is the best there is."""
    variance = ((1 - sigmas[0]) * spread) ** 2 + sigmas[0] ** 2
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        own = ((1 - sigma) * spread) ** 2 + sigma**2
        denoiser = spread**2 * (1 - sigma) / own  # x0 of x, as both have mean 0
        keep, drift = kernel.linear(sigma, sigma_next)
        factor = keep + drift * denoiser
        variance = factor**2 * variance + kernel.std(sigma, sigma_next) ** 2
        yield float(variance), float(((1 - sigma_next) * spread) ** 2 + sigma_next**2)


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(
    "kernel, first",
    [
        (FlowAncestral(), 1.0),
        (FlowAncestral(0.4), 1.0),
        (FlowSDE(), 0.9),
        (FlowDDIM(), 1.0),
        (FlowDDIM(0.4), 1.0),
    ],
)
def test_the_marginal_is_kept_in_many_small_steps(kernel, first, spread):
    """The SDE's noise is infinite at sigma 1, so that there no step is small: it begins below."""
    sigmas = torch.linspace(first, 0, 2001, dtype=torch.float64)[:-1]
    for variance, wanted in variances(kernel, sigmas, spread):
        assert variance == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("kernel", [FlowAncestral(), FlowCPS(), FlowCPS(0.3), FlowDDIM(0.4)], ids=str)
def test_where_the_denoiser_is_sure_the_noise_is_exactly_the_next_levels_in_any_step(kernel):
    """CPS draws a share of the noise anew in each step, however small, so that more is not kept."""
    for variance, wanted in variances(kernel, torch.stack(SIGMAS[:-1]), 0.0):
        assert variance == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_drift_is_the_derivative_by_x0_and_pull_makes_gradients_by_the_velocity_equal(kernel):
    x, z, weighted = normal(1, 4, 6, 6), normal(1, 4, 6, 6, seed=1), []
    for sigma, sigma_next in STEPS[:-1]:
        v = normal(1, 4, 6, 6, seed=2).requires_grad_()
        mean, std = kernel.mean(x, x - sigma * v, sigma, sigma_next), kernel.std(sigma, sigma_next)
        (slope,) = torch.autograd.grad(mean.sum(), v, retain_graph=True)
        torch.testing.assert_close(
            slope, (-sigma * kernel.drift(sigma, sigma_next)).expand_as(v), rtol=1e-10, atol=0
        )
        ratio = log_ratio(mean.detach() + std * z, mean, mean.detach(), std)
        (slope,) = torch.autograd.grad(ratio.sum(), v)
        weighted.append(kernel.pull(sigma, sigma_next) * slope.norm())
    torch.testing.assert_close(
        torch.stack(weighted), (z.norm() / z.numel()).expand(len(weighted)), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_files_give_back_the_same_kernel(kernel):
    assert kernel_of(described(kernel)) == kernel


@pytest.mark.parametrize("kernel", [Ancestral(), Ancestral(0.4), FlowDDIM(), FlowDDIM(0.4)], ids=str)
def test_cfg_plus_plus_is_a_step_with_more_guidance(kernel):
    """From the guided x0 along the noise that the unguided one leaves: the kernel's step from an x0 that is
    guided by cfg / (1 - kept)."""
    cfg, x, cond, uncond = 0.6, *(normal(2, 4, 3, 3, seed=i) for i in range(3))
    for sigma, sigma_next in STEPS:
        flow = isinstance(kernel, FlowDDIM)
        clean, clean_next = (1 - s if flow else 1.0 for s in (sigma, sigma_next))
        kept = kernel.kept(sigma, sigma_next)
        old = kept * (sigma / clean) if clean > 0 else torch.zeros(())  # noise level that is left
        step = clean_next * (uncond + cfg * (cond - uncond) + old * (x - clean * uncond) / sigma)
        guided = uncond + cfg / (1 - kept) * (cond - uncond)
        torch.testing.assert_close(kernel.mean(x, guided, sigma, sigma_next), step, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [FlowAncestral, FlowSDE, FlowCPS, FlowDDIM])
@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan])
def test_no_noise_at_all_is_an_error_that_says_so(kind, share):
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\].*deterministic"):
        kind(share)
