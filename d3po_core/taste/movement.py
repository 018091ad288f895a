"""How far a LoRA has moved the model's pictures, by how much candidates of a prompt differ from one another,
and holding it on a leash.

The measure is of what pictures have in common. That all become brighter by as much as candidates differ in
brightness is a long way; that each becomes another picture of its prompt is none, as it is the same lottery.

Pictures are sampled and measured as a whole. Candidates inside a mask differ by less than pictures of a
prompt do, and a single one from none, so where there are no others, the reference's own pictures of a prompt
take their place.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..candidates.images import CleanCandidates
from ..candidates.ode import Denoise, euler
from ..training.evaluation import TRAINED
from ..training.learner import Learner
from ..training.randomness import forked, generator_of
from .features import Eye, T, evenly
from .head import LEAST_SPREAD

PICTURES = 12  # sampled with each of both models
APART = 4  # pictures of a prompt that tell how much these differ, where candidates do not
STEPS = 10  # of sampling
TRIES = 4  # at finding how much has to be pulled back
NEAR = 0.9  # share of the leash that is as good as all of it
ONWARD, TIMES = 2.0, 2  # at the most, at once and how often, a LoRA is carried on
ENOUGH = 36  # candidates looked at, from which on a leash has its whole length


class View(NamedTuple):
    """Judged candidates to compare pictures with, their prompt's denoiser with the guidance to sample with,
    and the one without."""

    candidates: CleanCandidates
    guided: Denoise
    plain: Denoise


class Samples:
    """Pictures of some prompts, sampled over and over from the same noise.

    trainer  whose LoRA is looked at; nothing that it learns by is changed
    started  (view, noise [n, C, H, W] that its n pictures begin with) of each prompt
    per_pass how many go through the network together

    What the reference makes of them, `before`, is sampled when this is made: latents [n, C, H, W] of each
    prompt. `latest` is what was sampled last.
    """

    def __init__(self, trainer: Learner, started: Sequence[tuple[View, Tensor]], per_pass: int = 1) -> None:
        self.trainer, self.per_pass = trainer, per_pass
        self.views, self.noises = [view for view, _ in started], [noise for _, noise in started]
        with forked(trainer.device), trainer.reference.acting():
            self.before = self.latest = self._sampled()

    def now(self) -> list[Tensor]:
        """The same by what has been learned."""
        adapter = self.trainer.adapter
        adapter.hold(TRAINED, self.trainer.trained())
        with forked(self.trainer.device), torch.no_grad(), adapter.acting(TRAINED):
            self.latest = self._sampled()
        return self.latest

    def _sampled(self) -> list[Tensor]:
        def of(i: int) -> Tensor:
            parts = self.noises[i].to(self.trainer.device).split(self.per_pass)
            view = self.views[i]
            return torch.cat([sampled(view.guided, view.candidates, noise) for noise in parts])

        return self.trainer.ranks.each(of, range(len(self.views)))


class Pictures(Samples):
    """Samples of PICTURES over all prompts of judged sets, and how far they have moved."""

    def __init__(self, trainer: Learner, views: Sequence[View], per_pass: int = 4) -> None:
        super().__init__(trainer, to_sample(views), per_pass)
        self.eye = Eye(trainer.adapter.root, trainer.device, per_pass)
        seen = self._seen(self.before)
        apart = [self._features(view, view.candidates.latents[:]) for view in unmasked(views)] or seen
        self.spread = [spread(of_part) for of_part in zip(*apart)]
        self.base = joined(seen)

    def moved(self) -> float:
        """How far what has been learned moves pictures from the reference's, in standard deviations among
        candidates of a prompt: root mean square over features, each part with the same weight."""
        return self.movement_of(self.now())

    def movement_of(self, latents: Sequence[Tensor]) -> float:
        """`moved` of pictures that `now` has given."""
        return movement(self.base, joined(self._seen(latents)), self.spread)

    def _seen(self, latents: Sequence[Tensor]) -> list[list[Tensor]]:
        """The features of each prompt's pictures, by the network without any LoRA."""
        return self.trainer.ranks.each(
            lambda i: self._features(self.views[i], latents[i]), range(len(self.views))
        )

    def _features(self, view: View, latents: Tensor) -> list[Tensor]:
        with self.trainer.adapter.off():
            return self.eye.features(view.candidates, view.plain, latents)


