"""Candidates that are judged inside a mask alone: nothing is learned of the rest."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from d3po_core.candidates.kernels import kl, log_prob, log_ratio, per_candidate_mean
from d3po_core.candidates.trajectory import FORMAT, MASK_FORMAT, Trajectory
from d3po_core.dataset.store import Dataset
from d3po_core.training import implicit
from d3po_core.training.loop import Trainer
from d3po_core.training.methods import METHODS, NOISED, RECORDED
from d3po_core.training.randomness import generator_of
from tests.core.gradients import assert_same
from tests.core.judged import MASK, SETTINGS, images, masked, update

SOFT = torch.linspace(0, 1, 32).view(1, 2, 4, 4)
STD = 0.3
STEPS = [name for name, method in METHODS.items() if method.terms != NOISED]
DRAWS = [name for name, method in METHODS.items() if method.terms != RECORDED]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- the formulas ---


def test_inside_a_mask_the_figures_are_those_of_the_gaussian_of_these_elements():
    x, mean, ref_mean = (normal(3, 2, 4, 4, seed=seed) for seed in range(3))
    inside = (MASK == 1).expand_as(x)
    policy, reference = (
        Normal(of[inside].view(3, -1), torch.tensor(STD, dtype=torch.float64)) for of in (mean, ref_mean)
    )
    chosen = x[inside].view(3, -1)
    log_p, log_p_ref = policy.log_prob(chosen).mean(1), reference.log_prob(chosen).mean(1)
    torch.testing.assert_close(log_prob(x, mean, STD, MASK), log_p, rtol=1e-12, atol=0)
    torch.testing.assert_close(log_ratio(x, mean, ref_mean, STD, MASK), log_p - log_p_ref, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        kl(mean, ref_mean, STD, MASK), kl_divergence(policy, reference).mean(1), rtol=1e-12, atol=0
    )


def test_a_soft_mask_weighs_the_elements():
    values = normal(3, 2, 4, 4)
    weights = SOFT.double()
    expected = [float((weights[0] * one).sum() / weights.sum()) for one in values]
    assert per_candidate_mean(values, SOFT).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mask_of_ones_changes_no_bit(dtype):
    values = normal(3, 4, 7, 5, dtype=dtype)
    assert torch.equal(per_candidate_mean(values, torch.ones(1, 4, 7, 5)), per_candidate_mean(values))


# --- updates ---


@pytest.mark.parametrize("kind, name", [("recorded", s) for s in STEPS] + [("drawn", d) for d in DRAWS])
def test_with_a_mask_of_ones_an_update_is_the_same_to_the_bit(request, kind, name):
    adapter, examples = request.getfixturevalue(kind)(dtype=torch.float32)
    settings = replace(SETTINGS, method=name)
    whole = update(adapter, settings, examples)
    ones = update(adapter, settings, masked(examples, torch.ones(1, 2, 4, 4)))
    assert ones[1] == whole[1] and all(map(torch.equal, ones[0], whole[0]))


@pytest.mark.parametrize("mask", [MASK, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("kind, name", [("recorded", s) for s in STEPS] + [("drawn", d) for d in DRAWS])
def test_no_gradient_comes_from_outside_of_a_mask(request, kind, name, mask):
    adapter, examples = request.getfixturevalue(kind)()
    (example, *_) = masked(examples, mask)
    outputs = []

    def denoise(x, sigma):
        x0 = example.denoise(x, sigma)
        if torch.is_grad_enabled():
            x0.retain_grad()
            outputs.append(x0)
        return x0

    update(adapter, replace(SETTINGS, method=name), [replace(example, denoise=denoise, unconditional=None)])
    outside = (mask == 0).expand_as(outputs[0])
    pulls = [x0.grad for x0 in outputs if x0.grad.any()]  # a clamp may hold all of a step
    assert pulls and not any(pull[outside].any() for pull in pulls)


@pytest.mark.parametrize("kind", ["recorded", "drawn"])
def test_the_safeguard_follows_the_log_ratios_gradient(request, kind):
    adapter, examples = request.getfixturevalue(kind)()
    (example, *_) = masked(examples, SOFT)
    outputs = []

    def denoise(x, sigma):
        outputs.append(example.denoise(x, sigma).detach().requires_grad_())
        return outputs[-1]

    trainer = Trainer(adapter, replace(SETTINGS, method="Diffusion-SDPO"))
    judged = trainer.judged(replace(example, denoise=denoise))
    term = next(iter(judged.drawn(generator_of("a draw"))))()
    values = term.values(slice(None))
    (gradient,) = torch.autograd.grad(values.log_ratio.sum(), outputs[-1])
    factor = gradient.abs().sum() / values.direction.abs().sum()
    torch.testing.assert_close(factor * values.direction, gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind, name", [("recorded", "D3PO"), ("drawn", "Diffusion-DPO")])
def test_in_passes_of_one_candidate_a_masked_update_is_the_same(request, kind, name):
    adapter, examples = request.getfixturevalue(kind)()
    settings = replace(SETTINGS, method=name)
    whole, _ = update(adapter, settings, masked(examples, SOFT))
    apart, _ = update(adapter, replace(settings, candidates_per_pass=1), masked(examples, SOFT))
    assert_same(apart, whole)


def test_the_implicit_reward_looks_inside_the_mask():
    clean = replace(images((1.0, 0.0), 0), mask=MASK)
    inside = MASK.double()

    def errors(outside):
        return implicit.errors(
            clean, lambda x, sigma: 0.5 * x * inside + outside * (1 - inside), 3, generator_of("draws")
        )

    assert torch.equal(errors(0.0), errors(100.0))
    whole = replace(clean, mask=None)
    squares = implicit.errors(whole, lambda x, sigma: 0.5 * x, 3, generator_of("draws"))
    assert not torch.allclose(errors(0.0), squares)


# --- files ---


@pytest.fixture
def trajectory(toy):
    whole = toy.record(toy.Denoiser(toy.net()))
    return replace(whole, mask=SOFT, noise=normal(1, 2, 4, 4, dtype=torch.float32))


def cut(whole):
    """A window of the recording's steps."""
    return replace(
        whole,
        states=whole.states[1:4],
        denoised=whole.denoised[1:3],
        sigmas=whole.sigmas[1:4].clone(),
        schedule=whole.sigmas,
        final=whole.states[-1],
    )


