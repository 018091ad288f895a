"""The training loop: D3PO over judged trajectories, through a denoiser, on a LoRA adapter."""

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable

import torch

from . import loss, transition
from .preference import Preferences

WEIGHTINGS = ("paper", "standardised")
REFERENCES = ("base", "round start")


class NonFiniteLoss(ValueError):
    """The loss or its gradient is not finite. The update was not made: the LoRA is as it was before it."""


@dataclass(frozen=True)
class Settings:
    """What a run is trained with. Defaults are D3PO's (arXiv 2311.13231, section 5 and its code).

    beta            strength of the pull back to the reference: the factor before the log-ratios
    clip            ratios are clamped to [1 - clip, 1 + clip]; 0: no clamp
    weighting       "paper": log-ratios as they are; "standardised": every step's gradient weighs alike
    reference       "base": the model without the LoRA; "round start": the LoRA as it is when training begins
    epochs          how often every judged set is used
    sets_per_update judged sets that share an optimizer step
    step_fraction   share of each trajectory's steps that an update trains on, drawn anew each time
    candidates_per_pass  candidates that go through the network together, 0: all; fewer need less memory and one more
                    forward pass, for the same gradient
    """

    beta: float = 0.1
    clip: float = 0.1
    weighting: str = "paper"
    reference: str = "base"
    learning_rate: float = 3e-5
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    epochs: int = 1
    sets_per_update: int = 1
    step_fraction: float = 1.0
    candidates_per_pass: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """A judged set and the denoiser of its prompt: denoise(x [B, C, H, W], sigma [B]) -> x0, with gradients."""

    preferences: Preferences
    denoise: Callable

    @property
    def trajectory(self):
        return self.preferences.trajectory


