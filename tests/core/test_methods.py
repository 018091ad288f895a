"""An update of every method against its definition, written out candidate by candidate in float64."""

import math
from dataclasses import replace

import pytest
import torch

from d3po_core.training.methods import LABELS, LIKED, METHODS, NOISED, PAIRS, RECORDED, REWARDS, TASTE
from tests.core.gradients import assert_same, inside, log_p
from tests.core.judged import JUDGED, MASK, SETTINGS, USUAL_MARGIN, Likes, masked, update, wanted

STEPS = [name for name, method in METHODS.items() if method.terms != NOISED]
DRAWS = [name for name, method in METHODS.items() if method.terms != RECORDED]


def sigmoid(x):
    return 1 / (1 + (-x).exp())


# --- the losses by their definitions, of the `of` one term is: lists over candidates of log-ratios, KLs… ---


def dpo(t, beta, smoothing=0.0, r_of_losers=None):
    of_losers = r_of_losers or (lambda w, l: t["r"][l])
    margins = [beta * (t["r"][w] - of_losers(w, l)) for w, l in t["pairs"]]
    return mean([-(1 - smoothing) * sigmoid(m).log() - smoothing * sigmoid(-m).log() for m in margins])


def mean(values):
    return sum(values) / len(values)


def d3po(t, s):
    clip = 0 if t["drawn"] else s.clip
    clamped = [r.exp().clamp(1 - clip, 1 + clip).log() if clip else r for r in t["r"]]
    return dpo(t | {"r": clamped}, t["beta"])


def sdpo(t, s):
    def losers(w, l):
        g_w, g_l = t["g"][w].flatten(), t["g"][l].flatten()
        share = ((1 - s.winner_share) * (g_w @ g_w) / (g_w @ g_l)).item() if g_w @ g_l > 0 else 1.0
        share = min(1.0, share)
        return share * t["r"][l] + (1 - share) * t["r"][l].detach()

    return dpo(t, t["beta"], r_of_losers=losers)


def beta_dpo(t, s):
    here = mean([t["beta"] * (t["r"][w] - t["r"][l]).item() for w, l in t["pairs"]])
    usual = 0.9 * USUAL_MARGIN + 0.1 * here
    return dpo(t, t["beta"] * min(2.0, max(0.5, 1 + s.adaptation * (here - usual))))


def mapo(t, s):
    f = [s.mapo_snr * e / ((s.mapo_snr * e).exp() - 1) for e in t["e"]]
    return mean([t["e"][w] - s.mapo_beta * sigmoid(1000 * (f[w] - f[l])).log() for w, l in t["pairs"]])


def kto(t, s):
    named = [(i, up) for i, up in enumerate(t["liked"]) if up is not None]
    z = mean([t["kl"][i].item() for i, _ in named])
    return mean([1 - sigmoid(t["beta"] * (t["r"][i] - z if up else z - t["r"][i])) for i, up in named])


def gains(t):
    scores = torch.tensor(t["scores"])
    return ((scores - scores.mean()) / (scores.std(correction=0) + 1e-6)).tolist()


def ddpo(t, s):
    ratios = [q.exp() for q in t["q"]]
    return mean(
        [-min(a * p, a * p.clamp(1 - s.ratio_clip, 1 + s.ratio_clip)) for a, p in zip(gains(t), ratios)]
    )


def rwr(t, s):
    weights = [math.exp(s.reward_beta * score) for score in t["scores"]]
    return -sum(w * r for w, r in zip(weights, t["r"])) / sum(weights)


def nft(t, s):
    def weighted(error):
        return error.square().mean() / error.abs().mean().item()

    values, b = [], s.nft_beta
    for a, v, o, x0, kl in zip(gains(t), t["v"], t["o"], t["x0"], t["kl"]):
        r = 0.5 + a / 10
        good, bad = weighted(b * v + (1 - b) * o - x0), weighted((1 + b) * o - b * v - x0)
        values.append(5 / b * (r * good + (1 - r) * bad) + s.kl_weight * 2 * kl)
    return mean(values)


