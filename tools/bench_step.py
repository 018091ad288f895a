"""What an update costs besides the network, and beside a loop as D3PO's authors have it.

The floor is the bare network, forward and backward over the same batch with guidance's two halves, and
nothing else. The official style, as in the code that came with arXiv 2311.13231, takes pair by pair and step
by step: two candidates through the LoRA, through the reference, a log-ratio each, one backward pass. Rivals
run in turn in one process, on one thread; what is compared is the processor's time, so that what else runs on
the machine does not count.
"""

import itertools
import statistics
import time
from dataclasses import dataclass

import torch

from d3po_core.candidates.kernels import log_ratio
from d3po_core.candidates.preferences import Preferences
from d3po_core.candidates.trajectory import Trajectory
from d3po_core.training.adapter import Adapter
from d3po_core.training.checkpointing import OFF, ON
from d3po_core.training.loop import Example, Trainer
from d3po_core.training.losses import d3po
from d3po_core.training.memory import ALL
from d3po_core.training.settings import Settings
from tools.bench_memory import network_of
from tools.host import ROOT
from tools.lab.studio import BASE, Studio
from tools.measured import collected

DOC = ROOT / "docs" / "memory.md"
BEGIN, END = "<!-- measured: python dev.py bench step --write -->", "<!-- end of step -->"
CFG, RANK = 2.0, 8
PROMPT = "a red panda"
FULL = "SD1.5, 512 px"


@dataclass(frozen=True)
class Case:
    """A model, the steps that are sampled, and how many candidates: an update is over all pairs of these."""

    model: str
    steps: int
    candidates: int


SMALL, SMALL_SEVEN = Case("small", 6, 2), Case("small", 3, 7)
WHOLE = Case("SD1.5", 2, 2)  # the last step of a schedule is not random


def small(case):
    """(network, denoise, a Trajectory) of the small model."""
    studio = Studio(dtype=torch.float32)
    (trajectory,) = studio.record([PROMPT], [1], case.candidates, case.steps, CFG)
    return studio.network, studio.denoiser(PROMPT, CFG), trajectory


