"""Looking without touching: how well a LoRA ranks judged sets that it was not trained on."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import metrics
from .judged import Example
from .methods import METHODS
from .randomness import forked
from .terms import accuracy

if TYPE_CHECKING:
    from .loop import Trainer

TRAINED = "trained"  # what the adapter holds under this name is what training has arrived at
RANKING = METHODS["D3PO"]  # what held-out pairs are measured with, whatever is trained


def evaluate(trainer: "Trainer", examples: Sequence[Example], draws: int = 8) -> dict[str, float]:
    """How well what a trainer has arrived at ranks pairs, by the margin of its implicit rewards.

    A pair's margin is the mean over every random step of its trajectory, or over `draws` noised draws, which
    are the same at every call and in every run. Nothing changes, and no gradient is made.

    "held-out accuracy"  share of the pairs with a margin above 0, ties counting half
    "held-out margin"    mean of the margins; also by quarter of the noise schedule
    "held-out KL to reference"  mean over steps and candidates
    "held-out pairs"     how many there are; without any the others are left out
    """
    trainer.adapter.hold(TRAINED, trainer.trained())  # which act without dropout
    by_set, by_quarter, kls = [], defaultdict(list), []
    asked = [i for i in range(len(examples)) if examples[i].preferences.pairs]
    for terms in trainer.ranks.each(lambda i: _measured(trainer, examples[i], draws), asked):
        for quarter, margin, kl in terms:
            by_quarter[quarter].append(margin)
            kls.append(kl)
        by_set.append(torch.stack([margin for _, margin, _ in terms]).mean(0))
    if not by_set:
        return {metrics.HELD_OUT_PAIRS: 0}
    margins = torch.cat(by_set)
    return {
        metrics.HELD_OUT_ACCURACY: float(accuracy(margins).mean()),
        metrics.HELD_OUT_MARGIN: float(margins.mean()),
        metrics.HELD_OUT_KL: float(torch.stack(kls).mean()),
        metrics.HELD_OUT_PAIRS: len(margins),
    } | {
        metrics.of_quarter(metrics.HELD_OUT_MARGIN, quarter): float(torch.cat(by_quarter[quarter]).mean())
        for quarter in sorted(by_quarter)
    }


def _measured(trainer: "Trainer", example: Example, draws: int) -> list[tuple[int, Tensor, Tensor]]:
    """(quarter, the pairs' margins, mean KL) of each term of an example."""
    terms, found = list(trainer.judged(example, RANKING).measured(draws)), []
    with forked(trainer.device), torch.no_grad(), trainer.adapter.acting(TRAINED):
        for term in terms:
            values = term.all_values()
            found.append((term.quarter, term.margin(values.log_ratio).cpu(), values.kl.mean().cpu()))
    return found
