"""The training loop: a method of preference tuning over judged trajectories and judged images, through a denoiser, on a
LoRA adapter."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ..candidates.images import CleanCandidates
from ..candidates.preferences import Preferences
from . import metrics as named
from .losses import moving_average
from .methods import METHODS, NOISED, RECORDED
from .optimizers import (
    Ema,
    learning_rate_factor,
    load_state_tensors,
    make_optimizer,
    state_tensors,
    trained_weights,
)
from .randomness import forked, generator_of, seed
from .reference import Reference
from .settings import REFERENCES, WEIGHTINGS, Settings  # noqa: F401 (they belong to the trainer's face)
from .terms import NoisedDraw, TrajectoryStep, Values, accuracy

RANKING = METHODS["D3PO"]  # what held-out pairs are measured with, whatever is trained


class NonFiniteLoss(ValueError):
    """The loss or its gradient is not finite. The update was not made: the LoRA is as it was before it."""


@dataclass(frozen=True)
class Example:
    """A judged set and the denoiser of its prompt: denoise(x [B, C, H, W], sigma [B]) -> x0, with gradients.

    Diffusion-DPO is meant without guidance: where the set has no trajectory, denoise under the prompt alone.
    unconditional denoises without the prompt, for caption dropout; without it the prompt is never dropped.
    own_sampler: the recorded x0 is what this denoiser gave under the policy that sampled. Otherwise the LoRA as it is when
    training begins is taken for that policy.
    """

    preferences: Preferences
    denoise: Callable
    unconditional: Callable | None = None
    own_sampler: bool = False

    @property
    def trajectory(self):
        return self.preferences.trajectory


class Trainer:
    """An optimizer on an adapter's parameters; one `update` is one of its steps.

    reference_policy names the reference's weights: a trajectory whose policy has this name was sampled by the
    reference, and its recorded x0 is used in place of a reference pass. start_policy does so for the LoRA as it is when
    training begins.

    loss_scale keeps small gradients alive in a network that runs in float16; it is halved whenever they overflow.

    Wherever examples are asked for, a sequence will do that makes an example when it is indexed: they are used one
    update at a time, and none is kept.
    """

    def __init__(
        self, adapter, settings, reference_policy=None, device="cpu", loss_scale=1.0, start_policy=None
    ):
        self.adapter, self.settings, self.device = adapter, settings, device
        self.method = METHODS[settings.method]
        self.loss_scale = self._first_loss_scale = loss_scale
        self.step, self.usual_margin = 0, 0.0
        self.optimizer = make_optimizer(
            settings.optimizer, adapter.parameters(), settings.learning_rate, settings.weight_decay
        )
        self.ema = Ema(settings.ema) if settings.ema else None
        self.reference = Reference(adapter, reference_policy, self._denoise)
        # held against the round's start, they are one
        self.sampler = (
            self.reference
            if settings.reference == "round start"
            else Reference(adapter, start_policy, self._denoise)
        )
        self.begin_round()

    # --- the loop ---

    def updates_in(self, examples):
        """How many updates `fit` makes, if it is not stopped."""
        return self.settings.epochs * self._updates_per_epoch(len(self._judged(examples)))

    def steps_in(self, examples, start=0):
        """How many denoising steps (or noised draws) `fit` trains on, from update `start` of it on."""
        terms = {i: self._terms_in(examples[i].trajectory) for i in self._judged(examples)}
        return sum(terms[i] for batch in self._batches(list(terms), start) for i in batch)

    def fit(
        self,
        examples,
        on_step=lambda: None,
        history=(),
        held_out=(),
        evaluate_every=0,
        after_update=None,
        stop=None,
        round_start=None,
    ):
        """Use every example `epochs` times. Calls on_step() after each denoising step; returns the updates' metrics.

        history       metrics of the updates of this fit that were made before: `load_state` took up the state after them
        held_out      examples that are not trained on: their figures (`evaluate`) are put to the metrics of every
                      `evaluate_every`-th update (0: none) and of the last
        after_update  after_update(metrics of all updates so far) after each update
        stop          stop(metrics of all updates so far) -> true ends training early
        round_start   the LoRA's weights when this fit began, as the `round_start` of the trainer that began it:
                      needed where updates were made before and these weights are held against

        Raises ValueError if no example has what the method learns from, NonFiniteLoss before a step that would spoil
        the LoRA.
        """
        history, judged = list(history), self._judged(examples)
        self._require_learnable(examples, judged)
        updates = self.settings.epochs * self._updates_per_epoch(len(judged))
        if len(history) > updates:
            raise ValueError(
                f"training cannot go on after update {len(history)}: these sets and settings make {updates}"
            )
        if history and round_start is None and self._needs_round_start:
            raise ValueError(
                "training cannot go on without the LoRA as it was at the round's start, its reference"
            )
        self.begin_round(round_start)
        if not history:
            self.loss_scale = self._first_loss_scale
        for batch in self._batches(judged, len(history)):
            if history and stop and stop(history):
                break
            self._set_learning_rate(len(history), updates)
            history.append(self.update([examples[i] for i in batch], on_step))
            if held_out and evaluate_every and len(history) % evaluate_every == 0:
                history[-1] |= self.evaluate(held_out)
            if after_update:
                after_update(history)
        if held_out and named.HELD_OUT_PAIRS not in history[-1]:
            history[-1] = history[-1] | self.evaluate(held_out)
        return history

    def _require_learnable(self, examples, judged):
        if not judged:
            raise ValueError(f"preferences: there is nothing to learn from: {self.method.wanted}")
        require_kind(self.settings.method, [examples[i].trajectory for i in judged])

    def update(self, batch, on_step=lambda: None):
        """One optimizer step over a batch of examples: its metrics, floats by name.

        Every pair (or candidate, where the method learns from single ones) weighs alike, with or without a trajectory.
        terms.py says what the log-ratios and the KL of examples without one are; none of these is clipped.
        """
        metrics, norm = self._gradient(batch, on_step)
        while (
            torch.isfinite(metrics[named.LOSS]) and not torch.isfinite(norm) and self.loss_scale > 1
        ):  # half precision overflowed
            self.loss_scale /= 2
            metrics, norm = self._gradient(batch, lambda: None)
        metrics = {name: float(value) for name, value in metrics.items()} | {named.GRADIENT_NORM: float(norm)}
        if not all(torch.isfinite(torch.tensor([metrics[named.LOSS], metrics[named.GRADIENT_NORM]]))):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteLoss(
                f"update {self.step + 1}: the loss is {metrics[named.LOSS]:g} and its gradient "
                f"{metrics[named.GRADIENT_NORM]:g}. Training stopped before this update and kept the LoRA as it was. Lower "
                "learning_rate or beta, or run the model in bf16 or fp32"
            )
        self.optimizer.step()
        self.step += 1
        if self.ema:
            self.ema.update(trained_weights(self.optimizer, self.adapter.named_parameters()).items())
        self.usual_margin = moving_average(self.usual_margin, metrics.get(named.MARGIN, 0.0))
        return metrics

    def _set_learning_rate(self, done, total):
        factor = learning_rate_factor(self.settings.schedule, self.step, self.settings.warmup, done, total)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.settings.learning_rate

    def _gradient(self, batch, on_step):
        """Leave the clipped gradient of a batch's mean loss in the parameters: (metrics, its norm before clipping)."""
        self.optimizer.zero_grad(set_to_none=True)
        settings, sums, shares = self.settings, defaultdict(float), defaultdict(float)
        parts = sum(self.method.parts(example.preferences) for example in batch)
        with forked(self.device), torch.enable_grad():
            seed(self._seed(self.step), self.device)
            for example in batch:
                generator = generator_of(settings.seed, self.step, example.trajectory.set_id)
                share = self.method.parts(example.preferences) / parts / self._terms_in(example.trajectory)
                for term in self._terms(
                    example,
                    generator,
                    settings.draws_per_set,
                    settings.caption_dropout,
                    self.method,
                    self._trained_steps(example.trajectory, generator),
                ):
                    for name, value in self._accumulate(term, share).items():
                        sums[name] += share * value
                        shares[name] += share
                    on_step()
        for parameter in self.adapter.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.loss_scale
        norm = torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), settings.max_grad_norm)
        return {name: sums[name] / shares[name] for name in sums}, norm

    def _accumulate(self, term, share):
        """Add share * d loss / d LoRA of one term; its metrics as 0-d tensors."""
        term.usual_margin = self.usual_margin
        chunks = self._chunks(term)
        if len(chunks) == 1:
            values = term.values(slice(None))
            value = term.loss(values)
            (self.loss_scale * share * value).backward()
        else:  # the loss joins candidates that do not fit together: first its slope in each, then each one's gradient
            first = int(torch.randint(2**62, ()))  # so that a chunk's dropout is the same both times
            values = self._values(term, first)
            inputs = [value.requires_grad_() for value in values[:3] if value is not None]
            value = term.loss(values)
            slopes = torch.autograd.grad(self.loss_scale * share * value, inputs, allow_unused=True)
            for number, chunk in enumerate(chunks):
                seed(first + number, self.device)
                outputs = [value for value in term.values(chunk)[:3] if value is not None]
                sum(
                    (slope[chunk] * output).sum()
                    for slope, output in zip(slopes, outputs)
                    if slope is not None
                ).backward()
        return term.metrics(value.detach(), Values(*(None if v is None else v.detach() for v in values)))

    # --- looking without touching ---

    def evaluate(self, examples, draws=8):
        """How well the LoRA ranks pairs that it was not trained on, by the margin of its implicit rewards.

        A pair's margin is the mean over every random step of its trajectory, or over `draws` noised draws, which are
        the same at every call and in every run. Nothing changes, and no gradient is made.

        "held-out accuracy"  share of the pairs with a margin above 0, ties counting half
        "held-out margin"    mean of the margins; also by quarter of the noise schedule
        "held-out KL to reference"  mean over steps and candidates
        "held-out pairs"     how many there are; without any the others are left out
        """
        margins, by_quarter, kls = [], defaultdict(list), []
        for example in (examples[i] for i in range(len(examples)) if examples[i].preferences.pairs):
            terms = list(
                self._terms(
                    example,
                    generator_of(example.trajectory.set_id),
                    draws,
                    caption_dropout=0.0,
                    method=RANKING,
                    steps=getattr(example.trajectory, "actions", None),
                )
            )
            of_terms = []
            with forked(self.device), self.adapter.using(self.trained()):  # without dropout
                for term in terms:
                    values = self._values(term)
                    of_terms.append(term.margin(values.log_ratio).cpu())
                    by_quarter[term.quarter].append(of_terms[-1])
                    kls.append(values.kl.mean().cpu())
            margins.append(torch.stack(of_terms).mean(0))
        if not margins:
            return {named.HELD_OUT_PAIRS: 0}
        margins = torch.cat(margins)
        return {
            named.HELD_OUT_ACCURACY: float(accuracy(margins).mean()),
            named.HELD_OUT_MARGIN: float(margins.mean()),
            named.HELD_OUT_KL: float(torch.stack(kls).mean()),
            named.HELD_OUT_PAIRS: len(margins),
        } | {
            named.of_quarter(named.HELD_OUT_MARGIN, quarter): float(torch.cat(by_quarter[quarter]).mean())
            for quarter in sorted(by_quarter)
        }

    def trained(self):
        """The LoRA that training has arrived at, by name: its weights, or their average where there is one."""
        averaged = self.ema.weights() if self.ema else {}
        with self.adapter.using(averaged or trained_weights(self.optimizer, self.adapter.named_parameters())):
            return self.adapter.weights()

    # --- the terms of the loss ---

    def _terms(self, example, generator, draws, caption_dropout, method, steps):
        """`draws` noised draws of an example, or where it has a trajectory these steps of it."""
        candidates = example.trajectory

        def denoise(x, sigma, by=example.denoise):
            return by(x, sigma.to(x).expand(len(x)))

        def reference(by):
            def denoise(x, sigma):
                with self.reference.acting():
                    return self._in_passes(by, x, sigma)

            return denoise

        if isinstance(candidates, CleanCandidates):
            for sigma, noise in candidates.draws(draws, generator):
                by = example.denoise
                if (
                    caption_dropout
                    and example.unconditional
                    and torch.rand((), generator=generator) < caption_dropout
                ):
                    by = example.unconditional
                yield NoisedDraw(
                    example,
                    sigma,
                    noise,
                    reference(by),
                    partial(denoise, by=by),
                    method,
                    self.settings,
                    self.device,
                )
        else:
            ref_x0 = self.reference.along(example)
            sampled_x0 = self._sampled_x0(example) if method.sampler else lambda i: None
            for i in steps:
                yield TrajectoryStep(
                    example, i, ref_x0(i), sampled_x0(i), denoise, method, self.settings, self.device
                )

    def _sampled_x0(self, example):
        """i -> x0 at step i of the example's trajectory by the policy that sampled, [N, C, H, W]."""
        return example.trajectory.denoised.__getitem__ if example.own_sampler else self.sampler.along(example)

    def _terms_in(self, candidates):
        """How many terms an update has of an example with these candidates."""
        if isinstance(candidates, CleanCandidates):
            return self.settings.draws_per_set
        return _share(self._window(candidates), self.settings.step_fraction)

    def _trained_steps(self, candidates, generator):
        """The steps of a trajectory that an update trains on, drawn from its window; None where there are no steps."""
        if isinstance(candidates, CleanCandidates):
            return None
        window = self._window(candidates)
        drawn = torch.randperm(len(window), generator=generator)[
            : _share(window, self.settings.step_fraction)
        ]
        return sorted(window[i] for i in drawn.tolist())

    def _window(self, trajectory):
        """Its random steps within the settings' window."""
        start, end, steps = self.settings.window_start, self.settings.window_end, len(trajectory.sigmas) - 1
        window = [i for i in trajectory.actions if start <= i / steps < end]
        if not window:
            raise ValueError(
                f"window_start, window_end: none of the {steps} recorded steps lies between {start:g} and "
                f"{end:g} of the way, or it is not random. Widen the window"
            )
        return window

    def _values(self, term, first=0):
        """The Values of all of a term's candidates without gradients; chunk after chunk has its own dropout."""
        parts = []
        with torch.no_grad():
            for number, chunk in enumerate(self._chunks(term)):
                seed(first + number, self.device)
                parts.append(term.values(chunk))
        return Values.joined(parts)

    def _chunks(self, term):
        return torch.arange(len(term.candidates)).split(
            self.settings.candidates_per_pass or len(term.candidates)
        )

    # --- the order of examples ---

    def _judged(self, examples):
        """Indices of the examples that the method can learn from."""
        return [i for i in range(len(examples)) if self.method.candidates(examples[i].preferences)]

    def _updates_per_epoch(self, judged):
        return -(-judged // self.settings.sets_per_update)

    def _batches(self, judged, start):
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

    def begin_round(self, weights=None):
        """Hold the LoRA against these weights, or its present ones, where the method or the reference wants the round's
        start."""
        if not self._needs_round_start:
            return
        self.sampler.become(weights or self.trained())

    @property
    def round_start(self):
        """The LoRA's weights when the round began, by name; None where nothing is held against them."""
        return self.sampler.weights

    @property
    def _needs_round_start(self):
        return self.method.sampler or self.settings.reference == "round start"

    def state(self):
        """Tensors by name and the step: with the settings, all that a run needs to go on exactly as it would have.

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
        tensors["usual margin"] = torch.tensor(self.usual_margin, dtype=torch.float64)
        return tensors, self.step

    def load_state(self, tensors, step):
        """Take up what `state` returned. Raises ValueError if it belongs to a LoRA of another shape."""
        self.adapter.load(_of("lora.", tensors))
        if self.ema:
            self.ema.load_state_tensors(tensors)
            self.adapter.load(_of("raw.", tensors) or self.adapter.weights())
        load_state_tensors(self.optimizer, self.adapter.named_parameters(), tensors)
        if self._first_loss_scale > 1 and "loss scale" in tensors:
            self.loss_scale = float(tensors["loss scale"])
        self.usual_margin = float(tensors.get("usual margin", 0.0))
        self.step = step
        self.begin_round()

    # --- helpers ---

    def _seed(self, step):
        return (self.settings.seed * 1_000_003 + step) % 2**63

    def _denoise(self, example, x, sigma):
        """x0 of any number of candidates of an example."""
        return self._in_passes(example.denoise, x, sigma)

    def _in_passes(self, denoise, x, sigma):
        """x0 of any number of candidates, in passes of as many as the settings say."""
        return torch.cat(
            [
                denoise(part, sigma.to(part).expand(len(part)))
                for part in x.to(self.device).split(self.settings.candidates_per_pass or len(x))
            ]
        )


def require_kind(method, candidates):
    """Raise ValueError where a method, by its name, cannot learn from one of these Trajectories or CleanCandidates."""
    terms, kinds = METHODS[method].terms, {isinstance(one, CleanCandidates) for one in candidates}
    if terms == RECORDED and True in kinds:
        raise ValueError(
            f"method: {method} learns from recorded steps, and some of these candidates are images alone. Choose "
            "another method, such as Diffusion-DPO, or record candidates with D3PO KSampler"
        )
    if terms == NOISED and False in kinds:
        raise ValueError(f"method: {method} learns from noised images, not from recorded steps")


def _of(prefix, tensors):
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _share(actions, fraction):
    return max(1, round(fraction * len(actions)))
