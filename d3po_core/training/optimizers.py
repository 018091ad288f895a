"""Optimizers by name and their state as plain tensors; the learning rate's schedule; the moving average of a
LoRA.

Prodigy (arXiv 2306.06101) is left out on purpose. It works its step size up from 1e-6 to the distance of the
solution, and a preference loss has none at any finite distance: in runs of 20 to 300 updates it either has
not begun to move (with bias correction) or goes far beyond what the LoRA bears (without).
"""

import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

OPTIMIZERS = ("AdamW", "AdamW 8-bit", "AdamW schedule-free")
SCHEDULES = ("constant", "cosine")

GROUP_STATE = ("k", "weight_sum", "lr_max")  # what schedule-free counts for all parameters together


def make_optimizer(
    name: str, parameters: Iterable[Parameter], learning_rate: float, weight_decay: float
) -> Optimizer:
    """One of OPTIMIZERS, ready to step, with its authors' defaults apart from learning rate and weight decay.

    AdamW                arXiv 1711.05101, torch's
    AdamW 8-bit          bitsandbytes' (arXiv 2110.02861): its two averages in 8 bits, for less memory;
                         parameters of fewer than 4096 weights keep theirs in 32
    AdamW schedule-free  averages its steps instead of shortening them by a schedule (arXiv 2405.15682), which
                         does as much as a cosine where nobody knows how long the run will be; wants about
                         three times AdamW's learning rate. `trained_weights` tells what it has learned

    Raises ValueError for another name, and where the package that has the optimizer is not installed.
    """
    if name == "AdamW":
        make = torch.optim.AdamW
    elif name == "AdamW 8-bit":
        make = _package("bitsandbytes", name).optim.AdamW8bit
    elif name == "AdamW schedule-free":
        make = _package("schedulefree", name).AdamWScheduleFree
    else:
        raise ValueError(f"optimizer is {name!r}, but must be one of: {', '.join(OPTIMIZERS)}")
    optimizer: Optimizer = make(parameters, lr=learning_rate, weight_decay=weight_decay)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def _package(package: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"optimizer: {name} needs the package {package}, which cannot be imported ({error}). Install "
            f"it into ComfyUI's Python with: pip install {package}, or choose AdamW"
        ) from error


def trained_weights(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, Parameter]]
) -> dict[str, Tensor]:
    """What training has arrived at, copies by name where the parameters are: these; schedule-free's average
    of them.

    Schedule-free takes its gradients at y, where the parameters stay, and what it has learned is x with
    y = beta1 x + (1 - beta1) z (arXiv 2405.15682, algorithm 1).
    """
    beta1 = optimizer.param_groups[0]["betas"][0]
    weights = {}
    for name, parameter in named_parameters:
        y, z = parameter.detach(), optimizer.state.get(parameter, {}).get("z")
        weights[name] = y.clone() if z is None else y.lerp(z, 1 - 1 / beta1)
    return weights


def averages(optimizer: torch.optim.Optimizer) -> bool:
    """Whether what it has learned is an average of its own, and not the parameters."""
    return any("z" in state for state in optimizer.state.values())


# --- state ---


def state_tensors(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, Parameter]]
) -> dict[str, Tensor]:
    """All that the optimizer goes on from, tensors by name on the CPU; with schedule-free the parameters too.

    AdamW's are "optimizer.PARAMETER.PART"; another's begin with the name of its class and are for that one
    alone.
    """
    prefix, tensors = _prefix(optimizer), {}
    for name, parameter in named_parameters:
        parts = optimizer.state.get(parameter, {})
        for part, value in (parts | {"y": parameter} if "z" in parts else parts).items():
            tensors[f"{prefix}.{name}.{part}"] = _tensor(value)
    group = optimizer.param_groups[0]
    return tensors | {f"{prefix} group.{part}": _tensor(group[part]) for part in GROUP_STATE if part in group}


def load_state_tensors(
    optimizer: Optimizer,
    named_parameters: Iterable[tuple[str, Parameter]],
    tensors: Mapping[str, Tensor],
) -> bool:
    """Take up what `state_tensors` returned, among other tensors: is there anything of this optimizer in
    them?

    Where there is nothing, another optimizer wrote them or there was no step yet, and it starts afresh.
    """
    prefix, parameters = _prefix(optimizer), dict(named_parameters)
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.update({part: optimizer.defaults[part] for part in GROUP_STATE if part in group})
        group.update(
            {
                part: tensors[f"{prefix} group.{part}"].item()
                for part in GROUP_STATE
                if f"{prefix} group.{part}" in tensors
            }
        )
    for key, value in tensors.items():
        name, _, part = key.removeprefix(f"{prefix}.").rpartition(".")
        if not key.startswith(f"{prefix}.") or name not in parameters:
            continue
        parameter = parameters[name]
        if part == "y":
            parameter.detach().copy_(value)
        elif part == "step":  # torch counts in a float tensor on the CPU, bitsandbytes in an int
            optimizer.state[parameter][part] = value.clone() if value.is_floating_point() else value.item()
        else:
            optimizer.state[parameter][part] = value.to(parameter.device, copy=True)
    return bool(optimizer.state)


def _prefix(optimizer: Optimizer) -> str:
    kind = type(optimizer).__name__
    return "optimizer" if kind == "AdamW" else kind


def _tensor(value: Tensor | float) -> Tensor:
    """A copy on the CPU; of a number in 64 bits, which hold it exactly."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


# --- the learning rate ---


def learning_rate_factor(schedule: str, step: int, warmup: int, done: int, total: int) -> float:
    """What to multiply the learning rate of the next update by: warmup times schedule.

    warmup    (step + 1) / warmup for the first `warmup` updates of a run, of which there have been `step`; 0:
              none
    schedule  "constant": 1; "cosine": (1 + cos(pi done / total)) / 2, from 1 towards 0 over the `total`
              updates of a train step, of which `done` are made (arXiv 1608.03983, eq. 5)
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}, but must be one of: {', '.join(SCHEDULES)}")
    factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return factor * (0.5 * (1 + math.cos(math.pi * done / total)) if schedule == "cosine" else 1.0)


# --- the average ---


class Ema:
    """Exponential moving average of weights by name, on their device: decay * average + (1 - decay) *
    weights.

    The first weights are taken as they are, and after n updates decay is at most (1 + n) / (10 + n), so that
    the average of a short run is not that of its beginning (as in TensorFlow's ExponentialMovingAverage and
    diffusers').
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._average: dict[str, Tensor] = {}

    def update(self, named_weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take in the weights after an update: pairs (name, tensor), as of `Adapter.named_parameters`."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, weight in named_weights:
            weight = weight.detach()
            self._average[name] = self._average.get(name, weight).to(weight.device).lerp(weight, 1 - decay)
        self.updates += 1

    def weights(self) -> dict[str, Tensor]:
        """A copy of the average by name, on the CPU; {} before the first update."""
        return {name: value.to("cpu", copy=True) for name, value in self._average.items()}

    def change(self, by: Callable[[dict[str, Tensor]], object]) -> None:
        """Let by(average by name) change the average in place."""
        by(self._average)

    def state_tensors(self) -> dict[str, Tensor]:
        """The average as "ema.NAME" and how many updates it has had, on the CPU."""
        return {f"ema.{name}": value for name, value in self.weights().items()} | {
            "ema updates": torch.tensor(self.updates)
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `state_tensors` returned, among other tensors; without it start anew."""
        self._average = {
            key.removeprefix("ema."): value.clone()
            for key, value in tensors.items()
            if key.startswith("ema.")
        }
        self.updates = int(tensors.get("ema updates", 0))
