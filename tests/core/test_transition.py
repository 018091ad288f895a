import math

import pytest
import torch
from diffusers import DDIMScheduler

from d3po_core.candidates.kernels import Ancestral, Consistency, kl, log_prob, log_ratio, per_candidate_mean

SCHEDULE = [(14.6, 7.1), (7.1, 2.0), (2.0, 0.4), (0.4, 0.03)]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ddim(prediction, dtype, set_alpha_to_one=False):
    """diffusers' scheduler with SD1.5's noise schedule, its table in `dtype`."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        set_alpha_to_one=set_alpha_to_one,
        prediction_type=prediction,
    )
    scheduler.set_timesteps(20)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.to(dtype)
    return scheduler


def sigma_of(abar):
    return ((1 - abar) / abar).sqrt()


def to_vp(x, sigma):
    return x / (1 + sigma**2).sqrt()


def denoised(prediction, output, x_vp, abar):
    """x0 of a network's output by the definition of the two parametrisations."""
    a, s = abar.sqrt(), (1 - abar).sqrt()
    return (x_vp - s * output) / a if prediction == "epsilon" else a * x_vp - s * output


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ancestral_is_ddim_of_diffusers_in_vp_coordinates(prediction, eta, dtype, tolerance):
    scheduler, kernel = ddim(prediction, dtype), Ancestral(eta)
    for t in scheduler.timesteps:
        abar = scheduler.alphas_cumprod[t]
        abar_next = scheduler.alphas_cumprod[t - 50] if t >= 50 else scheduler.final_alpha_cumprod
        sigma, sigma_next = sigma_of(abar), sigma_of(abar_next)
        x_vp, output, other, noise = (normal(2, 4, 6, 6, seed=int(t) + i, dtype=dtype) for i in range(4))

        def mean(net):
            step = scheduler.step(net, t, x_vp, eta=eta, variance_noise=torch.zeros_like(x_vp))
            ours = kernel.mean(
                x_vp * (1 + sigma**2).sqrt(), denoised(prediction, net, x_vp, abar), sigma, sigma_next
            )
            return step.prev_sample, ours

        theirs, ours = mean(output)
        ref_theirs, ref_ours = mean(other)
        std_theirs = eta * scheduler._get_variance(t, t - 50).sqrt()
        std_ours = kernel.std(sigma, sigma_next)
        torch.testing.assert_close(to_vp(ours, sigma_next), theirs, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(
            to_vp(std_ours, sigma_next).to(dtype), std_theirs, rtol=10 * tolerance, atol=tolerance
        )

        sampled = scheduler.step(output, t, x_vp, eta=eta, variance_noise=noise).prev_sample
        policy, reference = (
            torch.distributions.Normal(m.double(), std_theirs.double()) for m in (theirs, ref_theirs)
        )
        expected = (policy.log_prob(sampled.double()) - reference.log_prob(sampled.double())).mean((1, 2, 3))
        x_next = sampled * (1 + sigma_next**2).sqrt()
        torch.testing.assert_close(
            log_ratio(x_next, ours, ref_ours, std_ours).double(),
            expected,
            rtol=1e-3 if dtype == torch.float32 else 1e-9,
            atol=tolerance,
        )


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ancestral_is_song_et_al_equations_12_and_16(eta):
    for abar, abar_next in [(0.0047, 0.02), (0.3, 0.5), (0.9, 0.9991)]:
        abar, abar_next = (torch.tensor(a, dtype=torch.float64) for a in (abar, abar_next))
        x_vp, noise = normal(2, 4, 3, 3), normal(2, 4, 3, 3, seed=1)
        x0 = (x_vp - (1 - abar).sqrt() * noise) / abar.sqrt()
        std = eta * ((1 - abar_next) / (1 - abar)).sqrt() * (1 - abar / abar_next).sqrt()
        mean = abar_next.sqrt() * x0 + (1 - abar_next - std**2).sqrt() * noise
        kernel, sigma, sigma_next = Ancestral(eta), sigma_of(abar), sigma_of(abar_next)
        ours = kernel.mean(x_vp * (1 + sigma**2).sqrt(), x0, sigma, sigma_next)
        torch.testing.assert_close(to_vp(ours, sigma_next), mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(to_vp(kernel.std(sigma, sigma_next), sigma_next), std, rtol=1e-10, atol=0)


def test_the_step_to_the_clean_image_is_x0_itself_and_deterministic():
    scheduler = ddim("epsilon", torch.float64, set_alpha_to_one=True)
    t, x_vp, noise = scheduler.timesteps[-1], normal(1, 4, 3, 3), normal(1, 4, 3, 3, seed=1)
    sigma = sigma_of(scheduler.alphas_cumprod[t])
    x0 = denoised("epsilon", noise, x_vp, scheduler.alphas_cumprod[t])
    ours = Ancestral(1.0).mean(x_vp * (1 + sigma**2).sqrt(), x0, sigma, 0.0)
    assert Ancestral(1.0).std(sigma, 0.0) == 0
    torch.testing.assert_close(
        ours, scheduler.step(noise, t, x_vp, eta=0.0).prev_sample, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("sigma, sigma_next", SCHEDULE)
def test_consistency_takes_x0_to_the_next_noise_level_by_new_noise(sigma, sigma_next):
    """As the forward process does: its variance is x0's and the noise level's, whatever x was."""
    x, x0 = normal(2, 4, 3, 3), normal(2, 4, 3, 3, seed=1).requires_grad_()
    kernel = Consistency()
    mean, std = kernel.mean(x, x0, sigma, sigma_next), kernel.std(sigma, sigma_next)
    assert torch.equal(mean, kernel.mean(-x, x0, sigma, sigma_next)) and torch.equal(mean, x0)
    assert std == sigma_next and kernel.std(sigma, 0.0) == 0
    (slope,) = torch.autograd.grad(mean.sum(), x0)
    assert torch.equal(slope, kernel.drift(sigma, sigma_next).expand_as(x0))
    assert kernel.pull(sigma, sigma_next) == pytest.approx(sigma_next / sigma, rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, -1.0, 1.5, math.nan])
def test_eta_outside_0_to_1_is_an_error_that_says_so(eta):
    with pytest.raises(ValueError, match=r"eta is .*\(0, 1\].*deterministic"):
        Ancestral(eta)


def test_log_prob_is_the_normal_distributions_mean_log_density():
    x_next, mean = normal(3, 4, 5, 5), normal(3, 4, 5, 5, seed=1)
    expected = torch.distributions.Normal(mean, 0.37).log_prob(x_next).mean((1, 2, 3))
    torch.testing.assert_close(log_prob(x_next, mean, 0.37), expected, rtol=1e-12, atol=1e-12)


def test_log_ratio_is_the_difference_of_log_probs():
    x_next, mean, ref_mean = (normal(3, 4, 5, 5, seed=i) for i in range(3))
    difference = log_prob(x_next, mean, 0.8) - log_prob(x_next, ref_mean, 0.8)
    torch.testing.assert_close(log_ratio(x_next, mean, ref_mean, 0.8), difference, rtol=1e-10, atol=1e-12)


def test_log_ratio_of_equal_means_is_exactly_zero_and_swapping_them_negates_it():
    x_next, mean, ref_mean = (normal(3, 4, 5, 5, seed=i, dtype=torch.float32) for i in range(3))
    assert (log_ratio(x_next, mean, mean.clone(), 1e-3) == 0).all()
    assert torch.equal(log_ratio(x_next, mean, ref_mean, 0.8), -log_ratio(x_next, ref_mean, mean, 0.8))


def test_kl_is_the_kl_divergence_of_two_normals():
    mean, ref_mean = normal(3, 4, 5, 5), normal(3, 4, 5, 5, seed=1)
    policy, reference = (torch.distributions.Normal(m, 0.37) for m in (mean, ref_mean))
    expected = torch.distributions.kl_divergence(policy, reference).mean((1, 2, 3))
    torch.testing.assert_close(kl(mean, ref_mean, 0.37), expected, rtol=1e-12, atol=0)


def test_gradients_with_respect_to_the_mean_match_finite_differences():
    x_next, mean, ref_mean = (normal(2, 2, 3, 3, seed=i) for i in range(3))
    mean.requires_grad_()
    for quantity in (
        lambda m: log_ratio(x_next, m, ref_mean, 0.5),
        lambda m: log_prob(x_next, m, 0.5),
        lambda m: kl(m, ref_mean, 0.5),
    ):
        assert torch.autograd.gradcheck(quantity, mean)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_drift_is_the_derivative_of_the_mean_by_x0(eta):
    kernel = Ancestral(eta)
    for sigma, sigma_next in SCHEDULE:
        x, x0 = normal(1, 2, 3, 3), normal(1, 2, 3, 3, seed=1).requires_grad_()
        (slope,) = torch.autograd.grad(kernel.mean(x, x0, sigma, sigma_next).sum(), x0)
        torch.testing.assert_close(
            slope, kernel.drift(sigma, sigma_next).expand_as(x0), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_pull_makes_every_steps_gradient_by_the_predicted_noise_equal(eta):
    kernel, x, z = Ancestral(eta), 5 * normal(1, 4, 6, 6), normal(1, 4, 6, 6, seed=1)
    weighted, plain = [], []
    for sigma, sigma_next in SCHEDULE:
        noise = normal(1, 4, 6, 6, seed=2).requires_grad_()
        mean, std = kernel.mean(x, x - sigma * noise, sigma, sigma_next), kernel.std(sigma, sigma_next)
        (slope,) = torch.autograd.grad(
            log_ratio(mean.detach() + std * z, mean, mean.detach(), std).sum(), noise
        )
        plain.append(slope.norm())
        weighted.append(kernel.pull(sigma, sigma_next) * slope.norm())
    torch.testing.assert_close(
        torch.stack(weighted), (z.norm() / z.numel()).expand(len(SCHEDULE)), rtol=1e-9, atol=0
    )
    assert max(plain) > 1.5 * min(plain)


def test_log_ratio_of_close_means_keeps_its_digits_in_float32():
    mean = 10 * normal(2, 4, 8, 8, dtype=torch.float32)
    ref_mean = mean + 1e-4 * normal(2, 4, 8, 8, seed=1, dtype=torch.float32)
    x_next = mean + 0.5 * normal(2, 4, 8, 8, seed=2, dtype=torch.float32)
    exact = log_ratio(x_next.double(), mean.double(), ref_mean.double(), 0.5)
    subtracted = log_prob(x_next, mean, 0.5) - log_prob(x_next, ref_mean, 0.5)
    torch.testing.assert_close(log_ratio(x_next, mean, ref_mean, 0.5).double(), exact, rtol=1e-5, atol=0)
    assert ((subtracted - exact) / exact).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_arithmetic_is_float32_whatever_the_network_computes_in(dtype):
    x_next, mean, ref_mean = (normal(2, 4, 8, 8, seed=i).to(dtype) for i in range(3))
    for ours, wide in [
        (
            log_ratio(x_next, mean, ref_mean, 0.3),
            log_ratio(x_next.float(), mean.float(), ref_mean.float(), 0.3),
        ),
        (log_prob(x_next, mean, 0.3), log_prob(x_next.float(), mean.float(), 0.3)),
        (kl(mean, ref_mean, 0.3), kl(mean.float(), ref_mean.float(), 0.3)),
    ]:
        assert ours.dtype == torch.float32 and torch.equal(ours, wide)
    x, x0 = normal(2, 4, 8, 8, dtype=torch.float32), normal(2, 4, 8, 8, seed=1).to(dtype)
    assert torch.equal(Ancestral().mean(x, x0, 7.1, 2.0), Ancestral().mean(x, x0.float(), 7.1, 2.0))


def test_video_latents_are_reduced_over_all_axes_but_the_first():
    x_next, mean, ref_mean = (normal(2, 4, 3, 5, 5, seed=i) for i in range(3))
    ratio = log_ratio(x_next, mean, ref_mean, 0.8)
    assert ratio.shape == log_prob(x_next, mean, 0.8).shape == kl(mean, ref_mean, 0.8).shape == (2,)
    flat = [t.flatten(2, 3) for t in (x_next, mean, ref_mean)]
    torch.testing.assert_close(ratio, log_ratio(*flat, 0.8), rtol=1e-12, atol=1e-12)
    assert Ancestral().mean(x_next, mean, 2.0, 0.4).shape == x_next.shape
    assert torch.equal(per_candidate_mean(torch.arange(8.0).view(2, 2, 2)), torch.tensor([1.5, 5.5]))
