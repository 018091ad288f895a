"""Learning: an adapter's weights by an optimizer, whatever gives the gradient, and a run's state."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .adapter import Adapter
from .evaluation import TRAINED
from .memory import Passes, Room, empty_cache
from .metrics import GRADIENT_NORM, LOSS, SHIFT
from .optimizers import (
    Ema,
    averages,
    learning_rate_factor,
    load_state_tensors,
    make_optimizer,
    state_tensors,
    trained_weights,
)
from .randomness import Device, generator_of
from .ranks import ALONE, Ranks
from .reference import HELD, Reference
from .settings import Settings

SHIFT_OF_LEASH = 0.01  # the shift of predictions at which pictures hardly ever have moved by less than 1
Figures: TypeAlias = dict[str, float]  # metrics of one update by name
Weights: TypeAlias = dict[str, Tensor]  # of a LoRA, by name


class NonFiniteLoss(ValueError):
    """The loss or its gradient is not finite. The update was not made: the LoRA is as it was before it."""


class Learner:
    """An optimizer on an adapter's parameters; one `update` is one of its steps. What the gradient is of is a
    subclass's to say (`_prepared`, `_accumulated`), and in what order it takes what it learns from (`fit`,
    `updates_in`).

    reference_policy names the reference's weights: a trajectory whose policy has this name was sampled by the
    reference, and its recorded x0 is used in place of a reference pass.

    loss_scale keeps small gradients alive in a network that runs in float16; it is halved whenever they
    overflow.

    room(bytes, least) makes room on the device and tells what is free, so that passes are made to fit
    (memory.py).

    ranks are the processes that learn the same together (ranks.py).
    """

    def __init__(
        self,
        adapter: Adapter,
        settings: Settings,
        reference_policy: str | None = None,
        device: Device = "cpu",
        loss_scale: float = 1.0,
        room: Room | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.adapter, self.settings, self.device, self.ranks = adapter, settings, device, ranks
        self.loss_scale = self._first_loss_scale = loss_scale
        self.step = 0
        self.optimizer = make_optimizer(
            settings.optimizer, adapter.parameters(), settings.learning_rate, settings.weight_decay
        )
        self.ema = Ema(settings.ema) if settings.ema else None
        self.passes = Passes(adapter, device, settings.checkpointing, settings.candidates_per_pass, room)
        self.reference = Reference(adapter, reference_policy, self.passes)

    def fit(self, examples: Sequence[Any], *args: Any, **options: Any) -> list[Figures]:
        """Make updates on examples: their metrics. Options are at least after_update, history, stop and
        round_start as Trainer.fit has them."""
        raise NotImplementedError

    def updates_in(self, examples: Sequence[Any]) -> int:
        """How many updates `fit` makes, if it is not stopped."""
        raise NotImplementedError

    def _prepared(self, batch: Sequence[Any]) -> tuple[Any, int]:
        """(a batch as `_accumulated` takes it, how many candidates go through the network together at
        most)."""
        raise NotImplementedError

    def _accumulated(self, prepared: Any, on_step: Callable[[], None]) -> dict[str, Tensor]:
        """Add loss_scale times the gradient of a batch's mean loss to the parameters': metrics, 0-d."""
        raise NotImplementedError

    # --- an update ---

    def update(self, batch: Sequence[Any], on_step: Callable[[], None] = lambda: None) -> Figures:
        """One optimizer step over a batch of examples: its metrics, floats by name."""
        measured, norm = self._gradient(batch, on_step)
        while (
            torch.isfinite(measured[LOSS]) and not torch.isfinite(norm) and self.loss_scale > 1
        ):  # half precision overflowed
            self.loss_scale /= 2
            measured, norm = self._gradient(batch, lambda: None)
        metrics = {name: float(value) for name, value in measured.items()} | {GRADIENT_NORM: float(norm)}
        if not all(torch.isfinite(torch.tensor([metrics[LOSS], metrics[GRADIENT_NORM]]))):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteLoss(
                f"update {self.step + 1}: the loss is {metrics[LOSS]:g} and its gradient "
                f"{metrics[GRADIENT_NORM]:g}. Training stopped before this update and kept the LoRA as it "
                "was. Lower learning_rate or beta, or run the model in bf16 or fp32"
            )
        self.optimizer.step()
        self._pull_back(metrics.get(SHIFT, 0.0))
        self.step += 1
        if self.ema:
            self.ema.update(trained_weights(self.optimizer, self.adapter.named_parameters()).items())
        return metrics

    def pull_back(self, share: float) -> None:
        """Leave this share of what the LoRA has learned since the reference; more than 1 carries it on."""
        towards = HELD if self.reference.weights else None
        names = dict(self.adapter.named_parameters())
        averages = {name: self.optimizer.state.get(p, {}).get("z") for name, p in names.items()}
        self.adapter.pull_back(share, towards, names)
        self.adapter.pull_back(share, towards, {n: z for n, z in averages.items() if z is not None})
        if self.ema:
            self.ema.change(lambda weights: self.adapter.pull_back(share, towards, weights))

    def _pull_back(self, shift: float) -> None:
        """Hold an update on the leash: to first order predictions move with the weights, and the shift with
        their square."""
        limit = SHIFT_OF_LEASH * self.settings.leash**2
        if limit and shift > limit:
            self.pull_back((limit / shift) ** 0.5)

    def _set_learning_rate(self, done: int, total: int) -> None:
        factor = learning_rate_factor(self.settings.schedule, self.step, self.settings.warmup, done, total)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.settings.learning_rate

    def _gradient(
        self, batch: Sequence[Any], on_step: Callable[[], None]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Leave the clipped gradient of a batch's mean loss in the parameters: (metrics, its norm before
        clipping). Where memory does not suffice it is begun again, with less at a time."""
        prepared, together = self._prepared(batch)
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                measured = self._accumulated(prepared, on_step)
                break
            except torch.cuda.OutOfMemoryError:
                if not self.passes.lessen(together):
                    raise
            empty_cache(self.device)  # not before the error is gone: it holds what that pass had kept
        for parameter in self.adapter.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.loss_scale
        norm = torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.settings.max_grad_norm)
        return measured, norm

    # --- a run's state ---

    @property
    def round_start(self) -> Weights | None:
        """The LoRA's weights when the round began, by name; None where nothing is held against them."""
        return None

    def trained(self) -> dict[str, Tensor]:
        """The LoRA that training has arrived at, by name: its weights, or their average where there is
        one."""
        average = self.ema.weights() if self.ema else {}
        if not average and averages(self.optimizer):
            average = trained_weights(self.optimizer, self.adapter.named_parameters())
        if not average:
            return self.adapter.weights()
        self.adapter.hold(TRAINED, average)
        return self.adapter.weights(TRAINED)

    def state(self) -> tuple[dict[str, Tensor], int]:
        """Tensors by name and the step: with the settings, all that a run needs to go on exactly as it would
        have.

        "lora.NAME" is the LoRA that training has arrived at, whatever else it goes on from.
        """
        tensors = {f"lora.{name}": tensor for name, tensor in self.trained().items()}
        tensors |= state_tensors(self.optimizer, self.adapter.named_parameters())
        if self.ema:
            tensors |= {
                f"raw.{name}": tensor for name, tensor in self.adapter.weights().items()
            } | self.ema.state_tensors()
        if self._first_loss_scale > 1:
            tensors["loss scale"] = torch.tensor(self.loss_scale)
        return tensors, self.step

    def load_state(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take up what `state` returned. Raises ValueError if it belongs to a LoRA of another shape."""
        self.adapter.load(_of("lora.", tensors))
        if self.ema:
            self.ema.load_state_tensors(tensors)
            self.adapter.load(_of("raw.", tensors) or self.adapter.weights())
        load_state_tensors(self.optimizer, self.adapter.named_parameters(), tensors)
        if self._first_loss_scale > 1 and "loss scale" in tensors:
            self.loss_scale = float(tensors["loss scale"])
        self.step = step

    # --- helpers ---

    def _seed(self, step: int, *part: int) -> int:
        """Of a step's draws, or of a part of it."""
        whole = (self.settings.seed * 1_000_003 + step) % 2**63
        return generator_of(whole, *part).initial_seed() if part else whole


def _of(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
