"""What keeping a train step's state costs, of a LoRA on all linear layers of SDXL.

The LoRA and its optimizer's moments are real, and are written as in training. In the network's place, which
would need a graphics card, each update multiplies matrices for a while.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from d3po_core.runs.progress import Progress
from d3po_core.training.adapter import Adapter
from d3po_core.training.learner import Learner
from d3po_core.training.settings import Settings
from tools.bench_memory import GIB, network_of

FAMILY, RANK, TARGETS = "SDXL, 1024 px", 16, "all linear"
UPDATES, SECONDS = 60, 2.0  # of a train step, and of the work of an update


class Busy(Learner):
    """Updates of SECONDS of work."""

    def updates_in(self, examples):
        return len(examples)

    def fit(self, examples, after_update, history, **_):
        history = [*history]
        for _ in examples:
            began, square = time.monotonic(), torch.ones(512, 512)
            while time.monotonic() - began < SECONDS:
                square @ square
            self.optimizer.step()
            self.step += 1
            history.append({"loss": 0.0})
            after_update(history)
        return history


def seconds(learner, folder):
    """Of a train step whose states are kept in a folder; None: nowhere."""
    began = time.monotonic()
    Progress(folder, "bench").fit(learner, range(UPDATES))
    return time.monotonic() - began


def main(repeats):
    network = network_of(FAMILY, torch.bfloat16, device="cpu")
    adapter = Adapter(network, rank=RANK, alpha=RANK, targets=TARGETS)
    learner = Busy(adapter, Settings())
    for weight in adapter.parameters():
        weight.grad = torch.full_like(weight, 1e-4)
    learner.optimizer.step()
    held = sum(tensor.nbytes for tensor in learner.state()[0].values()) / GIB
    ratios = []
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            kept = seconds(learner, Path(folder))
        ratios.append(kept / seconds(learner, None))
        print(f"{repeat + 1}: {ratios[-1]:.3f}", flush=True)
    print(
        f"{UPDATES} updates of {SECONDS:g} s, a state of {held:.2f} GiB: kept against not kept "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )
