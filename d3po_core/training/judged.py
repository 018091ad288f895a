"""A judged set on its way to the loss: what a method learns from of it, worked out once, and the terms of its
loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import cast

import torch
from torch import Generator, Tensor

from ..candidates.images import CleanCandidates
from ..candidates.ode import Denoise
from ..candidates.preferences import Candidates, Preferences
from ..candidates.trajectory import Trajectory
from .methods import LIKED, METHODS, NOISED, PAIRS, RECORDED, TASTE, Method
from .randomness import generator_of
from .reference import Reference
from .settings import Settings
from .terms import GuidedDraw, NoisedDraw, Term, TrajectoryStep


@dataclass(frozen=True)
class Example:
    """A judged set and the denoiser of its prompt: denoise(x [B, C, H, W], sigma [B]) -> x0, with gradients.

    Diffusion-DPO is meant without guidance: where the set has no trajectory, denoise under the prompt alone.
    unconditional denoises without the prompt, for caption dropout; without it the prompt is never dropped.
    own_sampler: the recorded x0 is what this denoiser gave under the policy that sampled. Otherwise the LoRA
    as it is when training begins is taken for that policy.
    """

    preferences: Preferences
    denoise: Denoise
    unconditional: Denoise | None = None
    own_sampler: bool = False

    @property
    def candidates(self) -> Candidates:
        return self.preferences.candidates

    @property
    def trajectory(self) -> Trajectory:
        """The candidates, where they are recorded."""
        return cast(Trajectory, self.candidates)


class JudgedSet(ABC):
    """An example as a method learns from it.

    members   [n] indices of the candidates that take part, each once, however many pairs they are in
    places    [pairs, 2] winner and loser of each pair of these, as places in `members`
    parts     how many pairs or members the loss is a mean over
    reference, sampler  the policies that log-ratios are to
    mask      [1, C, H, W], the part of the latents that is learned from; None: all of it
    """

    def __init__(
        self, example: Example, method: Method, settings: Settings, reference: Reference, sampler: Reference
    ) -> None:
        self.example, self.candidates, self.preferences = example, example.candidates, example.preferences
        self.method, self.settings = method, settings
        self.reference, self.sampler, self.device = reference, sampler, reference.device
        mask = self.candidates.mask
        # a copy, as gradients ask for it, which take none that was made in inference mode
        self.mask = None if mask is None else mask.to(self.device).clone()
        members = method.taking_part(self.preferences)
        place = {member: i for i, member in enumerate(members)}
        given = () if method.of in (LIKED, TASTE) else self.preferences.pairs
        pairs = [(place[w], place[l]) for w, l in given if w in place and l in place]
        self.members = torch.tensor(members)
        self.places = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        self.parts = len(pairs) if method.of == PAIRS else len(members)

    @cached_property
    def rewards(self) -> Tensor:
        """[n]"""
        rewards = self.preferences.rewards
        return torch.tensor([rewards[i] for i in self.members.tolist()], device=self.device)

    @cached_property
    def liked(self) -> Tensor:
        """[n] bool"""
        return self._labelled(True)

    @cached_property
    def disliked(self) -> Tensor:
        """[n] bool; who has no label is neither"""
        return self._labelled(False)

    def _labelled(self, label: bool) -> Tensor:
        labels = self.preferences.labels
        return torch.tensor([labels.get(i) is label for i in self.members.tolist()], device=self.device)

    @staticmethod
    @abstractmethod
    def terms_in(candidates: Candidates, settings: Settings) -> int:
        """How many terms an update has of such candidates."""

    @abstractmethod
    def drawn(self, generator: Generator) -> Iterator[Callable[[], Term]]:
        """What makes the terms of an update, one after another."""

    @abstractmethod
    def measured(self, draws: int) -> Iterator[Term]:
        """The terms that it is measured by: every random step, or `draws` noised draws that are always the
        same."""


class RecordedSet(JudgedSet):
    """A recorded trajectory: a term is one of its steps."""

    candidates: Trajectory

    @staticmethod
    def terms_in(candidates: Candidates, settings: Settings) -> int:
        return _share(window(cast(Trajectory, candidates), settings), settings.step_fraction)

    def drawn(self, generator: Generator) -> Iterator[Callable[[], Term]]:
        steps = window(self.candidates, self.settings)
        drawn = torch.randperm(len(steps), generator=generator)[
            : self.terms_in(self.candidates, self.settings)
        ]
        yield from (partial(self._step, i) for i in sorted(steps[i] for i in drawn.tolist()))

    def measured(self, draws: int) -> Iterator[Term]:
        yield from map(self._step, self.candidates.actions)

    def _step(self, i: int) -> Term:
        ref_x0, sampled_x0 = self.reference.x0(self.example, i), None
        if self.method.sampler:
            own = self.example.own_sampler
            sampled_x0 = self.candidates.denoised[i] if own else self.sampler.x0(self.example, i)
        return TrajectoryStep(self, i, ref_x0, sampled_x0)


class NoisedSet(JudgedSet):
    """Images alone: a term is a noised draw of them."""

    candidates: CleanCandidates

    @staticmethod
    def terms_in(candidates: Candidates, settings: Settings) -> int:
        return settings.draws_per_set

    def drawn(self, generator: Generator) -> Iterator[Callable[[], Term]]:
        unconditional, dropout = self.example.unconditional, self.settings.caption_dropout
        for sigma, noise in self.candidates.draws(self.settings.draws_per_set, generator):
            denoise = self.example.denoise
            if unconditional and dropout and torch.rand((), generator=generator) < dropout:
                denoise = unconditional
            if self.method.of == TASTE:
                look = int(torch.randint(2**31, (), generator=generator))
                yield partial(GuidedDraw, self, sigma, noise, denoise, look)
            else:
                yield partial(NoisedDraw, self, sigma, noise, denoise)

    def measured(self, draws: int) -> Iterator[Term]:
        for sigma, noise in self.candidates.draws(draws, generator_of(self.candidates.set_id)):
            yield NoisedDraw(self, sigma, noise, self.example.denoise)


def kind_of(candidates: Candidates) -> type[JudgedSet]:
    return RecordedSet if candidates.recorded else NoisedSet


def window(trajectory: Trajectory, settings: Settings) -> list[int]:
    """Its random steps within the settings' window. Raises ValueError where there is none."""
    start, end, steps = settings.window_start, settings.window_end, len(trajectory.sigmas) - 1
    inside = [i for i in trajectory.actions if start <= trajectory.way(i) < end]
    if not inside:
        raise ValueError(
            f"window_start, window_end: none of the {steps} recorded steps lies between {start:g} and "
            f"{end:g} of the way, or it is not random. Widen the window"
        )
    return inside


def require_kind(method: str, sets: Iterable[Candidates]) -> None:
    """Raise ValueError where a method, by its name, cannot learn from one of these sets of candidates."""
    terms, recorded = METHODS[method].terms, {candidates.recorded for candidates in sets}
    if terms == RECORDED and False in recorded:
        raise ValueError(
            f"method: {method} learns from recorded steps, and some of these candidates are images alone. "
            "Choose another method, such as Diffusion-DPO, or record candidates with D3PO KSampler"
        )
    if terms == NOISED and True in recorded:
        raise ValueError(f"method: {method} learns from noised images, not from recorded steps")


def _share(steps: list[int], fraction: float) -> int:
    return max(1, round(fraction * len(steps)))