LOSSES = {
    "D3PO": d3po,
    "Diffusion-DPO": lambda t, s: dpo(t, t["beta"]),
    "IPO": lambda t, s: mean([(t["beta"] * (t["r"][w] - t["r"][l]) - 0.5) ** 2 for w, l in t["pairs"]]),
    "DPO with label smoothing": lambda t, s: dpo(t, t["beta"], s.label_smoothing),
    "DPO with winner anchor": lambda t, s: (
        dpo(t, t["beta"]) - s.winner_weight * t["beta"] / 2 * mean([t["r"][w] for w, _ in t["pairs"]])
    ),
    "Diffusion-SDPO": sdpo,
    "beta-DPO": beta_dpo,
    "MaPO": mapo,
    "Diffusion-KTO": kto,
    "DDPO": ddpo,
    "DPOK": lambda t, s: ddpo(t, s) + s.kl_weight * mean(t["kl"]),
    "reward-weighted": rwr,
    "DiffusionNFT": nft,
    "taste guidance": lambda t, s: mean(t["guided"][:2]),
    "supervised": lambda t, s: -mean([r for r, up in zip(t["r"], t["liked"]) if up]),
}


def parts(name, judged):
    """Over how many pairs or candidates a set's loss is a mean."""
    of = METHODS[name].of
    return {
        PAIRS: len(judged["pairs"]),
        REWARDS: len(judged["scores"]),
        LIKED: sum(map(bool, judged["liked"])),
        LABELS: sum(up is not None for up in judged["liked"]),
        TASTE: 2,
    }[of]


def steps_of(adapter, settings, example, sampled):
    """What the losses take, of each random step of a recording.

    `sampled` holds each step's log-probs under the policy that sampled."""
    trajectory = example.candidates
    for i, sampled_log_probs in enumerate(sampled):
        sigma, sigma_next = trajectory.sigmas[i].double(), trajectory.sigmas[i + 1].double()
        std = sigma_next * (1 - sigma_next**2 / sigma**2).sqrt()
        drift = 1 - (sigma_next**2 - std**2).sqrt() / sigma
        term = {"r": [], "kl": [], "q": [], "g": [], "beta": settings.beta, "drawn": False}
        for candidate in range(trajectory.count):
            x, x_next = (trajectory.states[j, candidate : candidate + 1] for j in (i, i + 1))
            policy, weight = log_p(example, candidate, i)
            with adapter.off(), torch.no_grad():
                reference, _ = log_p(example, candidate, i)
                ref_x0 = example.denoise(x, sigma[None])
            weight = weight if settings.weighting == "standardised" else 1.0
            x0 = example.denoise(x, sigma[None])
            leaf = x0.detach().requires_grad_()
            density = torch.distributions.Normal(leaf + (1 - drift) * (x - leaf), std).log_prob(x_next)
            term["g"].append(torch.autograd.grad(inside(trajectory, density).mean(), leaf)[0])
            term["r"].append(weight * (policy - reference))
            term["q"].append(weight * (policy - sampled_log_probs[candidate]))
            apart = inside(trajectory, drift * (x0 - ref_x0))
            term["kl"].append(weight * apart.square().mean() / (2 * std**2))
        yield term


def log_probs(example):
    """Of each random step and candidate."""
    trajectory = example.candidates
    with torch.no_grad():
        return [
            [log_p(example, candidate, i)[0] for candidate in range(trajectory.count)]
            for i in range(len(trajectory.sigmas) - 2)
        ]


def towards(adapter, denoise, noised, level, draw, mask):
    """What a taste adds to the reference's x0: 2 sigma^2 of its gradient, through the whole Jacobian."""

    def ref_x0(x):
        return x - level * denoise.predict(x, level[None])

    with adapter.off():
        jacobian = torch.autograd.functional.jacobian(ref_x0, noised).reshape(noised.numel(), -1)
        made = ref_x0(noised).detach()
    slope = ((wanted(draw, made) - made) * (1.0 if mask is None else mask.double())).flatten()
    return 2 * level**2 * (jacobian.T @ slope).view_as(noised)


def draws_of(adapter, settings, example, passes, start, looks=()):
    """What the losses take, of each noised draw.

    `passes` are the (x, sigma) that the policy was given, `start` the weights of the policy that sampled, and
    `looks` the draws that a taste was asked with."""
    images, denoise = example.candidates.latents, example.denoise
    adapter.hold("sampled", start)

    def squares(values):
        return inside(example.candidates, values).square().mean()

    used = METHODS[settings.method].taking_part(example.preferences)
    for number, (x, sigma) in enumerate(passes):
        draw = looks[number] if looks else 0
        noise, level = (x[0] - images[used[0]]) / sigma[0], sigma[0]
        term = {name: [] for name in ("r", "kl", "e", "g", "v", "o", "x0", "guided")}
        term |= {"beta": settings.dpo_beta, "drawn": True}
        for image in images:
            noised = (image + level * noise)[None]
            with adapter.off(), torch.no_grad():
                ref = denoise.predict(noised, level[None])
            with adapter.acting("sampled"), torch.no_grad():
                sampled = denoise.predict(noised, level[None])
            predicted = denoise.predict(noised, level[None])
            leaf = predicted.detach().requires_grad_()
            term["g"].append(torch.autograd.grad(-0.5 * squares(leaf - noise), leaf)[0])
            error, ref_error = squares(predicted - noise), squares(ref - noise)
            term["e"].append(error)
            term["r"].append((ref_error - error) / 2)
            term["kl"].append(squares(predicted - ref) / 2)
            x0, ref_x0 = (noised - level * made for made in (predicted, ref))
            pull = towards(adapter, denoise, noised, level, draw, example.candidates.mask)
            of_policy, of_ref = (squares((made - ref_x0 - pull) / level) for made in (x0, ref_x0))
            term["guided"].append((of_policy - of_ref) / 2)
            for name, x0 in (
                ("v", noised - level * predicted),
                ("o", noised - level * sampled),
                ("x0", image[None]),
            ):
                term[name].append(inside(example.candidates, x0))
        yield term


