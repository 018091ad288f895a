"""Learning along a scorer's gradient: through decoding, and through the last steps of sampling.

Pictures are sampled by Euler's steps without noise. What each method goes back through:

DRaFT-K   the last K steps (arXiv 2309.17400, section 4.1); K = 1 is its authors' own choice
DRaFT-LV  the last step alone, from several noisings of the finished latent: less variance (section 4.1)
AlignProp the last K steps, K drawn anew for each update (2310.03739, section 4)
ReFL      one of the late steps, whose x0 is decoded as it is (2304.05977, algorithm 1)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..candidates.images import CleanCandidates
from ..candidates.ode import Denoise, euler
from ..candidates.scorers import Scorer
from .adapter import Adapter
from .learner import Figures, Learner, NonFiniteLoss, Weights
from .memory import Room
from .metrics import LOSS, SCORE
from .randomness import Device, forked, generator_of
from .randomness import seed as begin_draws
from .settings import Settings

DRAFT, DRAFT_LV, ALIGNPROP, REFL = METHODS = ("DRaFT-K", "DRaFT-LV", "AlignProp", "ReFL")
NOISINGS = 2  # of DRaFT-LV, as in its paper
LATE = 0.25  # of the steps, from which ReFL draws one: the paper's last 10 of 40
ENOUGH = 2.0  # standardised score that ReFL wants of a picture
# what differs from the defaults of preference tuning
SETTINGS = Settings(learning_rate=5e-4)
SHAPE: dict[str, Any] = {"rank": 8, "alpha": 8.0, "targets": "all linear", "adapter": "LoRA"}
Decode: TypeAlias = Callable[[Tensor], Tensor]  # latents [n, C, H, W] -> images [n, H, W, 3] in 0...1


@dataclass(frozen=True)
class Recipe:
    """method      one of METHODS
    updates     of a round
    pictures    that an update samples, of as many prompts
    last_steps  the most that DRaFT-K and AlignProp go back through; 0: DRaFT-K 1, AlignProp all
    """

    method: str = DRAFT
    updates: int = 20
    pictures: int = 4
    last_steps: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}, but must be one of: {', '.join(METHODS)}")


class Source(NamedTuple):
    """A prompt to sample pictures of.

    candidates  their shape and the model's noise levels; their one latent is of no matter
    guided      denoises as pictures are sampled; plain: without guidance
    text        the prompt's, for scorers that look at it; None: not known
    """

    candidates: CleanCandidates
    guided: Denoise
    plain: Denoise
    text: str | None = None


class RewardTrainer(Learner):
    """A Learner that samples pictures of prompts and raises their score.

    sigmas  [steps + 1], the noise levels to sample by, down to 0
    decode  with gradients
    usual   mean and standard deviation of the reference's scores: the loss is of standardised scores, so that
            no scorer's unit matters to it
    """

    def __init__(
        self,
        adapter: Adapter,
        settings: Settings,
        recipe: Recipe,
        scorer: Scorer,
        decode: Decode,
        sigmas: Tensor,
        device: Device = "cpu",
        loss_scale: float = 1.0,
        room: Room | None = None,
    ) -> None:
        super().__init__(adapter, settings, None, device, loss_scale, room)
        self.recipe, self.scorer, self.decode, self.sigmas = recipe, scorer, decode, sigmas
        self.usual = 0.0, 1.0

    def fit(
        self,
        examples: Sequence[Source],
        on_step: Callable[[], None] = lambda: None,
        history: Iterable[Figures] = (),
        after_update: Callable[[list[Figures]], object] | None = None,
        stop: Callable[[list[Figures]], object] | None = None,
        round_start: Weights | None = None,
        look: Callable[[], Figures] | None = None,
        look_every: int = 1,
    ) -> list[Figures]:
        """Make the recipe's updates on prompts; returns their metrics. Calls on_step() after each picture.

        look  look() measures pictures after every look_every-th update: its figures are put to that one's
              metrics

        The others are Trainer.fit's. Raises NonFiniteLoss before a step that would spoil the LoRA.
        """
        history = list(history)
        if not history:
            self.loss_scale = self._first_loss_scale
        for number in range(len(history), self.recipe.updates):
            if history and stop and stop(history):
                break
            self._set_learning_rate(number, self.recipe.updates)
            history.append(self.update(self._drawn(examples), on_step))
            if look and (number + 1) % look_every == 0:
                history[-1] |= look()
            if after_update:
                after_update(history)
        return history

    def updates_in(self, examples: Sequence[Source]) -> int:
        return self.recipe.updates

    def _drawn(self, sources: Sequence[Source]) -> list[tuple[Source, list[int]]]:
        """The next update's prompts with their pictures' numbers. Every prompt is drawn before one is drawn
        again."""
        numbers: dict[int, list[int]] = {}
        for number in range(self.step * self.recipe.pictures, (self.step + 1) * self.recipe.pictures):
            time, place = divmod(number, len(sources))
            order = torch.randperm(len(sources), generator=generator_of(self.settings.seed, "order", time))
            numbers.setdefault(int(order[place]), []).append(number)
        return [(sources[i], own) for i, own in numbers.items()]

    # --- the gradient ---

    def _prepared(self, batch: Sequence[tuple[Source, list[int]]]) -> tuple[Any, int]:
        return batch, max(len(numbers) for _, numbers in batch)

    def _accumulated(
        self, batch: Sequence[tuple[Source, list[int]]], on_step: Callable[[], None]
    ) -> dict[str, Tensor]:
        count = sum(len(numbers) for _, numbers in batch)
        loss, score = torch.zeros(2)
        with forked(self.device), torch.enable_grad(), self.passes.applied():
            begin_draws(self._seed(self.step), self.device)
            for source, numbers in batch:
                together = self.passes.per_pass or len(numbers)
                for some in (numbers[i : i + together] for i in range(0, len(numbers), together)):
                    scores = self._scores(source, some)
                    share = len(some) / count
                    own = self.loss(scores)
                    (self.loss_scale * share * own).backward()
                    loss += share * own.detach().cpu()
                    score += share * scores.detach().mean().cpu()
                    for _ in some:
                        on_step()
        return {LOSS: loss, SCORE: score}

    def loss(self, scores: Tensor) -> Tensor:
        """Of scores [n], 0-d: less is better. ReFL wants no more than enough of each picture (its relu(2 -
        score), of scores that were standardised as well)."""
        mean, spread = self.usual
        scores = (scores - mean) / spread
        return (ENOUGH - scores).clamp(min=0).mean() if self.recipe.method == REFL else -scores.mean()

    def _scores(self, source: Source, numbers: list[int]) -> Tensor:
        """The scorer's scores of these pictures, in its own unit. Raises NonFiniteLoss where one is not
        finite."""
        latents = self.sampled(source, numbers)
        images = torch.cat([checkpointed(self.decode)(one) for one in latents.split(1)])
        scores = self.scorer(images, source.text)
        if not scores.isfinite().all():
            raise NonFiniteLoss(
                f"update {self.step + 1}: the scorer {self.scorer.name} gave a score that is not a finite "
                "number. Training stopped before this update and kept the LoRA as it was. Choose another "
                "scorer, or lower learning_rate if pictures have broken"
            )
        return scores

    def sampled(self, source: Source, numbers: list[int]) -> Tensor:
        """Latents [n, C, H, W] of these pictures, as the recipe's method goes back through them."""
        method, sigmas, steps = self.recipe.method, self.sigmas, len(self.sigmas) - 1
        latent, seed = source.candidates.latents[:1], self.settings.seed
        of_update = generator_of(seed, "steps", self.step)

        def noise(*names: object) -> Tensor:
            own = [generator_of(seed, *names, number) for number in numbers]
            drawn = [torch.randn(latent.shape, generator=g, dtype=latent.dtype) for g in own]
            return torch.cat(drawn).to(self.device)

        def walked(until: int) -> Tensor:
            """The pictures after so many steps, without a gradient."""
            first = noise("picture")
            with torch.no_grad():
                x = source.candidates.noised(torch.zeros_like(first), sigmas[0], first)
                return euler(source.guided, x, sigmas[: until + 1])

        def denoised(x: Tensor, step: int) -> Tensor:
            return source.guided(x, sigmas[step].to(x).expand(len(x)))

        if method == DRAFT_LV:
            x0, last = walked(steps), sigmas[-2]
            noised = [source.candidates.noised(x0, last, noise("noising", i)) for i in range(NOISINGS)]
            return torch.cat([denoised(x, steps - 1) for x in noised])
        if method == REFL:
            step = steps - 1 - int(torch.randint(max(1, round(LATE * steps)), (), generator=of_update))
            return denoised(walked(step), step)
        most = min(self.recipe.last_steps or (1 if method == DRAFT else steps), steps)
        last_steps = most
        if method == ALIGNPROP:
            last_steps = 1 + int(torch.randint(most, (), generator=of_update))
        denoise = checkpointed(source.guided) if last_steps > 1 else source.guided
        return euler(denoise, walked(steps - last_steps), sigmas[-last_steps - 1 :])


def checkpointed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of tensors that keeps these alone for the backward pass, and is gone through again there
    (arXiv 1604.06174).

    Reentrant, as the host may take prompts together the one time and apart the other, as memory allows.
    """
    gradients = torch.zeros((), requires_grad=True)  # or there would be none where no tensor has one yet

    def kept(*tensors: Tensor) -> Tensor:
        run = lambda _, *own: function(*own)
        made: Tensor = checkpoint(run, gradients, *tensors, use_reentrant=True)
        return made

    return kept