@pytest.mark.parametrize("of", [lambda whole: whole, cut], ids=["whole", "window"])
@pytest.mark.parametrize("read", [Trajectory.open, Trajectory.load], ids=["open", "load"])
def test_files_give_back_every_bit(trajectory, tmp_path, of, read):
    kept, path = of(trajectory), tmp_path / "masked.safetensors"
    kept.save(path)
    again = read(path)
    for name in ("states", "denoised", "sigmas", "mask", "noise"):
        assert torch.equal(getattr(again, name)[:], getattr(kept, name)), name
    assert torch.equal(again.finished, kept.finished) and again.first == kept.first
    assert MASK_FORMAT.encode() in path.read_bytes(), "what does not know of masks must not read it"
    replace(trajectory, mask=None, noise=None).save(path)
    assert FORMAT.encode() in path.read_bytes() and read(path).mask is None


def test_a_dataset_gives_back_every_bit(trajectory, tmp_path):
    with Dataset(tmp_path) as dataset:
        dataset.add_set(trajectory.set_id, trajectory=trajectory)
        kept = dataset.trajectory(trajectory.set_id)
    assert torch.equal(kept.mask, trajectory.mask) and torch.equal(kept.noise, trajectory.noise)


def test_a_mask_that_is_damaged_is_found(trajectory, tmp_path):
    path = tmp_path / "masked.safetensors"
    trajectory.save(path)
    content = bytearray(path.read_bytes())
    content[content.index(SOFT.numpy().tobytes()) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its mask is not what was written"):
        Trajectory.open(path)


@pytest.mark.parametrize(
    "mask, words",
    [
        (torch.zeros(1, 2, 4, 4), "nothing lies inside"),
        (torch.full((1, 2, 4, 4), 1.5), "lies in 0...1"),
        (torch.full((1, 2, 4, 4), float("nan")), "lies in 0...1"),
        (torch.ones(1, 1, 4, 4), "does not fit"),
        (torch.ones(3, 2, 4, 4), "does not fit"),
        (torch.ones(1, 2, 4, 4, dtype=torch.int64), "holds fractions"),
    ],
)
def test_what_is_no_mask_is_an_error(trajectory, mask, words):
    with pytest.raises(ValueError, match=words):
        replace(trajectory, mask=mask)
    with pytest.raises(ValueError, match=words):
        replace(images((1.0, 0.0, 0.5), 0), mask=mask)


def test_a_mask_without_the_noise_around_it_is_an_error(trajectory):
    with pytest.raises(ValueError, match="both the mask and the noise"):
        replace(trajectory, noise=None)


@pytest.mark.parametrize(
    "noise", [torch.ones(1, 2, 2, 2), torch.ones(3, 2, 4, 4), torch.full((1, 2, 4, 4), float("nan"))], ids=str
)
def test_what_is_no_noise_around_a_mask_is_an_error(trajectory, noise):
    with pytest.raises(ValueError, match="noise .* around a mask"):
        replace(trajectory, noise=noise)
