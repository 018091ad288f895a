"""HERO's evenings (arXiv 2410.05116), as its code has them, to be held against.

The artist gives a thumb to each candidate and names the best one of each prompt. An encoder of the final
latents learns from that by a triplet loss; how near a candidate is to its prompt's best is its reward, and
DDPO learns from the rewards. The next candidates of a prompt start around the noises of those that were good.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from d3po_core.candidates.judgement import Judgement
from d3po_core.candidates.preferences import Preferences
from tools.lab.session import Evenings
from tools.lab.studio import LATENT

EPOCHS, RATE, MARGIN = 500, 1e-4, 0.5  # the rate is ten times the code's, for an encoder a tenth as wide
NOISE, AROUND_BEST = 0.1, 0.5
WIDTH = 512
# of a Plan: DDPO as the code has it. Its 64 images of one prompt are a round, in batches of eight
RECIPE = {
    "unjudged": 0,
    "replay": False,
    "settings": {
        "method": "DDPO", "learning_rate": 1e-3, "rank": 4, "alpha": 4.0, "sets_per_update": 1, "epochs": 1,
        "ratio_clip": 1e-4, "weighting": "paper", "weight_decay": 1e-4,
    },
}  # fmt: skip


def encoder(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = [nn.Conv2d(4, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        parts += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten()]
        seen = nn.Sequential(*parts, nn.Linear(64 * (LATENT[1] // 2) * (LATENT[2] // 2), WIDTH), nn.ReLU())
        return seen, nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH // 2))


def distance(a, b):
    """0...1, of embeddings [n, width]."""
    return (1 - F.cosine_similarity(a, b)) / 2


class Hero(Evenings):
    """Evenings of the recipe above."""

    def __init__(self, studio, namer, plan):
        super().__init__(studio, namer, plan)
        self.encoded, self.projection = encoder(plan.seed)
        weights = [*self.encoded.parameters(), *self.projection.parameters()]
        self.optimizer = torch.optim.Adam(weights, lr=RATE)
        self.noises = {}  # prompt -> (the best candidate's first noise, those of all good ones)

    def first(self, prompts, rng):
        self.started = {prompt: self._around_good(prompt, rng) for prompt in prompts}
        return [self.started[prompt] for prompt in prompts]

    def _around_good(self, prompt, rng):
        n, generator = self.plan.candidates, torch.Generator().manual_seed(rng.randrange(2**32))
        fresh = torch.randn(n, *LATENT, generator=generator)
        if prompt not in self.noises:
            return fresh
        best, good = self.noises[prompt]
        around = [best if rng.random() < AROUND_BEST else good[rng.randrange(len(good))] for _ in range(n)]
        return (1 - NOISE**2) ** 0.5 * torch.stack(around) + NOISE * fresh

    def judge(self, recorded, rng):
        told = []
        for trajectory in recorded:
            scores, artist = self.scores(trajectory), self.plan.artist
            thumbs, answers = replace(artist, mode="thumbs").judge(scores, rng)
            best, one = replace(artist, mode="best").judge(scores, rng)
            liked = Judgement.parse(thumbs, len(scores)).liked
            told.append((trajectory, liked, best["pairs"][0][0]))
            self.labels, self.answers = self.labels + len(scores), self.answers + answers + one
        self.train_encoder(told)
        return [self.rewarded(*each) for each in told]

    def train_encoder(self, told):
        """Train the encoder: of each set its best is nearer to what is good than to what is not."""
        triplets = [
            (trajectory.states[-1][best], trajectory.states[-1][good], trajectory.states[-1][bad])
            for trajectory, liked, best in told
            for good, is_good in enumerate(liked)
            for bad, is_bad in enumerate(liked)
            if is_good and not is_bad
        ]
        if not triplets:
            return
        anchors, good, bad = map(torch.stack, zip(*triplets))
        for _ in range(EPOCHS):
            a, g, b = (self.projection(self.encoded(latents)) for latents in (anchors, good, bad))
            loss = (distance(a, g) - distance(a, b) + MARGIN).clamp(min=0).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def rewarded(self, trajectory, liked, best):
        """A set with its rewards; its good noises are kept."""
        latents = trajectory.states[-1]
        seen = self.encoded(latents)
        rewards = (F.cosine_similarity(seen, seen[best : best + 1]) + 1) / 2
        prompt = trajectory.settings["prompt"]
        firsts = self.started[prompt]
        self.noises[prompt] = firsts[best], [firsts[i] for i, good in enumerate(liked) if good or i == best]
        return Preferences(trajectory, (), "HERO", tuple(rewards.tolist()))
