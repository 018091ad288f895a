"""How clean candidates are noised and their errors weighed, against diffusers' schedulers; recorded noise."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from d3po_core.candidates.images import CleanCandidates
from d3po_core.candidates.kernels import per_candidate_mean
from d3po_core.candidates.preferences import Preferences
from d3po_core.training.loop import Example, Settings, Trainer

LEVELS = [0, 20, 400, 800, 999]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def candidates(prediction="epsilon", sigmas=(0.3, 0.9), n=3, **options):
    return CleanCandidates(normal(n, 4, 6, 6), torch.tensor(sigmas), prediction, "images", "net", **options)


def error(clean, sigma, x0):
    """A denoiser's error in units of the network's output, as the loss has it."""
    return per_candidate_mean((x0 - clean.latents) ** 2) / clean.target_scale(sigma) ** 2


# --- against diffusers ---


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("prediction, theirs", [("epsilon", "epsilon"), ("v", "v_prediction")])
def test_epsilon_and_v_are_those_of_diffusers(prediction, theirs, level):
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=theirs,
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    clean, noise, output = candidates(prediction), normal(1, 4, 6, 6, seed=1), normal(3, 4, 6, 6, seed=2)
    t, noises = torch.tensor([level]), noise.expand(3, -1, -1, -1)
    kept = scheduler.alphas_cumprod[level].sqrt()  # their x is ours in the coordinates x / sqrt(1 + sigma^2)
    sigma = (1 - kept**2).sqrt() / kept
    x = scheduler.add_noise(clean.latents, noises, t)
    torch.testing.assert_close(kept * clean.noised(clean.latents, sigma, noise), x, rtol=1e-10, atol=1e-10)
    x0 = scheduler.step(output, level, x, generator=torch.Generator()).pred_original_sample
    target = noises if prediction == "epsilon" else scheduler.get_velocity(clean.latents, noises, t)
    torch.testing.assert_close(
        error(clean, sigma, x0), per_candidate_mean((output - target) ** 2), rtol=1e-8, atol=0
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("level", [0.02, 0.3, 0.8, 1.0])
def test_flow_is_that_of_diffusers(level, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.array([level]))
    sigma = scheduler.sigmas[0]
    assert sigma.item() == pytest.approx(shift * level / (1 + (shift - 1) * level))
    clean, noise, output = candidates("flow"), normal(1, 4, 6, 6, seed=1), normal(3, 4, 6, 6, seed=2)
    x = scheduler.scale_noise(clean.latents, scheduler.timesteps.expand(3), noise)
    torch.testing.assert_close(clean.noised(clean.latents, sigma, noise), x, rtol=1e-12, atol=1e-12)
    velocity_error = per_candidate_mean((output - (noise - clean.latents)) ** 2)
    torch.testing.assert_close(
        error(clean, sigma, x - sigma.double() * output), velocity_error, rtol=1e-10, atol=0
    )
    x0 = scheduler.step(output, scheduler.timesteps[0], x).prev_sample  # a step to 0; it computes in float32
    torch.testing.assert_close(error(clean, sigma, x0), velocity_error, rtol=3e-4, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_the_scale_is_the_slope_of_x0_in_the_networks_output(prediction):
    sigma, x, output = torch.tensor(0.7, dtype=torch.float64), normal(5), normal(5, seed=1).requires_grad_()
    denoised = {
        "epsilon": x - sigma * output,
        "flow": x - sigma * output,
        "v": x / (1 + sigma**2) - output * sigma / (1 + sigma**2).sqrt(),
    }[prediction]
    (slope,) = torch.autograd.grad(denoised.sum(), output)
    torch.testing.assert_close(candidates(prediction).target_scale(sigma).expand(5), -slope)


def test_flow_at_level_1_is_noise_alone():
    clean, noise = candidates("flow"), normal(1, 4, 6, 6, seed=1)
    assert (clean.noised(clean.latents, 1.0, noise) == noise).all()


def test_flow_levels_lie_up_to_1():
    candidates("flow", (0.1, 1.0000001))
    with pytest.raises(ValueError, match="flow model must not be above 1, but one is 14.6"):
        candidates("flow", (0.1, 14.6))


# --- recorded noise ---


@pytest.mark.parametrize("copies", [1, 3])
def test_recorded_noise_takes_the_place_of_fresh_noise_at_the_same_levels(copies):
    noise = normal(1, 4, 6, 6, seed=5)
    recorded, fresh = (
        list(clean.draws(4, torch.Generator().manual_seed(0)))
        for clean in (
            candidates(sigmas=torch.linspace(0.1, 1.0, 40).tolist(), **known)
            for known in ({"noise": noise.repeat(copies, 1, 1, 1)}, {})
        )
    )
    assert [sigma for sigma, _ in recorded] == [sigma for sigma, _ in fresh]
    assert len({sigma.item() for sigma, _ in recorded}) == 4
    assert all(torch.equal(drawn, noise) for _, drawn in recorded)
    assert not any(torch.equal(drawn, noise) for _, drawn in fresh)


def test_noise_that_is_not_the_sets_is_refused():
    with pytest.raises(ValueError, match="from the same noise"):
        candidates(noise=normal(3, 4, 6, 6))
    for wrong in (normal(1, 4, 6, 5), normal(1, 4, 6, 6).expand(2, -1, -1, -1)):
        with pytest.raises(ValueError, match="does not fit latents"):
            candidates(noise=wrong)


@pytest.mark.parametrize("prediction, kept", [("epsilon", 1.0), ("flow", 0.5)])
def test_training_sees_the_recorded_noise(setup, prediction, kept):
    _, adapter = setup(dtype=torch.float64)
    noise, seen = normal(1, 2, 4, 4, seed=5), []
    clean = CleanCandidates(normal(2, 2, 4, 4), torch.tensor([0.5]), prediction, "images", "net", noise=noise)

    def denoise(x, sigma):
        seen.append(x)
        return adapter.root(x, sigma)

    Trainer(adapter, Settings(draws_per_set=2)).update([Example(Preferences(clean, ((0, 1),)), denoise)])
    assert len(seen) == 4, "policy and reference, twice"
    for x in seen:
        torch.testing.assert_close(x, kept * clean.latents + 0.5 * noise, rtol=0, atol=1e-12)
