"""What several processes gain: recording and training of d3po_objective_loop by one process and by two, of a
thread each, in turn; and what they have to tell each other on larger models.

Training is D3PO with the paper's settings, which has no leash: how often that looks at pictures differs from
round to round.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch

from d3po_core.training.adapter import Adapter
from tools.bench_memory import FAMILIES, network_of
from tools.host import ROOT
from tools.measured import put

DOC = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- measured: python dev.py bench ranks --write -->", "<!-- end of ranks -->"
WORKFLOW = ROOT / "example_workflows" / "d3po_objective_loop.json"
SET = {
    "D3POPrompts.count": 4, "D3POKSampler.candidates": 3, "D3POKSampler.steps": 9,
    "D3POTrainStep.strength": "paper", "D3POTrainStep.method": "D3PO",
    "D3POTrainStep.epochs": 1,
}  # fmt: skip
STAGES = {"recording": "D3PO KSampler (Recording)", "training": "D3PO LoRA Train Step"}
ROUNDS = 4  # of a session
RANK, BYTES = 16, 4  # of the counted LoRAs; a gradient's number
NETWORK, CARD = 1.1e9, 60e12  # bytes a second of 10 Gbit/s; operations a second that a card gets done
WORK = {"SD1.5, 512 px": 3e12, "SDXL, 1024 px": 35e12, "Flux dev, 1024 px": 168e12}  # a pass: docs/memory.md
CANDIDATES = 4  # of a pass


def seconds_of(processes, rounds):
    """{stage: seconds in each round} of a session."""
    several = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m")
    settings = [part for name, value in SET.items() for part in ("--set", f"{name}={value}")]
    with tempfile.TemporaryDirectory() as base:
        process = subprocess.Popen(
            [sys.executable, "-m", *(several if processes > 1 else ()), "tools.run", WORKFLOW,
             "--base", base, "--rounds", str(rounds), *settings],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        found, at_work = {stage: [] for stage in STAGES}, None
        for line in process.stdout:
            now = time.monotonic()
            if line.startswith("    "):
                continue
            if at_work:
                found[at_work[0]].append(now - at_work[1])
            at_work = next(((stage, now) for stage, title in STAGES.items() if line == f"  {title}\n"), None)
        if process.wait():
            raise SystemExit(f"dev.py run ended with {process.returncode}")
    return found


def throughput(sessions):
    """Lines of a table: how many times as fast two are as one."""
    times = {stage: [] for stage in STAGES}
    for _ in range(sessions):
        one, two = seconds_of(1, ROUNDS), seconds_of(2, ROUNDS)
        for stage in STAGES:
            times[stage] += zip(one[stage][1:], two[stage][1:], strict=True)  # the first round warms up
            print(stage, *(f"{a:.1f}/{b:.1f}" for a, b in times[stage]), flush=True)
    yield "| | one process | two | times as fast |"
    yield "|---|---|---|---|"
    for stage, found in times.items():
        ratios = [a / b for a, b in found]
        yield (
            f"| {stage} | {statistics.median(a for a, _ in found):.1f} s | "
            f"{statistics.median(b for _, b in found):.1f} s | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


def communication():
    """Lines of a table: what goes over the network at each update, by the size of the LoRA."""
    yield "| LoRA of rank 16, attention | weights | an update sends | 8 cards | 64 cards |"
    yield "|---|---|---|---|---|"
    for family, work in WORK.items():
        network = network_of(family, torch.bfloat16)
        adapter = Adapter(network, rank=RANK, alpha=RANK, targets="attention", device="meta")
        weights = sum(p.numel() for p in adapter.parameters())
        shares = [f"{efficiency(weights, work, cards):.0%}" for cards in (8, 64)]
        sent = 2 * weights * BYTES / 1e6
        yield f"| {family} | {weights / 1e6:.1f} M | {sent:.0f} MB | {shares[0]} | {shares[1]} |"


def efficiency(weights, work, cards, sets_per_card=1):
    """Share of the time that cards compute where each takes `sets_per_card` sets of an update: a ring sends
    2 (cards - 1) / cards times the gradient, one after another with the passes."""
    sending = 2 * (cards - 1) / cards * weights * BYTES / NETWORK
    computing = sets_per_card * CANDIDATES * work / CARD
    return computing / (computing + sending)


def main(sessions, write):
    assert set(WORK) <= set(FAMILIES)
    tables = "\n\n".join("\n".join(lines) for lines in (throughput(sessions), communication()))
    print(tables)
    if write:
        put(DOC, BEGIN, END, tables)
