"""A tiny SD-like network, a recorder that samples a trajectory from it, and what several test files share."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from d3po_core.candidates.kernels import Ancestral
from d3po_core.candidates.preferences import Preferences
from d3po_core.candidates.trajectory import Trajectory
from d3po_core.training.adapter import Adapter
from d3po_core.training.loop import Example
from tests.core.judged import JUDGED, Likes, Predictor, images
from tests.core.rounds import Round

SIGMAS = (14.6, 4.0, 1.5, 0.5, 0.0)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x):
        return self.to_out(
            nn.functional.scaled_dot_product_attention(self.to_q(x), self.to_k(x), self.to_v(x))
        )


class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, 2 * width)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * torch.tanh(gate)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(Gate(width), nn.Dropout(0.0), nn.Linear(width, width))

    def forward(self, x):
        return self.net(x)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn1, self.ff = Attention(width), FeedForward(width)

    def forward(self, x):
        x = x + self.attn1(x)
        return x + self.ff(x)


class Net(nn.Module):
    """Predicts the noise. Its layers are named as an SD UNet's: transformer_blocks.0.attn1.to_q, .ff.net."""

    def __init__(self, channels=2, width=4):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.time_embed = nn.Linear(1, width)
        self.transformer_blocks = nn.ModuleList([Block(width)])
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x, sigma):
        h = torch.tanh(self.conv_in(x) + self.time_embed(sigma.log()[:, None])[..., None, None])
        tokens = h.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        return self.conv_out(tokens.transpose(1, 2).unflatten(2, h.shape[2:]))


class Denoiser:
    """The core's seam, denoise(x, sigma) -> x0, over a network that predicts noise. It counts its calls."""

    def __init__(self, net):
        self.net, self.batches, self.with_gradient = net, [], []

    def __call__(self, x, sigma):
        self.batches.append(len(x))
        self.with_gradient.append(torch.is_grad_enabled())
        sigma_x = sigma.view(-1, 1, 1, 1)
        return x - sigma_x * self.net(x / (1 + sigma_x**2).sqrt(), sigma)


def make_net(seed=0, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net().to(dtype).eval().requires_grad_(False)


def record(denoise, candidates=3, seed=0, dtype=torch.float32, sigmas=SIGMAS, eta=1.0, policy="base", size=4):
    """Sample a trajectory: candidates share the initial noise and differ by the steps' noise."""
    generator = torch.Generator().manual_seed(seed)
    kernel, sigmas = Ancestral(eta), torch.tensor(sigmas)
    x = sigmas[0] * torch.randn(1, 2, size, size, generator=generator, dtype=dtype).repeat(
        candidates, 1, 1, 1
    )
    states, denoised = [x], []
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        with torch.no_grad():
            denoised.append(denoise(x, sigma.to(x).expand(len(x))))
        noise = torch.randn(x.shape, generator=generator, dtype=dtype)
        x = kernel.mean(x, denoised[-1], sigma, sigma_next) + kernel.std(sigma, sigma_next).to(x) * noise
        states.append(x)
    return Trajectory(
        torch.stack(states), torch.stack(denoised), sigmas, kernel, f"set {seed}", "net", policy
    )


def stir(adapter, seed=1, size=0.1):
    """Give B, or the factor in its place that begins at 0, random values: the policy is not the base then."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if name.endswith(("lora_up.weight", "hada_w2_b", "lokr_w1")):
                parameter.copy_(
                    size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                )


def make_examples(denoise, pairs=(((0, 1), (0, 2), (2, 1)),), **options):
    """An example per entry of `pairs`, each with its own trajectory and as many candidates as it names."""
    return [
        Example(
            Preferences(record(denoise, candidates=1 + max(map(max, wanted)), seed=seed, **options), wanted),
            denoise,
        )
        for seed, wanted in enumerate(pairs)
    ]


@pytest.fixture
def toy():
    return SimpleNamespace(Denoiser=Denoiser, net=make_net, record=record, stir=stir, examples=make_examples)


@pytest.fixture
def setup():
    """(denoise, adapter) of a fresh network, ready to train."""

    def make(dtype=torch.float32, **options):
        net = make_net(dtype=dtype)
        adapter = Adapter(
            net, **{"rank": 2, "alpha": 3.0, "targets": "all linear and convolutions", **options}
        )
        return Denoiser(net), adapter

    return make


@pytest.fixture
def begin(toy, setup):
    """begin(folder, **options): a round of training on the run in that folder."""
    return lambda folder, **options: Round(folder, toy, setup, **options)


@pytest.fixture
def recorded(setup):
    """(adapter away from its start, judged recordings by the base)"""

    def make(size=0.1, dtype=torch.float64, judged=JUDGED, **adapter):
        denoise, adapter = setup(dtype=dtype, **adapter)
        with adapter.off():
            examples = [
                Example(Preferences(record(denoise, len(each["scores"]), seed, dtype), **each), denoise)
                for seed, each in enumerate(judged)
            ]
        stir(adapter, size=size)
        return adapter, examples

    return make


@pytest.fixture
def drawn(setup):
    """(adapter away from its start, judged images)"""

    def make(size=0.1, dtype=torch.float64, judged=JUDGED, **adapter):
        _, adapter = setup(dtype=dtype, **adapter)
        stir(adapter, size=size)
        denoise = Predictor(adapter.root)
        return adapter, [
            Example(Preferences(images(each["scores"], seed, dtype), **each, taste=Likes()), denoise, denoise)
            for seed, each in enumerate(judged)
        ]

    return make
