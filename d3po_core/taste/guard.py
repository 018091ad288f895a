"""A watch over pictures while a LoRA learns to raise a score: how far they move, and what they gain."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..candidates.scorers import Scorer
from ..training import metrics, monitor
from ..training.learner import Figures
from ..training.rewards import RewardTrainer, Source
from .movement import Pictures, View, held_back

LEASH = 0.85  # as recommended for picks
LOOK_EVERY = 5  # updates
PER_PASS = 4  # pictures that go through the network together


class Guard:
    """Pictures of some prompts by the reference and by what a trainer has learned, from the same noise, and
    their scores.

    leash   how far pictures may move from the reference's, as movement.py measures it; 0: as far as they like
    second  a scorer that is not trained by: where its score falls, pictures get worse in what the other does
            not see
    """

    def __init__(
        self, trainer: RewardTrainer, sources: Sequence[Source], leash: float, second: Scorer | None = None
    ) -> None:
        self.trainer, self.leash = trainer, leash
        self.scorers = {metrics.GAIN: trainer.scorer} | ({metrics.FIDELITY: second} if second else {})
        texts = {id(source.candidates): source.text for source in sources}
        views = [View(source.candidates, source.guided, source.plain) for source in sources]
        self.pictures = Pictures(trainer, views, trainer.passes.per_pass or PER_PASS)
        self.texts = [texts[id(view.candidates)] for view in self.pictures.views]
        before = self.pictures.before
        self.before = {name: self._scores(scorer, before) for name, scorer in self.scorers.items()}

    @property
    def usual(self) -> tuple[float, float]:
        """Mean and standard deviation of the reference's scores."""
        scores = self.before[metrics.GAIN]
        return float(scores.nanmean()), _spread(scores)

    def look(self) -> Figures:
        """What has become of the pictures: how far they have moved, and what each scorer's mean gained, in
        standard deviations among the reference's pictures."""
        latents = self.pictures.now()
        figures = {metrics.MOVED: self.pictures.movement_of(latents)}
        for name, scorer in self.scorers.items():
            gains = (self._scores(scorer, latents) - self.before[name]) / _spread(self.before[name])
            figures[name] = float(gains.nanmean())
            if name == metrics.FIDELITY:
                error = gains[gains.isfinite()].std() / math.sqrt(max(1, int(gains.isfinite().sum())))
                figures[metrics.FIDELITY_ERROR] = float(error)
        return figures

    def stop(self, history: Sequence[Figures]) -> str:
        """Why training should end after its last update, in words; "" where it should go on."""
        return monitor.hacked(history, self.leash)

    def settle(self, history: Sequence[Figures]) -> list[str]:
        """At the end of a round: pull back a LoRA that has moved pictures beyond the leash, and put how they
        are to the last update's metrics. Lines to tell."""
        last, left = history[-1], 1.0
        if metrics.MOVED not in last:
            last.update(self.look())
        said = self.stop(history)
        if self.leash and last[metrics.MOVED] > self.leash:
            _, left = held_back(self.trainer, self.pictures.moved, self.leash, last[metrics.MOVED])
            last.update(self.look())
        pulled = (
            f"Pictures had moved further than {self.leash:.2g}, so the LoRA was pulled back: {left:.0%} of "
            "what it had learned is left"
        )
        return [*filter(None, [said]), *([pulled] if left < 1 else [])]

    def _scores(self, scorer: Scorer, latents: Sequence[Tensor]) -> Tensor:
        """[N] float64 of all pictures' latents; NaN where the scorer gives none."""
        with torch.no_grad():
            images = [torch.cat([self.trainer.decode(one) for one in own.split(1)]) for own in latents]
        return torch.cat([
            torch.from_numpy(scorer.known(own, text)) for own, text in zip(images, self.texts, strict=True)
        ])  # fmt: skip


def _spread(scores: Tensor) -> float:
    """Standard deviation of the known scores; 1 where they are equal."""
    return float(scores[scores.isfinite()].std().nan_to_num()) or 1.0
