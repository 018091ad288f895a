"""The policy that the LoRA is held against, and its x0 along trajectories: recorded, kept or computed."""

import hashlib
from collections import OrderedDict
from contextlib import contextmanager

import torch

KEPT_BYTES = 256 * 2**20
TOLERANCE, IN_HALF = 1e-4, 2e-3  # of x0's norm: a network rounds otherwise in batches of another size
APART = 10  # times the tolerance: what no rounding explains


class Reference:
    """The network without its LoRA, or with weights that the LoRA had before.

    policy   names it (trajectory.py): a trajectory whose policy has this name was sampled by it, and brings its x0 along
    denoise  denoise(example, x, sigma) -> x0, in passes of as many candidates as there is memory for
    weights  the LoRA's weights in the reference; None: without the LoRA
    budget   bytes of computed x0 to keep for the next time; the least recently used go first
    apart    names of the sets that were sampled by these weights, and yet not by this denoiser

    A name may stay while what is on the model changes, at some steps alone: so one candidate is denoised again the first
    time that a step of a set is used, which is 1/N of a pass of the reference. Where it gives something else, all of the
    set is computed from there on.
    """

    def __init__(self, adapter, policy, denoise, budget=KEPT_BYTES):
        self.adapter, self.policy, self.denoise, self.budget = adapter, policy, denoise, budget
        wide = all(
            p.dtype in (torch.float32, torch.float64)
            for p in adapter.root.parameters()
            if p.is_floating_point()
        )
        self.tolerance = TOLERANCE if wide else IN_HALF
        self.apart = set()
        self.become(None)

    def become(self, weights):
        """Be another policy from here on, and forget what the former one gave."""
        self.weights = weights
        self._kept, self._bytes, self._given = OrderedDict(), 0, {}

    @contextmanager
    def acting(self):
        """Inside, the network is the reference, without gradients and dropout."""
        with torch.no_grad(), self.adapter.using(self.weights) if self.weights else self.adapter.off():
            yield

    def along(self, example):
        """i -> the reference's x0 at step i of the example's trajectory, [N, C, H, W]."""
        trajectory, key = example.trajectory, _digest(example.trajectory)
        if trajectory.policy != self.policy:
            return lambda i: self._computed(example, i, key)
        return lambda i: (
            trajectory.denoised[i] if self._gave(example, i, key) else self._computed(example, i, key)
        )

    def _computed(self, example, i, key):
        if (key, i) in self._kept:
            self._kept.move_to_end((key, i))
            return self._kept[key, i]
        x = example.trajectory.states[i]
        with self.acting():
            x0 = self.denoise(example, x, example.trajectory.sigmas[i]).to(x)
        trajectory = example.trajectory
        if (
            self._sampled_by_its_weights(trajectory)
            and not self._off(trajectory, i, x0) <= APART * self.tolerance
        ):
            self.apart.add(trajectory.set_id)
        self._kept[key, i] = x0
        self._bytes += x0.nbytes
        while self._bytes > self.budget:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return x0

    def _gave(self, example, i, key):
        """Whether one candidate of a step, denoised again, is as it was recorded, and so were those of other steps."""
        given = self._given.setdefault(key, {})
        if i not in given and all(given.values()):
            trajectory = example.trajectory
            with self.acting():
                again = self.denoise(example, trajectory.states[i, :1], trajectory.sigmas[i])
            given[i] = self._off(trajectory, i, again) <= self.tolerance
        return all(given.values())

    def _sampled_by_its_weights(self, trajectory):
        return self.policy is not None and weights_of(trajectory.policy) == weights_of(self.policy)

    @staticmethod
    def _off(trajectory, i, x0):
        """How far x0 of the first candidates at a step is from the recorded one, as a share of its norm."""
        recorded = trajectory.denoised[i, : len(x0)]
        return float((x0.to(recorded) - recorded).norm() / recorded.norm())


def weights_of(policy):
    """The part of a policy's name that names weights."""
    return policy.partition(" ")[0]


def kinds_of(policy):
    """The part of a policy's name that tells the kinds of what else is on the model; "" for nothing."""
    return policy.partition(" ")[2].partition(":")[0]


def _digest(trajectory):
    """Names a recording by what it ended with: an example that is read from disk again is known again."""
    return hashlib.sha256(trajectory.states[-1].cpu().contiguous().numpy()).digest()
