"""The policy that the LoRA is held against, and its x0 along trajectories: recorded, kept or computed."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..candidates.ode import Denoise
    from ..candidates.trajectory import Trajectory
    from .adapter import Adapter
    from .judged import Example
    from .memory import Passes

KEPT_BYTES = 256 * 2**20
TOLERANCE, IN_HALF = 1e-4, 2e-3  # of x0's norm: a network rounds otherwise in batches of another size
HELD = "round start"  # what the adapter keeps the weights of a reference under: no two policies have any
APART = 10  # times the tolerance: what no rounding explains


class Reference:
    """The network without its LoRA, or with weights that the LoRA had before.

    policy   names it (trajectory.py): a trajectory whose policy has this name was sampled by it, and brings
             its x0 along
    passes   how candidates go through the network, and where it is
    weights  the LoRA's weights in the reference; None: without the LoRA
    budget   bytes of computed x0 to keep for the next time; the least recently used go first
    apart    names of the sets that were sampled by these weights, and yet not by this denoiser

    A name may stay while what is on the model changes, at some steps alone: so one candidate is denoised
    again the first time that a step of a set is used, which is 1/N of a pass of the reference. Where it gives
    something else, all of the set is computed from there on.
    """

    def __init__(
        self,
        adapter: "Adapter",
        policy: str | None,
        passes: "Passes",
        budget: int = KEPT_BYTES,
    ) -> None:
        self.adapter, self.policy, self.budget = adapter, policy, budget
        self.passes, self.device = passes, passes.device
        wide = all(
            p.dtype in (torch.float32, torch.float64)
            for p in adapter.root.parameters()
            if p.is_floating_point()
        )
        self.tolerance = TOLERANCE if wide else IN_HALF
        self.apart: set[str] = set()
        self.become(None)

    def become(self, weights: dict[str, Tensor] | None) -> None:
        """Be another policy from here on, and forget what the former one gave."""
        if weights:
            self.adapter.hold(HELD, weights)
        self.weights = weights
        self._kept: OrderedDict[tuple[bytes, int], Tensor] = OrderedDict()
        self._bytes = 0
        self._given: dict[bytes, dict[int, bool]] = {}

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Inside, the network is the reference, without gradients and dropout."""
        with torch.no_grad(), self.adapter.acting(HELD) if self.weights else self.adapter.off():
            yield

    def denoised(self, denoise: "Denoise", x: Tensor, sigma: Tensor) -> Tensor:
        """The reference's x0 of x [n, C, H, W] at noise level sigma, 0-d; denoise is an example's."""
        with self.acting():
            parts = x.to(self.device).split(self.passes.per_pass or len(x))
            return torch.cat([denoise(part, sigma.to(part).expand(len(part))) for part in parts])

    def x0(self, example: "Example", i: int) -> Tensor:
        """The reference's x0 at step i of the example's trajectory, [N, C, H, W]."""
        trajectory = example.trajectory
        if trajectory.policy == self.policy and self._gave(example, i):
            return trajectory.denoised[i]
        return self._computed(example, i)

    def _computed(self, example: "Example", i: int) -> Tensor:
        trajectory = example.trajectory
        key = trajectory.ending, i
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        x = trajectory.states[i]
        x0 = self.denoised(example.denoise, x, trajectory.sigmas[i]).to(x)
        if (
            self._sampled_by_its_weights(trajectory)
            and not self._off(trajectory, i, x0) <= APART * self.tolerance
        ):
            self.apart.add(trajectory.set_id)
        self._kept[key] = x0
        self._bytes += x0.nbytes
        while self._bytes > self.budget:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return x0

    def _gave(self, example: "Example", i: int) -> bool:
        """Whether one candidate of a step, denoised again, is as it was recorded, and so were those of other
        steps."""
        trajectory = example.trajectory
        given = self._given.setdefault(trajectory.ending, {})
        if i not in given and all(given.values()):
            again = self.denoised(example.denoise, trajectory.states[i, :1], trajectory.sigmas[i])
            given[i] = self._off(trajectory, i, again) <= self.tolerance
        return all(given.values())

    def _sampled_by_its_weights(self, trajectory: "Trajectory") -> bool:
        return self.policy is not None and weights_of(trajectory.policy) == weights_of(self.policy)

    @staticmethod
    def _off(trajectory: "Trajectory", i: int, x0: Tensor) -> float:
        """How far x0 of the first candidates at a step is from the recorded one, as a share of its norm."""
        recorded = trajectory.denoised[i, : len(x0)]
        return float((x0.to(recorded) - recorded).norm() / recorded.norm())


def weights_of(policy: str) -> str:
    """The part of a policy's name that names weights."""
    return policy.partition(" ")[0]


def kinds_of(policy: str) -> str:
    """The part of a policy's name that tells the kinds of what else is on the model; "" for nothing."""
    return policy.partition(" ")[2].partition(":")[0]
