"""Several processes that make one LoRA together: each has a rank, and does its share of the work.

Whatever is decided by what was found is decided by what all of them found, so that all arrive at the same
LoRA, and a single process would too, but for the order in which sums are made. torch.distributed carries it;
torchrun or `accelerate launch` starts the processes.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.nn import Parameter

T = TypeVar("T")
R = TypeVar("R")
PATIENCE = timedelta(hours=2)  # until a process that says nothing counts as lost


class RankLost(RuntimeError):
    """Another process has ended, or says nothing any more. What was kept before is there to go on from."""


class Ranks:
    """This process among `count`, as number `rank`. As it is, it is the only one."""

    rank, count = 0, 1

    @property
    def first(self) -> bool:
        """Whether it is this process that writes files."""
        return self.rank == 0

    def takes(self, number: int) -> bool:
        """Whether a piece of work of this number is this process's."""
        return number % self.count == self.rank

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of items."""
        return items[self.rank :: self.count]

    def gathered(self, value: T) -> list[T]:
        """What each process gives, by rank. All of them have to call it."""
        return [value]

    def require_same(self, value: object, what: str) -> None:
        """Raise ValueError where it is not the same in all processes."""
        found = self.gathered(value)
        if others := [rank for rank, other in enumerate(found) if other != found[0]]:
            others_are = ", ".join(map(str, others))
            raise ValueError(
                f"{what} is not the same in all {self.count} processes: in {others_are} it is another than "
                "in 0. Give all of them the same workflow, models and settings, and one output folder that "
                "all can reach"
            )

    def sum_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Let each parameter's gradient be the sum of all processes'."""

    def each(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """function(item) of every item, each worked out by one process; results are sent as they are."""
        own = {i: function(item) for i, item in enumerate(items) if self.takes(i)}
        found = {i: result for of_rank in self.gathered(own) for i, result in of_rank.items()}
        return [found[i] for i in range(len(items))]


ALONE = Ranks()


class Group(Ranks):
    """The processes of torch.distributed's group, which is there already."""

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

    @classmethod
    def begun(cls) -> "Group":
        """The Group that the environment tells of, as torchrun sets it. Raises RankLost."""
        if not dist.is_initialized():
            _with_all(lambda: dist.init_process_group("gloo", timeout=PATIENCE))
        return cls()

    def gathered(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.count
        _with_all(lambda: dist.all_gather_object(found, value))
        return found

    def sum_gradients(self, parameters: Iterable[Parameter]) -> None:
        parameters = list(parameters)
        widest = max((p.dtype for p in parameters), key=lambda dtype: dtype.itemsize)
        there = torch.tensor([p.grad is not None for p in parameters], dtype=widest)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([there, *(grad.detach().flatten().to("cpu", widest) for grad in grads)])
        _with_all(lambda: dist.all_reduce(flat))
        there, *sums = flat.split([len(parameters), *(p.numel() for p in parameters)])
        for parameter, known, total in zip(parameters, there, sums, strict=True):
            parameter.grad = total.view_as(parameter).to(parameter) if known else None


def _with_all(do: Callable[[], object]) -> None:
    try:
        do()
    except (RuntimeError, ValueError) as error:
        raise RankLost(
            "another process of this training has ended or cannot be reached, so this one ends too. What was "
            f"kept is kept: start them again, as many as you like, to go on ({error})"
        ) from error
