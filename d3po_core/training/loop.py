"""The training loop: a method of preference tuning over judged trajectories and judged images, through a
denoiser, on a LoRA adapter."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .adapter import Adapter
from .evaluation import evaluate
from .judged import Example, JudgedSet, kind_of, require_kind
from .learner import Figures, Learner, Weights
from .losses import moving_average
from .memory import Room
from .methods import METHODS, Method
from .metrics import HELD_OUT_PAIRS, MARGIN
from .randomness import Device, forked, generator_of, seed
from .ranks import ALONE, Ranks
from .reference import Reference
from .settings import REFERENCES, WEIGHTINGS, Settings  # noqa: F401 (they belong to the trainer's face)
from .terms import Term, Values


class Trainer(Learner):
    """A Learner of judged examples.

    start_policy names the LoRA as it is when training begins, as reference_policy the reference.

    Wherever examples are asked for, a sequence will do that makes an example when it is indexed: they are
    used one update at a time, and none is kept.
    """

    def __init__(
        self,
        adapter: Adapter,
        settings: Settings,
        reference_policy: str | None = None,
        device: Device = "cpu",
        loss_scale: float = 1.0,
        start_policy: str | None = None,
        room: Room | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(adapter, settings, reference_policy, device, loss_scale, room, ranks)
        self.method, self.usual_margin = METHODS[settings.method], 0.0
        # held against the round's start, they are one
        at_start = settings.reference == "round start"
        self.sampler = self.reference if at_start else Reference(adapter, start_policy, self.passes)
        self.begin_round()

    # --- the loop ---

    def fit(
        self,
        examples: Sequence[Example],
        on_step: Callable[[], None] = lambda: None,
        history: Iterable[Figures] = (),
        held_out: Sequence[Example] = (),
        evaluate_every: int = 0,
        after_update: Callable[[list[Figures]], object] | None = None,
        stop: Callable[[list[Figures]], object] | None = None,
        round_start: Weights | None = None,
    ) -> list[Figures]:
        """Use every example `epochs` times. Calls on_step() after each denoising step; returns the updates'
        metrics.

        history       metrics of the updates of this fit that were made before: `load_state` took up the state
                      after them
        held_out      examples that are not trained on: their figures (`evaluate`) are put to the metrics of
                      every `evaluate_every`-th update (0: none) and of the last
        after_update  after_update(metrics of all updates so far) after each update
        stop          stop(metrics of all updates so far) -> true ends training early
        round_start   the LoRA's weights when this fit began, as the `round_start` of the trainer that began
                      it: needed where updates were made before and these weights are held against

        Raises ValueError if no example has what the method learns from, NonFiniteLoss before a step that
        would spoil the LoRA.
        """
        history, learnable = list(history), self._learnable(examples)
        updates = self.settings.epochs * self._updates_per_epoch(len(learnable))
        self._require_fit(examples, learnable, history, updates, round_start)
        self.begin_round(round_start)
        if not history:
            self.loss_scale = self._first_loss_scale
        for batch in self._batches(learnable, len(history)):
            if history and stop and stop(history):
                break
            self._set_learning_rate(len(history), updates)
            history.append(self.update([examples[i] for i in batch], on_step))
            if held_out and evaluate_every and len(history) % evaluate_every == 0:
                history[-1] |= evaluate(self, held_out)
            if after_update:
                after_update(history)
        if held_out and HELD_OUT_PAIRS not in history[-1]:
            history[-1] = history[-1] | evaluate(self, held_out)
        return history

    def update(self, batch: Sequence[Example], on_step: Callable[[], None] = lambda: None) -> Figures:
        """One optimizer step over a batch of examples: its metrics, floats by name.

        Every pair (or candidate, where the method learns from single ones) weighs alike, with or without a
        trajectory. terms.py says what the log-ratios and the KL of examples without one are; none of these is
        clipped.
        """
        metrics = super().update(batch, on_step)
        self.usual_margin = moving_average(self.usual_margin, metrics.get(MARGIN, 0.0))
        return metrics

    def _prepared(self, batch: Sequence[Example]) -> tuple[list[JudgedSet], int]:
        sets = [self.judged(example) for example in batch]
        self.passes.begin(sets)
        return sets, max(len(judged.members) for judged in sets)

    def _accumulated(self, sets: Sequence[JudgedSet], on_step: Callable[[], None]) -> dict[str, Tensor]:
        settings = self.settings
        sums: dict[str, Any] = defaultdict(float)
        shares: dict[str, float] = defaultdict(float)
        parts, number = sum(judged.parts for judged in sets), 0
        with forked(self.device), torch.enable_grad(), self.passes.applied():
            for judged in sets:
                share = judged.parts / parts / judged.terms_in(judged.candidates, settings)
                for made in judged.drawn(generator_of(settings.seed, self.step, judged.candidates.set_id)):
                    if self.ranks.takes(number):
                        seed(self._seed(self.step, number), self.device)
                        for name, value in self._accumulate(made(), share).items():
                            sums[name] += share * value
                            shares[name] += share
                    number += 1
                    on_step()
        return self._of_all_ranks(sums, shares)

    def _of_all_ranks(self, sums: dict[str, Any], shares: dict[str, float]) -> dict[str, Tensor]:
        """The means of metrics, and in the parameters the gradients, of all terms, whoever took them."""
        if self.ranks.count == 1:
            return {name: sums[name] / shares[name] for name in sums}
        self.ranks.sum_gradients(self.adapter.parameters())
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for of_rank in self.ranks.gathered({name: (float(sums[name]), shares[name]) for name in sums}):
            for name, pair in of_rank.items():
                found[name].append(pair)
        return {
            name: torch.tensor(sum(value for value, _ in pairs) / sum(share for _, share in pairs))
            for name, pairs in found.items()
        }

    def _accumulate(self, term: Term, share: float) -> dict[str, Tensor]:
        """Add share * d loss / d LoRA of one term; its metrics as 0-d tensors."""
        term.usual_margin = self.usual_margin
        chunks = term.chunks()
        if len(chunks) == 1:
            values = term.values(slice(None))
            value = term.loss(values)
            (self.loss_scale * share * value).backward()
        else:
            # the loss joins candidates that do not fit together: first its slope in each, then the gradients
            first = int(torch.randint(2**62, ()))  # so that a chunk's dropout is the same both times
            values = term.all_values(first)
            inputs = [value.requires_grad_() for value in values.with_gradients()]
            value = term.loss(values)
            slopes = torch.autograd.grad(self.loss_scale * share * value, inputs, allow_unused=True)
            for number, chunk in enumerate(chunks):
                seed(first + number, self.device)
                along: Any = sum(
                    (slope[chunk] * output).sum()
                    for slope, output in zip(slopes, term.values(chunk).with_gradients())
                    if slope is not None
                )
                along.backward()
        values = Values._make(None if v is None else v.detach() for v in values)
        return term.metrics(value.detach(), values)

    def judged(self, example: Example, method: Method | None = None) -> JudgedSet:
        """An example as the method learns from it."""
        made = kind_of(example.candidates)
        return made(example, method or self.method, self.settings, self.reference, self.sampler)

    # --- the order of examples ---

    def updates_in(self, examples: Sequence[Example]) -> int:
        """How many updates `fit` makes, if it is not stopped."""
        return self.settings.epochs * self._updates_per_epoch(len(self._learnable(examples)))

    def steps_in(self, examples: Sequence[Example], start: int = 0) -> int:
        """How many denoising steps (or noised draws) `fit` trains on, from update `start` of it on."""
        sets = {i: examples[i].candidates for i in self._learnable(examples)}
        terms = {i: kind_of(candidates).terms_in(candidates, self.settings) for i, candidates in sets.items()}
        return sum(terms[i] for batch in self._batches(list(terms), start) for i in batch)

    def _require_fit(
        self,
        examples: Sequence[Example],
        learnable: list[int],
        history: list[Figures],
        updates: int,
        round_start: Weights | None,
    ) -> None:
        """Raise ValueError where there is nothing to learn from, or no telling how a fit that was stopped
        goes on."""
        if not learnable:
            raise ValueError(f"preferences: there is nothing to learn from: {self.method.wanted}")
        require_kind(self.settings.method, (examples[i].candidates for i in learnable))
        if len(history) > updates:
            raise ValueError(
                f"training cannot go on after update {len(history)}: these sets and settings make {updates}"
            )
        if history and round_start is None and self._needs_round_start:
            raise ValueError(
                "training cannot go on without the LoRA as it was at the round's start, its reference"
            )

    def _learnable(self, examples: Sequence[Example]) -> list[int]:
        """Indices of the examples that the method can learn from."""
        return [i for i in range(len(examples)) if self.method.taking_part(examples[i].preferences)]

    def _updates_per_epoch(self, judged: int) -> int:
        return -(-judged // self.settings.sets_per_update)

    def _batches(self, judged: list[int], start: int) -> Iterator[list[int]]:
        """The examples' indices of every update from `start` on, of a fit that began `start` updates ago."""
        size, per_epoch, began = (
            self.settings.sets_per_update,
            self._updates_per_epoch(len(judged)),
            self.step - start,
        )
        for number in range(start, self.settings.epochs * per_epoch):
            epoch, place = divmod(number, per_epoch)
            if place == 0 or number == start:
                shuffle = torch.Generator().manual_seed(self._seed(began + epoch * per_epoch))
                order = torch.randperm(len(judged), generator=shuffle).tolist()
            yield [judged[i] for i in order[place * size : (place + 1) * size]]

    # --- a run's state ---

    def begin_round(self, weights: Weights | None = None) -> None:
        """Hold the LoRA against these weights, or its present ones, where the method or the reference wants
        the round's start."""
        if not self._needs_round_start:
            return
        self.sampler.become(weights or self.trained())

    @property
    def round_start(self) -> Weights | None:
        """The LoRA's weights when the round began, by name; None where nothing is held against them."""
        return self.sampler.weights

    @property
    def _needs_round_start(self) -> bool:
        return self.method.sampler or self.settings.reference == "round start"

    def state(self) -> tuple[dict[str, Tensor], int]:
        tensors, step = super().state()
        return tensors | {"usual margin": torch.tensor(self.usual_margin, dtype=torch.float64)}, step

    def load_state(self, tensors: Mapping[str, Tensor], step: int) -> None:
        super().load_state(tensors, step)
        self.usual_margin = float(tensors.get("usual margin", 0.0))
        self.begin_round()
