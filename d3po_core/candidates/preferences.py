"""What training learns from: a set of candidates and what was said of them."""

from dataclasses import dataclass
from statistics import mean
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import Module

from .images import CleanCandidates
from .judgement import Pair, check_candidates
from .ode import Denoise


class Candidates(Protocol):
    """What can be judged and trained on: N candidates of one prompt, a Trajectory or CleanCandidates.

    recorded      whether the steps that led to them are there, to be learned from; else noise is put on them
    count         N
    latent_shape  [N, C, H, W]
    sigmas        [K] float32, the noise levels of what is learned from
    levels        all noise levels of the sampling that it comes from, or the same
    mask          [1, C, H, W], the part that is judged and learned from; None: all of it
    set_id, model, settings, conditioning  as a Trajectory's
    """

    recorded: ClassVar[bool]
    sigmas: Tensor
    set_id: str
    model: str
    settings: dict[str, Any]
    conditioning: object
    mask: Tensor | None

    @property
    def count(self) -> int: ...

    @property
    def latent_shape(self) -> torch.Size: ...

    @property
    def levels(self) -> Tensor: ...

    def looked_at(self) -> tuple[Tensor, Tensor]:
        """(x [1, C, H, W], sigma 0-d): something for the denoiser to look at, halfway through the noise
        levels."""


class Liking(Protocol):
    """How much an artist is held to like any pictures, as something that can be climbed.

    name  of all that it depends on
    """

    name: str

    def gradient(
        self, network: Module, denoise: Denoise, images: CleanCandidates, x0: Tensor, draw: int
    ) -> Tensor:
        """Of its liking of clean latents x0 [n, C, H, W], with respect to them; shaped as they are. network
        is what denoise(x, sigma) runs, images say what x0 are pictures of, and draw is any number: which of
        the ways of looking is taken."""


@dataclass(frozen=True)
class Preferences:
    """One judged set: its candidates, and what was said of them.

    pairs   the strict ones, (winner, loser), for losses of pairs
    scores  one for each candidate, higher is better, None where there is none; () where only comparisons are
            known
    liked   True (thumb up), False (thumb down) or None for each candidate; () where nobody said
    taste   what the artist's picks taught of their taste, for the method that learns from it; or None
    """

    candidates: Candidates
    pairs: tuple[Pair, ...]
    source: str = ""
    scores: tuple[float | None, ...] = ()
    liked: tuple[bool | None, ...] = ()
    taste: Liking | None = None

    def __post_init__(self) -> None:
        check_candidates(self.pairs, self.candidates.count)
        for name in ("scores", "liked"):
            given = getattr(self, name)
            if given and len(given) != self.candidates.count:
                raise ValueError(f"{len(given)} {name} for {self.candidates.count} candidates")

    @property
    def rewards(self) -> dict[int, float]:
        """{candidate: reward} for losses of single candidates: its score, or without scores how many pairs it
        wins minus how many it loses, or without pairs its thumb, 1 or -1."""
        if self.scores:
            return {i: float(score) for i, score in enumerate(self.scores) if score is not None}
        if not self.pairs:
            return {i: 1.0 if liked else -1.0 for i, liked in enumerate(self.liked) if liked is not None}
        wins = dict.fromkeys(sorted({candidate for pair in self.pairs for candidate in pair}), 0.0)
        for winner, loser in self.pairs:
            wins[winner] += 1
            wins[loser] -= 1
        return wins

    @property
    def labels(self) -> dict[int, bool]:
        """{candidate: whether it is liked}: its thumb, or without one whether its reward is above or below
        the set's mean; who has no thumb and equals the mean has no label."""
        rewards = self.rewards
        usual = mean(rewards.values()) if rewards else 0.0  # exact, so that equal rewards equal it
        thumbs = {i: liked for i, liked in enumerate(self.liked) if liked is not None}
        return {i: reward > usual for i, reward in rewards.items() if reward != usual} | thumbs