class Trainer:
    """AdamW on an adapter's parameters; one `update` is one optimizer step.

    reference_policy names the reference's weights: a trajectory whose policy has this name was sampled by the
    reference, and its recorded x0 is used in place of a reference pass.

    loss_scale keeps small gradients alive in a network that runs in float16; it is halved whenever they overflow.
    """

    def __init__(self, adapter, settings, reference_policy=None, device="cpu", loss_scale=1.0):
        self.adapter, self.settings, self.device = adapter, settings, device
        self.reference_policy, self.loss_scale = reference_policy, loss_scale
        self.step = 0
        self.optimizer = torch.optim.AdamW(adapter.parameters(), lr=settings.learning_rate,
                                           weight_decay=settings.weight_decay)
        self._references, self._round_start = {}, None

    # --- the loop ---

    def steps_in(self, examples):
        """How many denoising steps `fit` trains on."""
        return self.settings.epochs * sum(self._share_of_steps(example.trajectory) for example in examples
                                          if example.preferences.pairs)

    def fit(self, examples, on_step=lambda: None):
        """Use every example `epochs` times. Calls on_step() after each denoising step; returns every update's metrics.

        Raises ValueError if no example has a strict preference, NonFiniteLoss before a step that would spoil the LoRA.
        """
        examples = [example for example in examples if example.preferences.pairs]
        if not examples:
            raise ValueError("preferences: there is nothing to learn from: no candidate is strictly preferred to another. "
                             "Pick at least one winner, or record candidates that differ more")
        if self.settings.reference == "round start":
            self._references, self._round_start = {}, self.adapter.weights()
        history, size = [], self.settings.sets_per_update
        for _ in range(self.settings.epochs):
            order = torch.randperm(len(examples), generator=self._generator()).tolist()
            for first in range(0, len(order), size):
                history.append(self.update([examples[i] for i in order[first:first + size]], on_step))
        return history

    def update(self, batch, on_step=lambda: None):
        """One optimizer step over a batch of examples: its metrics, floats by name."""
        metrics, norm = self._gradient(batch, on_step)
        while not torch.isfinite(norm) and self.loss_scale > 1:  # half precision overflowed, not the loss
            self.loss_scale /= 2
            metrics, norm = self._gradient(batch, lambda: None)
        metrics = {name: float(value) for name, value in metrics.items()} | {"gradient norm": float(norm)}
        if not all(torch.isfinite(torch.tensor([metrics["loss"], metrics["gradient norm"]]))):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteLoss(
                f"update {self.step + 1}: the loss is {metrics['loss']:g} and its gradient {metrics['gradient norm']:g}. "
                "Training stopped before this update and kept the LoRA as it was. Lower learning_rate or beta, or run "
                "the model in bf16 or fp32")
        self.optimizer.step()
        self.step += 1
        return metrics

    def _gradient(self, batch, on_step):
        """Leave the clipped gradient of a batch's mean loss in the parameters: (metrics, its norm before clipping)."""
        self.optimizer.zero_grad(set_to_none=True)
        generator = self._generator()
        pairs = sum(len(example.preferences.pairs) for example in batch)
        metrics = defaultdict(float)
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(self._seed())
            for example in batch:
                steps = self._steps(example.trajectory, generator)
                share = len(example.preferences.pairs) / pairs / len(steps)
                for i in steps:
                    for name, value in self._accumulate(example, i, share).items():
                        metrics[name] += share * value
                    on_step()
        for parameter in self.adapter.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.loss_scale
        return metrics, torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.settings.max_grad_norm)

    def _accumulate(self, example, i, share):
        """Add share * d loss / d LoRA of step i of one example; its metrics as 0-d tensors."""
        trajectory, settings = example.trajectory, self.settings
        pairs = torch.tensor(example.preferences.pairs)
        used, places = pairs.unique(return_inverse=True)  # one pass per candidate, however many pairs it is in
        sigma, sigma_next = trajectory.sigmas[i], trajectory.sigmas[i + 1]
        kernel, std = trajectory.kernel, trajectory.kernel.std(sigma, sigma_next)
        weight = float(kernel.pull(sigma, sigma_next)) if settings.weighting == "standardised" else 1.0
        x, x_next, ref_x0 = (self._to_device(t[used]) for t in (
            trajectory.states[i], trajectory.states[i + 1], self.reference(example)[i]))
        ref_mean = kernel.mean(x, ref_x0, sigma, sigma_next)
        kls = []

        def log_ratios(chunk):
            mean = kernel.mean(x[chunk], self._denoise(example, x[chunk], sigma), sigma, sigma_next)
            kls.append(transition.kl(mean.detach(), ref_mean[chunk], std))
            return transition.log_ratio(x_next[chunk], mean, ref_mean[chunk], std)

        def winners_and_losers(log_ratio):
            return (log_ratio[places[:, side].to(log_ratio.device)] for side in (0, 1))

        def objective(log_ratio):
            w, l = winners_and_losers(weight * log_ratio)
            return loss.d3po(w, l, settings.beta, settings.clip)

        chunks = torch.arange(len(used)).split(settings.candidates_per_pass or len(used))
        if len(chunks) == 1:
            log_ratio = log_ratios(slice(None))
            value = objective(log_ratio)
            (self.loss_scale * share * value).backward()
        else:  # the loss joins candidates that do not fit together: first its slope in each, then each one's gradient
            with torch.no_grad():
                log_ratio = torch.cat([log_ratios(chunk) for chunk in chunks])
            log_ratio.requires_grad_()
            value = objective(log_ratio)
            (slope,) = torch.autograd.grad(self.loss_scale * share * value, log_ratio)
            for chunk in chunks:
                (slope[chunk] * log_ratios(chunk)).sum().backward()
            kls = kls[:len(chunks)]
        log_ratio = log_ratio.detach()
        w, l = winners_and_losers(log_ratio)
        margin = loss.d3po_margin(weight * w, weight * l, settings.beta)
        return {"loss": value.detach(), "winner log-ratio": w.mean(), "loser log-ratio": l.mean(),
                "margin": margin.mean(), "implicit accuracy": (0.5 + 0.5 * margin.sign()).mean(),
                "KL to reference": torch.cat(kls).mean(),
                "clip fraction": loss.clip_fraction(weight * torch.cat([w, l]), settings.clip)}

    # --- the reference ---

    def reference(self, example):
        """The reference's x0 along a trajectory, [T, N, ...]: recorded, or computed once and kept."""
        trajectory = example.trajectory
        key = id(trajectory)
        if key not in self._references:
            recorded = trajectory.policy == self.reference_policy and self._was_sampled_by_reference(example)
            x0 = trajectory.denoised if recorded else self._reference_pass(example)
            self._references[key] = (trajectory, x0)  # holds the trajectory, so that its id stays its own
        return self._references[key][1]

    def _reference_pass(self, example):
        trajectory = example.trajectory
        out = torch.zeros_like(trajectory.denoised)
        with self._as_reference():
            for i in trajectory.actions:
                x = self._to_device(trajectory.states[i])
                out[i] = torch.cat([self._denoise(example, chunk, trajectory.sigmas[i]).to(out)
                                    for chunk in x.split(self.settings.candidates_per_pass or len(x))])
        return out

    def _was_sampled_by_reference(self, example):
        """One candidate's first step, denoised again: a name may stay while a patch on the model changes."""
        trajectory = example.trajectory
        recorded = trajectory.denoised[0, :1]
        with self._as_reference():
            again = self._denoise(example, self._to_device(trajectory.states[0, :1]), trajectory.sigmas[0]).to(recorded)
        return bool((again - recorded).norm() <= 2e-3 * recorded.norm())  # float16 differs by batch size

    @contextmanager
    def _as_reference(self):
        start = self._round_start
        with torch.no_grad(), self.adapter.using(start) if start else self.adapter.off():
            yield

    # --- a run's state ---

    def state(self):
        """Tensors by name and the step: with the settings, all that a run needs to go on exactly as it would have."""
        tensors = {f"lora.{name}": tensor for name, tensor in self.adapter.weights().items()}
        for name, parameter in self.adapter.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value.detach().to("cpu", copy=True)
        return tensors, self.step

    def load_state(self, tensors, step):
        """Take up what `state` returned. Raises ValueError if it belongs to a LoRA of another shape."""
        self.adapter.load({k.removeprefix("lora."): v for k, v in tensors.items() if k.startswith("lora.")})
        self.optimizer.state.clear()
        parameters = dict(self.adapter.named_parameters())
        for key, value in tensors.items():
            name, _, part = key.removeprefix("optimizer.").rpartition(".")
            if key.startswith("optimizer.") and name in parameters:
                parameter = parameters[name]
                self.optimizer.state[parameter][part] = value.clone() if part == "step" else value.to(parameter, copy=True)
        self.step = step

    # --- helpers ---

    def _generator(self):
        """Draws that depend on the seed and the step alone, so that a resumed run makes the same ones."""
        return torch.Generator().manual_seed(self._seed())

    def _seed(self):
        return (self.settings.seed * 1_000_003 + self.step) % 2 ** 63

    def _steps(self, trajectory, generator):
        actions = trajectory.actions
        drawn = torch.randperm(len(actions), generator=generator)[:self._share_of_steps(trajectory)]
        return sorted(actions[i] for i in drawn.tolist())

    def _share_of_steps(self, trajectory):
        return max(1, round(self.settings.step_fraction * len(trajectory.actions)))

    def _to_device(self, tensor):
        return tensor.to(self.device)

    def _denoise(self, example, x, sigma):
        return example.denoise(x, sigma.to(x).expand(len(x)))
