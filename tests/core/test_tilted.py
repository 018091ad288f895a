"""Guidance towards a taste against what can be worked out: the denoiser of a Gaussian that was tilted."""

import pytest
import torch

from d3po_core.candidates.images import CleanCandidates
from d3po_core.taste.features import LEVELS, Eye
from d3po_core.taste.head import learned
from d3po_core.taste.liking import Tastes
from d3po_core.training.loop import Trainer
from d3po_core.training.tilted import STRENGTH, shift
from tests.core.gradients import still
from tests.core.judged import Predictor
from tests.core.noised import clean

MEAN, VARIANCE = 0.7, 1.9


def gaussian(share):
    """The denoiser of x = share x0 + sigma noise where x0 is normal."""

    def denoise(x, sigma, mean=MEAN):
        sigma = sigma.view(-1, 1, 1, 1)
        return mean + VARIANCE * share / (VARIANCE * share**2 + sigma**2) * (x - share * mean)

    return denoise


@pytest.mark.parametrize("prediction, sigma", [("epsilon", 0.3), ("v", 9.0), ("flow", 0.2), ("flow", 0.9)])
def test_where_pictures_are_normal_and_the_taste_is_linear_it_is_the_tilted_denoiser(prediction, sigma):
    """Tilting a normal by exp(strength slope x0) moves its mean by strength variance slope, and no more."""
    images = CleanCandidates(torch.zeros(3, 2, 4, 4), torch.tensor([0.1, 0.9]), prediction, "set", "net")
    generator = torch.Generator().manual_seed(1)
    x, slope = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    level, share = torch.tensor(sigma), images.share(torch.tensor(sigma))
    denoise = gaussian(float(share))
    x0 = denoise(x, level.double().expand(3))
    found = shift(denoise, x, level, share, x0, lambda _: slope)
    tilted = denoise(x, level.double().expand(3), MEAN + STRENGTH * VARIANCE * slope)
    torch.testing.assert_close(x0 + found, tilted, rtol=1e-6, atol=1e-6)


def test_training_brings_predictions_nearer_to_the_tilted_ones_than_the_reference_is(drawn):
    adapter, examples = drawn(size=0.0, dtype=torch.float32)
    settings = still(
        method="taste guidance", learning_rate=5e-3, epochs=20, draws_per_set=4, sets_per_update=2
    )
    made = Trainer(adapter, settings).fit(examples)
    assert made[0]["loss"] == 0 and max(metrics["loss"] for metrics in made[-5:]) < 0


def test_the_gradient_of_every_look_is_that_of_its_taste(toy):
    """By finite differences, in float64, of what the eye sees and the taste makes of it."""
    net = toy.net(dtype=torch.float64)
    denoise, sets = Predictor(net), [clean(4, seed) for seed in range(3)]
    rewards = [{0: 1.0, 1: 0.5, 2: -0.5, 3: -1.0}] * 3
    places = []
    tastes = []
    for look in range(len(LEVELS)):
        eye = Eye(net, per_pass=4, places=places, look=look)
        tastes.append(learned([eye.features(images, denoise) for images in sets], rewards))
        places = eye.places
    liking, images = Tastes(tuple(tastes), places), sets[0]
    x0 = images.latents[:2].double()
    step = 1e-2 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    slopes = []
    for look, taste in enumerate(tastes):
        found = liking.gradient(net, denoise, images, x0, look + len(LEVELS))
        eye = Eye(net, places=places, look=look)
        one, other = (taste.liking(eye.features(images, denoise, x0 + by)) for by in (step, -step))
        torch.testing.assert_close(
            (found * step).sum((1, 2, 3)), ((one - other) / 2).to(found), rtol=1e-2, atol=1e-6
        )
        slopes.append(found)
    assert not torch.allclose(slopes[0], slopes[1])
    with pytest.raises(ValueError, match="looks"):
        Tastes(tuple(tastes[:2]), places)
