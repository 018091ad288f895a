"""EDICT: its steps against the paper's, their inverse, and the gradient without what was kept."""

import gc
import weakref

import pytest
import torch

from d3po_core.search import edict

SIGMAS = torch.cat([torch.linspace(14.6, 0.03, 50, dtype=torch.float64), torch.zeros(1).double()])


class Toy(torch.nn.Module):
    """A denoiser whose prediction bends, of any precision."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Conv2d(3, 16, 3, padding=1, dtype=dtype)
        self.outer = torch.nn.Conv2d(16, 3, 3, padding=1, dtype=dtype)
        self.requires_grad_(False)

    def forward(self, x, sigma):
        sigma = sigma.view(-1, 1, 1, 1).to(self.inner.weight.dtype)
        x = x.to(sigma)
        scale = (1 + sigma**2).sqrt()
        return (x / scale**2 + sigma / scale * self.outer(torch.tanh(self.inner(x / scale)))).double()


def start(count=2):
    generator = torch.Generator().manual_seed(1)
    return 14.6 * torch.randn(count, 3, 5, 5, generator=generator, dtype=torch.float64)


def test_the_steps_are_the_paper_s_in_the_coordinates_of_ddim():
    """x / sqrt(1 + sigma^2), with alpha_bar = 1 / (1 + sigma^2), and the paper's a and b (arXiv
    2211.12446)."""
    denoise, sigmas, p = Toy(), torch.tensor([14.6, 3.0, 0.5, 0.0], dtype=torch.float64), 0.93
    bars = 1 / (1 + sigmas**2)

    def noise(z, i):
        x = z / bars[i].sqrt()
        return (x - denoise(x, sigmas[i].expand(len(z)))) / sigmas[i]

    x = y = start() * bars[0].sqrt()
    for i in range(3):
        a = (bars[i + 1] / bars[i]).sqrt()
        b = (1 - bars[i + 1]).sqrt() - (bars[i + 1] * (1 - bars[i]) / bars[i]).sqrt()
        x_inter = a * x + b * noise(y, i)
        y_inter = a * y + b * noise(x_inter, i)
        x_new = p * x_inter + (1 - p) * y_inter
        x, y = p * y_inter + (1 - p) * x_new, x_new  # the roles change
    end = edict.sampled(denoise, start(), sigmas)
    torch.testing.assert_close(end, edict.Pair(x, y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fifty_steps_are_undone_to_rounding(dtype):
    denoise = Toy(dtype)
    end = edict.sampled(denoise, start(), SIGMAS)
    assert (end.x - start()).abs().mean() > 1
    for found in edict.inverted(denoise, end, SIGMAS):
        torch.testing.assert_close(found, start(), rtol=0, atol=1e-6)


def score(x, y):
    return (torch.tanh(x) * torch.linspace(-1, 1, 5, dtype=x.dtype)).sum() + y.square().mean()


def ends_gradients(end):
    x, y = (own.detach().requires_grad_() for own in end)
    return edict.Pair(*torch.autograd.grad(score(x, y), (x, y)))


def ordinary(denoise, x, sigmas):
    """The same by the graph of all steps."""
    x = x.clone().requires_grad_()
    first, second = x, x
    for sigma, b, size in edict.steps(sigmas):
        first = first + b * edict.predicted_noise(denoise, second, sigma)
        second = second + b * edict.predicted_noise(denoise, first, sigma, size)
        second, first = edict.mixed(first, second)
    return torch.autograd.grad(score(first, second), x)[0]


def test_the_gradient_is_that_of_autograd_through_all_steps():
    denoise, sigmas = Toy(), SIGMAS[::5]
    end = edict.sampled(denoise, start(), sigmas)
    found, recovered = edict.gradient(denoise, end, ends_gradients(end), sigmas)
    torch.testing.assert_close(found, ordinary(denoise, start(), sigmas), rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(recovered.x, start(), rtol=0, atol=1e-9)


def most_kept(work):
    """The most bytes that autograd held for backward passes at a time."""
    held, most = [0], [0]

    class Kept:
        def __init__(self, tensor):
            self.tensor, size = tensor, tensor.nbytes
            held[0] += size
            most[0] = max(most[0], held[0])
            weakref.finalize(self, lambda: held.__setitem__(0, held[0] - size))

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        work()
    gc.collect()
    return most[0]


def test_memory_is_that_of_one_pass_however_many_steps_there_are():
    denoise, few, many = Toy(), SIGMAS[-4:], SIGMAS[-25:]

    def by_inversion(sigmas):
        end = edict.sampled(denoise, start(), sigmas)
        edict.gradient(denoise, end, ends_gradients(end), sigmas)

    def one_pass():
        edict.pulled_back(denoise, start(), start(), SIGMAS[0], SIGMAS[0] / 10)

    kept = most_kept(lambda: by_inversion(few))
    assert kept == most_kept(lambda: by_inversion(many)) == most_kept(one_pass) > 0
    assert most_kept(lambda: ordinary(denoise, start(), many)) > 20 * kept
