"""Names what is in a picture: a small network that has learned the base model's own pictures.

It learns them moved, sized, dimmed, tinted and blurred, as tastes change them: a cat that is larger, paler or
further to the left is still a cat. Grounds are named by the nearest of many shades of each colour word.
"""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tools.lab.tastes import grounds
from tools.model_pictures import COLOURS, OBJECTS, caption, shade

NAMES, WORDS = list(OBJECTS), list(COLOURS)
PICTURES, STEPS, BATCH, SHADES = 4, 1200, 64, 300


def network():
    widths, layers = (3, 32, 64, 96, 128), []
    for narrow, wide in zip(widths, widths[1:]):
        layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(wide * 16, len(NAMES)))


def changed(images, generator):
    """Images [N, 3, H, W] as a taste may change them."""
    n = len(images)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    scale, place = uniform(0.75, 1.35, 1), uniform(-0.25, 0.25, 2)
    turn = torch.zeros(n, 2, 3)
    turn[:, 0, 0] = turn[:, 1, 1] = scale[:, 0]
    turn[:, :, 2] = place
    grid = F.affine_grid(turn, images.shape, align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    middle = images.mean((1, 2, 3), keepdim=True)
    images = middle + (images - middle) * uniform(0.5, 1.4, 1, 1, 1)
    images = images * uniform(0.7, 1.3, 3, 1, 1) + uniform(-0.15, 0.15, 1, 1, 1)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images + uniform(-0.7, 1.0, 1, 1, 1) * (blurred - images)
    return images.clamp(0, 1)


def learn(images, labels, steps, seed=0):
    """The network, trained for so many steps on images [N, H, W, 3] with labels [N]."""
    torch.manual_seed(seed)
    model, generator = network(), torch.Generator().manual_seed(seed)
    images = torch.from_numpy(images).float().permute(0, 3, 1, 2)
    labels = torch.as_tensor(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(images), (BATCH,), generator=generator)
        seen = changed(images[batch], generator)
        loss = F.cross_entropy(model(seen), labels[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


class Namer:
    """names(images) -> indices into NAMES; words(images) -> indices into WORDS. Learned once and kept."""

    def __init__(self, studio, file, most=None, steps=STEPS):
        if not file.exists():
            prompts = [(name, word) for name in NAMES for word in WORDS for _ in range(PICTURES)][:most]
            recorded = studio.record(
                [caption(*prompt) for prompt in prompts], range(len(prompts)), 1, steps=10, cfg=2.0
            )
            latents = torch.cat([trajectory.states[-1] for trajectory in recorded])
            images = np.concatenate([studio.pictures(some) for some in latents.split(128)])
            model = learn(images, [NAMES.index(name) for name, _ in prompts], steps)
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), file)
        self.model = network().eval().requires_grad_(False)
        self.model.load_state_dict(torch.load(file, weights_only=True))
        rng = random.Random(0)
        self.shades = np.array([[shade(word, rng) for _ in range(SHADES)] for word in WORDS])

    def names(self, images):
        return self.model(torch.from_numpy(images).float().permute(0, 3, 1, 2)).argmax(1).numpy()

    def words(self, images):
        away = np.square(grounds(images)[:, None, None] - self.shades).sum(-1)
        return away.min(2).argmin(1)