def joined(features: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The features of all pictures, [N, F] a part, of those of each prompt."""
    return [torch.cat(of_part) for of_part in zip(*features)]


def spaced(sets: Sequence[T]) -> list[T]:
    """At most PICTURES of them, evenly apart: those of whose prompts pictures are sampled."""
    return evenly(sets, PICTURES)


def unmasked(views: Sequence[View]) -> list[View]:
    """Those whose candidates tell how much pictures of a prompt differ, at most PICTURES."""
    return spaced([view for view in views if view.candidates.mask is None and view.candidates.count > 1])


def to_sample(views: Sequence[View]) -> list[tuple[View, Tensor]]:
    """The views that PICTURES are sampled of, each with the noise [n, C, H, W] of its own, the same at every
    call."""
    chosen = spaced(views) if unmasked(views) else evenly(views, PICTURES // APART)
    each = max(1, PICTURES // len(chosen))
    return [
        (view, torch.randn(each, *view.candidates.latent_shape[1:], generator=generator_of("pictures", i)))
        for i, view in enumerate(chosen)
    ]


def varied(prompts: Sequence[str], each: int, most: int) -> list[tuple[int, int]]:
    """(which view, which of its pictures) of so many pictures at most, of as many prompts as there are. There
    are `each` of a view, of the prompt that is its own in prompts."""
    places = [(i, k) for k in range(each) for i in range(len(prompts))]
    seen: Counter[str] = Counter()
    turns = {}
    for i, k in places:
        turns[i, k] = seen[prompts[i]]
        seen[prompts[i]] += 1
    return sorted(places, key=lambda place: turns[place])[:most]


def sampled(denoise: Denoise, candidates: CleanCandidates, noise: Tensor) -> Tensor:
    """Latents [n, C, H, W] sampled from noise by STEPS of Euler's along the probability-flow ODE."""
    levels = candidates.sigmas
    places = torch.linspace(len(levels) - 1, 0, STEPS).round().long()
    sigmas = torch.cat([levels[places], torch.zeros(1)])
    with torch.no_grad():
        return euler(denoise, candidates.noised(torch.zeros_like(noise), sigmas[0], noise), sigmas)


def spread(sets: Sequence[Tensor]) -> Tensor:
    """Standard deviation of each feature among candidates of a set, [F], of sets [N, F]; what hardly varies
    counts as if it did a little."""
    squares = sum(((own - own.mean(0)).square().sum(0) for own in sets), start=torch.zeros(()))
    own = (squares / max(1, sum(len(own) - 1 for own in sets))).sqrt()
    return own.maximum((LEAST_SPREAD * own.mean()).clamp(min=torch.finfo(own.dtype).tiny))


def movement(before: Sequence[Tensor], after: Sequence[Tensor], spreads: Sequence[Tensor]) -> float:
    """Root mean square, over features and parts, of what n >= 2 pictures have moved by in common.

    The square of a mean is too large by its variance, which is taken off: where pictures move at random it is
    0 on average.
    """
    parts = []
    for old, new, own in zip(before, after, spreads, strict=True):
        moves = ((new - old) / own).double()
        parts.append((moves.mean(0).square() - moves.var(0) / len(moves)).mean())
    return float(torch.stack(parts).mean().clamp(min=0).sqrt())


def length(leash: float, labels: float) -> float:
    """How long a leash is where so many candidates were judged: few say little, and may move little."""
    return leash * math.sqrt(min(1.0, labels / ENOUGH))


def held_back(
    trainer: Learner, moved: Callable[[], float], limit: float, now: float | None = None
) -> tuple[float, float]:
    """Pull a LoRA back until its pictures have moved no further than limit: (how far they have now, how much
    is left of what it learned, 1: all). now is how far they have, where that is known.

    Pictures move about as the weights do. What cannot be brought within the limit in TRIES is taken back as
    a whole.
    """
    now, left = moved() if now is None else now, 1.0
    for last in (*[False] * (TRIES - 1), True):
        if now <= limit:
            break
        share = 0.0 if last else 0.97 * limit / now
        trainer.pull_back(share)
        now, left = moved(), left * share
    return now, left


def carried_on(trainer: Learner, moved: Callable[[], float], limit: float) -> tuple[float, float]:
    """Carry a LoRA on along the way it has gone, until its pictures have moved about as far as limit, and no
    further: (how far they have now, how much there is of what it learned, 1: as much).

    For what is known to hold for pictures that it was not learned from: a round's few updates need not take
    it as far as it may go.
    """
    now, there = moved(), 1.0
    for _ in range(TIMES):
        if now >= NEAR * limit:
            break
        share = min(ONWARD, 0.97 * limit / max(now, 1e-9))
        trainer.pull_back(share)
        now, there = moved(), there * share
    now, left = held_back(trainer, moved, limit, now)
    return now, there * left
