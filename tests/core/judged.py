"""Small judged sets, recorded and as images, that every method can learn from."""

from dataclasses import replace

import torch

from d3po_core.candidates.images import CleanCandidates
from d3po_core.training.loop import Trainer
from tests.core.gradients import still

JUDGED = (
    dict(
        pairs=((0, 1), (0, 2), (2, 1), (3, 1)), scores=(3.0, -1.0, 0.5, -0.5), liked=(True, False, None, True)
    ),
    dict(pairs=((1, 0),), scores=(0.0, 2.0), liked=(False, True)),
)
SETTINGS = still(
    beta=3.0,
    dpo_beta=40.0,
    clip=0.1,
    draws_per_set=3,
    label_smoothing=0.2,
    winner_weight=0.7,
    ratio_clip=0.02,
    kl_weight=0.3,
    reward_beta=0.4,
    adaptation=0.9,
    mapo_beta=0.6,
    nft_beta=0.4,
)
USUAL_MARGIN = 0.13
MASK = torch.zeros(1, 2, 4, 4)
MASK[..., 1:3, :2] = 1
SIGMAS = torch.linspace(0.03, 3.83, 50).exp() - 1


class Likes:
    """A taste for bright pictures; a draw says how bright."""

    name = "likes"

    def gradient(self, network, denoise, images, x0, draw):
        return wanted(draw, x0) - x0


def wanted(draw, x0):
    return torch.full_like(x0, 2.0 + draw % 2)


class Predictor:
    """denoise(x, sigma) -> x0 over a network that predicts the noise. It keeps what passes with gradients."""

    def __init__(self, net):
        self.net, self.seen, self.batches, self.with_gradient = net, [], [], []

    def predict(self, x, sigma):
        return self.net(x / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt(), sigma)

    def __call__(self, x, sigma):
        self.batches.append(len(x))
        self.with_gradient.append(torch.is_grad_enabled())
        if torch.is_grad_enabled():
            self.seen.append((x, sigma))
        return x - sigma.view(-1, 1, 1, 1) * self.predict(x, sigma)


def images(scores, seed, dtype=torch.float64):
    """The higher the score, the brighter."""
    latents = torch.randn(len(scores), 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    latents += 0.3 * torch.tensor(scores, dtype=dtype).view(-1, 1, 1, 1)
    return CleanCandidates(latents, SIGMAS, "epsilon", f"images {seed}", "net")


def masked(examples, mask):
    """The same judged sets, where what was said is of what lies inside a mask; None: they as they are."""
    if mask is None:
        return examples

    def inside(candidates):
        noise = {"noise": torch.zeros_like(mask)} if candidates.recorded else {}
        return replace(candidates, mask=mask, **noise)

    return [replace(e, preferences=replace(e.preferences, candidates=inside(e.candidates))) for e in examples]


def update(adapter, settings, examples, start=None, **options):
    """(gradients, metrics) of an update by a trainer that began with the weights `start`."""
    trainer = Trainer(adapter, settings, **options)
    if start:
        trainer.begin_round(start)
    trainer.usual_margin = USUAL_MARGIN
    metrics = trainer.update(examples)
    return [parameter.grad.clone() for parameter in adapter.parameters()], metrics