def expected(settings, judged, adapter, terms_by_set):
    """The loss's gradient, from the terms of each set."""
    counts = [parts(settings.method, each) for each in judged]
    value = sum(
        n * mean([LOSSES[settings.method](term | each, settings) for term in terms])
        for n, each, terms in zip(counts, judged, terms_by_set)
    ) / sum(counts)
    return torch.autograd.grad(value, adapter.parameters()), value.item()


# --- value and gradient ---


@pytest.mark.parametrize(
    "weighting, mask",
    [("paper", None), ("standardised", None), ("standardised", MASK)],
    ids=["paper", "standardised", "masked"],
)
@pytest.mark.parametrize("name", STEPS)
def test_on_recorded_steps_an_update_is_the_method_written_out(toy, recorded, name, weighting, mask):
    adapter, examples = recorded()
    examples = masked(examples, mask)
    start, sampled = adapter.weights(), [log_probs(example) for example in examples]
    toy.stir(adapter, seed=3)
    settings = replace(SETTINGS, method=name, weighting=weighting)
    ours, metrics = update(adapter, settings, examples, start)
    theirs, value = expected(
        settings,
        JUDGED,
        adapter,
        [steps_of(adapter, settings, example, of_set) for example, of_set in zip(examples, sampled)],
    )
    assert metrics["loss"] == pytest.approx(value, rel=1e-7)
    assert_same(ours, theirs, tolerance=1e-6)


@pytest.mark.parametrize("name", ["DDPO", "DPOK"])
def test_a_recording_is_held_against_the_policy_that_made_it_whatever_the_lora_began_with(recorded, name):
    adapter, examples = recorded(size=0.03)
    with adapter.off():
        sampled = [log_probs(example) for example in examples]
    began = adapter.weights()
    settings = replace(SETTINGS, method=name)
    own = [replace(example, own_sampler=True) for example in examples]
    ours, metrics = update(adapter, settings, own, began)
    theirs, _ = expected(
        settings,
        JUDGED,
        adapter,
        [steps_of(adapter, settings, example, of_set) for example, of_set in zip(examples, sampled)],
    )
    assert_same(ours, theirs, tolerance=1e-6)
    assert 0 < metrics["clip fraction"] < 1
    at_the_start, metrics = update(adapter, settings, examples, began)
    assert metrics["clip fraction"] == 0 and not all(map(torch.allclose, ours, at_the_start))


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("name", DRAWS)
def test_on_noised_images_an_update_is_the_method_written_out(monkeypatch, toy, drawn, name, mask):
    adapter, examples = drawn()
    examples, start = masked(examples, mask), adapter.weights()
    toy.stir(adapter, seed=3)
    settings, asked = replace(SETTINGS, method=name), []
    gradient = Likes.gradient
    monkeypatch.setattr(Likes, "gradient", lambda *a: (asked.append(a[-1]), gradient(*a))[1])
    ours, metrics = update(adapter, settings, examples, start)
    seen, n, looks = examples[0].denoise.seen, settings.draws_per_set, asked
    if METHODS[name].of == TASTE:
        seen = seen[1::2]  # the first of two is the reference, on its way to the taste's gradient
    theirs, value = expected(
        settings,
        JUDGED,
        adapter,
        [
            draws_of(adapter, settings, example, seen[i * n : (i + 1) * n], start, looks[i * n : (i + 1) * n])
            for i, example in enumerate(examples)
        ],
    )
    assert metrics["loss"] == pytest.approx(value, rel=1e-7)
    assert_same(ours, theirs, tolerance=1e-7)


def test_every_method_is_written_out_here():
    assert set(LOSSES) == set(METHODS) == set(STEPS) | set(DRAWS)