def whole(case, latent=32):
    """The same of SD1.5's network at its full size, with weights of no meaning."""
    studio, network = Studio(dtype=torch.float32), network_of(FULL, torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        fan_in = weight[0].numel() if weight.ndim > 1 else 1
        weight.copy_(torch.randn(weight.shape, generator=generator) / max(1, fan_in) ** 0.5)
    texts = torch.randn(2, 77, 768, generator=generator)
    levels = studio.model.model_sampling

    def denoise(x, sigma):
        n, shaped = len(x), sigma.view(-1, 1, 1, 1)
        both = torch.cat([x, x]) / (torch.cat([shaped, shaped]) ** 2 + 1) ** 0.5
        times = levels.timestep(sigma).float().repeat(2)
        eps, prompted = network(both, times, context=texts.repeat_interleave(n, 0)).chunk(2)
        return x - shaped * (eps + CFG * (prompted - eps))

    sigmas, kernel = studio.sigmas(10)[:: 10 // case.steps][: case.steps + 1], studio.kernel(1.0)
    x = sigmas[0] * torch.randn(case.candidates, 4, latent, latent, generator=generator)
    states, denoised = [x], []
    with torch.no_grad():
        for sigma, following in itertools.pairwise(sigmas):
            denoised.append(denoise(x, sigma.expand(len(x))))
            noise = torch.randn(x.shape, generator=generator)
            x = kernel.mean(x, denoised[-1], sigma, following) + kernel.std(sigma, following).float() * noise
            states.append(x)
    return network, denoise, Trajectory(
        states=torch.stack(states), denoised=torch.stack(denoised), sigmas=sigmas, kernel=kernel,
        set_id="whole", model=FULL, policy=BASE, settings={},
    )  # fmt: skip


class Bench:
    """An update and its rivals on one model; each method makes the gradient of one update."""

    def __init__(self, case):
        self.case = case
        self.network, self.denoise, self.trajectory = (small if case.model == "small" else whole)(case)
        self.pairs = list(itertools.combinations(range(case.candidates), 2))
        self.network.requires_grad_(False)

    def trainer(self, adapter, recorded=True, **settings):
        """A Trainer and its batch; `recorded`: the reference's x0 is the recording's."""
        made = Trainer(adapter, Settings(**settings), BASE if recorded else "another", room=lambda *_: ALL)
        if not recorded:
            made.reference.budget = 0  # computed anew in each update
        return made, [Example(Preferences(self.trajectory, tuple(self.pairs), "bench"), self.denoise)]

    def floor(self):
        """Forward and backward of every step, and nothing else."""
        for i in self.trajectory.actions:
            x, sigma = self.trajectory.states[i], self.trajectory.sigmas[i]
            self.denoise(x, sigma.expand(len(x))).square().mean().backward()

    def official(self, adapter):
        for parameter in adapter.parameters():
            parameter.grad = None
        official(self.trajectory, self.pairs, self.denoise, adapter)


def official(t, pairs, denoise, adapter):
    """Add the gradient of an update on a Trajectory as the authors' loop makes it, with their settings."""
    parts = len(pairs) * len(t.actions)
    for pair in pairs:
        for i in t.actions:
            sigma, following, ratios = t.sigmas[i], t.sigmas[i + 1], []
            for candidate in pair:
                x, after = (t.states[j, candidate : candidate + 1] for j in (i, i + 1))
                with torch.no_grad(), adapter.off():
                    reference = t.kernel.mean(x, denoise(x, sigma.to(x).expand(1)), sigma, following)
                mean = t.kernel.mean(x, denoise(x, sigma.to(x).expand(1)), sigma, following)
                ratios.append(log_ratio(after, mean, reference, t.kernel.std(sigma, following)))
            (d3po(*ratios) / parts).backward()


def compared(ours, theirs, pairs):
    """Ratios of the processor's time, ours by theirs, of runs in turn, and the median seconds of ours."""

    def seconds(run):
        began = time.process_time()
        run()
        return time.process_time() - began

    seconds(ours), seconds(theirs)
    found = [(seconds(ours), seconds(theirs)) for _ in range(pairs)]
    return [a / b for a, b in found], statistics.median(a for a, _ in found)


def rivals(case, pairs):
    """Rows of what one model's update costs."""
    bench = Bench(case)

    def row(what, against, ours, theirs):
        ratios, seconds = compared(ours, theirs, pairs)
        return {
            "model": case.model, "steps": case.steps, "candidates": case.candidates, "what": what,
            "against": against, "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
            "seconds": seconds, "pairs": pairs,
        }  # fmt: skip

    adapter = Adapter(bench.network, rank=RANK, alpha=RANK)

    def update(recorded=True, **settings):
        trainer, batch = bench.trainer(adapter, recorded, **settings)
        return lambda: trainer.update(batch)

    yield row("an update", "the floor", update(checkpointing=OFF), bench.floor)
    yield row("an update with checkpointing", "the floor", update(checkpointing=ON), bench.floor)
    ours, computed = update(), update(recorded=False)
    if case.model == "small":
        theirs = lambda: bench.official(adapter)
        yield row("the official style", "an update", theirs, ours)
        yield row("the official style", "an update that computes its reference", theirs, computed)


def main(file, write, pairs):
    torch.set_num_threads(1)
    found = (row for case in (SMALL, SMALL_SEVEN, WHOLE) for row in rivals(case, pairs))
    collected(found, table, file, (DOC, BEGIN, END) if write else None)


def table(found):
    lines = [
        "| model | steps | candidates | what | against | processor time |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(
        lines
        + [
            f"| {row['model']} | {row['steps']} | {row['candidates']} | {row['what']} | {row['against']} | "
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}) |"
            for row in found
        ]
    )
