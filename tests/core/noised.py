"""Judged images without a trajectory: a denoiser for them and Diffusion-DPO pair by pair."""

import torch

from d3po_core.candidates.images import CleanCandidates
from d3po_core.candidates.preferences import Preferences
from d3po_core.training.loop import Example

SIGMAS = torch.linspace(0.03, 3.83, 50).exp() - 1
FLOW_SIGMAS = torch.linspace(0.02, 1.0, 50)
PAIRS = (((0, 1), (0, 2), (2, 1), (3, 1)), ((1, 0),))


class NetDenoiser:
    """denoise(x, sigma) -> x0 over a network that predicts epsilon, v or flow, as the host's models do.

    It keeps the (x, sigma) of every pass that has gradients."""

    def __init__(self, net, prediction="epsilon"):
        self.net, self.prediction, self.seen, self.batches = net, prediction, [], []

    def predict(self, x, sigma):
        if self.prediction == "flow":
            return self.net(x, sigma)
        return self.net(x / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt(), sigma)

    def __call__(self, x, sigma):
        self.batches.append(len(x))
        if torch.is_grad_enabled():
            self.seen.append((x, sigma))
        out, s = self.predict(x, sigma), sigma.view(-1, 1, 1, 1)
        if self.prediction in ("epsilon", "flow"):
            return x - s * out
        return x / (s**2 + 1) - out * s / (s**2 + 1).sqrt()


def clean(n, seed=0, prediction="epsilon", dtype=torch.float64, sigmas=None, **options):
    sigmas = sigmas if sigmas is not None else FLOW_SIGMAS if prediction == "flow" else SIGMAS
    latents = torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return CleanCandidates(latents, sigmas, prediction, f"images {seed}", "net", **options)


def examples_of(denoise, pairs=PAIRS, **options):
    return [
        Example(
            Preferences(clean(1 + max(map(max, wanted)), seed, denoise.prediction, **options), wanted),
            denoise,
        )
        for seed, wanted in enumerate(pairs)
    ]


def naive(adapter, settings, batch, passes):
    """(gradients, metrics) from the paper's definitions and the network's own output: four passes a pair.

    passes holds the (x, sigma) that the trainer gave the policy, set by set and draw by draw.
    """
    losses, winners, losers = [], [], []
    draws = settings.draws_per_set
    for number, example in enumerate(batch):
        denoise, images = example.denoise, example.candidates.latents
        for x, sigma in passes[number * draws : (number + 1) * draws]:
            level = sigma[0]
            alpha, sigma_vp = 1 / (1 + level**2).sqrt(), level / (1 + level**2).sqrt()
            kept = 1 - level if denoise.prediction == "flow" else 1
            noise = (x[0] - kept * images[0]) / level  # every candidate is in a pair here

            def error(candidate):
                predicted = denoise.predict((kept * images[candidate] + level * noise)[None], level[None])[0]
                target = {
                    "epsilon": noise,
                    "flow": noise - images[candidate],
                    "v": alpha * noise - sigma_vp * images[candidate],
                }[denoise.prediction]
                return (predicted - target).square().mean(), predicted

            for w, l in example.preferences.pairs:
                (e_w, _), (e_l, _) = error(w), error(l)
                with adapter.off():
                    (ref_w, _), (ref_l, _) = error(w), error(l)
                inside = -settings.dpo_beta / 2 * ((e_w - e_l) - (ref_w - ref_l))
                losses.append(-torch.sigmoid(inside).log())
                winners.append(((ref_w - e_w) / 2).item())
                losers.append(((ref_l - e_l) / 2).item())
    value = torch.stack(losses).mean()
    margins = [settings.dpo_beta * (w - l) for w, l in zip(winners, losers)]
    metrics = {
        "loss": value.item(),
        "winner log-ratio": winners,
        "loser log-ratio": losers,
        "margin": margins,
        "implicit accuracy": [float(m > 0) for m in margins],
    }
    return torch.autograd.grad(value, adapter.parameters()), {
        name: value if isinstance(value, float) else sum(value) / len(value)
        for name, value in metrics.items()
    }
