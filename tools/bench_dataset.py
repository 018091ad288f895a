"""What a large preference dataset costs: to open, to look over, and to train from.

10,000 sets, or as many as are asked for, are entered into the index with five judgements each (their files
are not there, and nothing here may need them). The two halves of it are merged. 600 more sets of 4 candidates
and 20 steps at 64 x 64 latents are written whole, and a tiny adapter trains from them.
"""

import json
import os
import shutil
import statistics
import time

import psutil
import torch
from torch import nn

from d3po_core.candidates.judgement import Judgement
from d3po_core.candidates.kernels import Ancestral
from d3po_core.candidates.preferences import Preferences
from d3po_core.candidates.trajectory import Trajectory
from d3po_core.dataset.merging import merged
from d3po_core.dataset.sets import share
from d3po_core.dataset.store import Dataset
from tools.host import ROOT
from tools.launch_host import mend_torchaudio, mend_torchvision, torch_is_cpu_build

if torch_is_cpu_build():  # else PEFT may not import
    mend_torchvision()
    mend_torchaudio()
from d3po_core.training.adapter import Adapter
from d3po_core.training.loop import Example, Settings, Trainer

CANDIDATES, STEPS, SHAPE = 4, 20, (4, 64, 64)
JUDGES = ("ann", "ben", "cem", "dia", "eli")


class Mixer(nn.Module):
    """Just enough of a network to train: one attention-like layer over the channels."""

    def __init__(self):
        super().__init__()
        self.attn1 = nn.ModuleDict({"to_q": nn.Linear(SHAPE[0], SHAPE[0])})

    def forward(self, x):
        return self.attn1["to_q"](x.movedim(1, -1)).movedim(-1, 1)


def enter(index, numbers):
    """Rows of sets, images and judgements, without their files."""
    for i in numbers:
        name = f"bench {i:06}"
        index.execute(
            "INSERT INTO sets VALUES (?, '2026-01-01T00:00:00.000000+00:00', ?, ?, 'a prompt', 'base', "
            "'base', '{}', NULL, ?, 1000)",
            [name, share(name), CANDIDATES, f"sets/aa/{i}.safetensors"],
        )
        index.executemany(
            "INSERT INTO images VALUES (?, ?, ?, 10)",
            [(name, j, f"images/aa/{i}-{j}.png") for j in range(CANDIDATES)],
        )
        for who in JUDGES:
            index.execute(
                "INSERT INTO judgements "
                "(set_id, annotator, judgement, finished, pairs, strict, ties, time, tool) "
                "VALUES (?, ?, ?, 1, ?, 3, 0, '2026-01-02T00:00:00.000000+00:00', 'bench')",
                [name, who, json.dumps({"ranking": [0, [1, 2, 3]]}), json.dumps([[0, 1], [0, 2], [0, 3]])],
            )


def recorded(i):
    generator = torch.Generator().manual_seed(i)
    states = torch.randn(STEPS + 1, CANDIDATES, *SHAPE, generator=generator)
    sigmas = torch.linspace(10, 0, STEPS + 1)
    return Trajectory(states, states[1:].clone(), sigmas, Ancestral(1.0), f"set {i}", "base", "base")


def timed(name, work, repeats=5):
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    print(
        f"{name}: {1000 * statistics.median(times):.1f} ms "
        f"(largest of {repeats}: {1000 * max(times):.1f} ms)",
        flush=True,
    )


def resident():
    return psutil.Process(os.getpid()).memory_info().rss / 2**20


def train(dataset, rows):
    """Train on sets as they lie on disk, `len(rows)` updates: resident memory in MB after each."""
    network = Mixer()
    adapter = Adapter(network, rank=2, alpha=2.0, targets="attention", seed=0)
    trainer = Trainer(adapter, Settings(step_fraction=0.2, reference="base"))
    trainer.reference.budget = (
        2**24
    )  # bytes of computed references that are kept; full long before the first look
    denoise = lambda x, sigma: x - sigma[:, None, None, None] * network(x)
    used = []
    examples = [
        Example(Preferences(dataset.trajectory(row.id), tuple(dataset.pairs(row.id))), denoise)
        for row in rows
    ]
    for example in examples:
        trainer.update([example])
        used.append(resident())
    return used


def join(halves, folder):
    """Merge two halves of a dataset, and hold the whole against them."""
    began = time.perf_counter()
    whole = merged(halves, folder)
    seconds, held = time.perf_counter() - began, [0, 0]
    for half in halves:
        with Dataset(half, create=False) as dataset:
            counted = dataset.statistics()
            held = [held[0] + counted["sets"], held[1] + counted["judgements"]]
    assert [*whole] == held, (whole, held)
    print(f"merged its two halves, {whole.sets} sets and {whole.judgements} judgements: {seconds:.1f} s")


def measure(sets, indexed):
    folder = ROOT / "bench_output" / "dataset"
    halves = [folder.with_name(f"half {i}") for i in range(2)]
    for place in (folder, *halves):
        shutil.rmtree(place, ignore_errors=True)
    for half, numbers in zip(halves, (range(0, indexed, 2), range(1, indexed, 2))):
        with Dataset(half) as dataset:
            dataset._index.write(lambda index: enter(index, numbers))
    join(halves, folder)
    for half in halves:
        shutil.rmtree(half)
    timed(f"open the dataset of {indexed} sets", lambda: Dataset(folder, create=False).close())
    with Dataset(folder, create=False) as dataset:
        timed("its statistics", dataset.statistics)
        timed("all of its sets, as rows", dataset.sets)
        timed("its sets for training", lambda: dataset.sets(split="train", judged=True))
        names = [row.id for row in dataset.sets(limit=1000)]
        timed("what was said of 1000 sets", lambda: [dataset.pairs(name) for name in names])
        timed(
            "20 sets that one annotator has not judged",
            lambda: dataset.sets(judged=False, annotator="zoe", limit=20),
        )
        timed("what the sidebar lists of it", lambda: dataset.overview("ann"))
        timed("the newest page to look through", lambda: dataset.browse("ann"))
        timed("a page by prompt", lambda: dataset.browse("ann", search="prompt"))
        size = recorded(0).states.nbytes * 2 / 2**20
        for i in range(sets):
            dataset.add_set(f"set {i}", trajectory=recorded(i))
            dataset.judge(f"set {i}", Judgement.parse({"ranking": [0, 1, 2, 3]}, CANDIDATES), "ann")
        rows = [row for row in dataset.sets(judged=True, annotator="ann") if row.id.startswith("set ")]
        used = train(dataset, rows)
        early, late = statistics.median(used[20:40]), statistics.median(used[-20:])
        print(
            f"training from {sets} sets of {size:.0f} MB each ({sets * size / 1024:.1f} GB): "
            f"resident memory {early:.0f} MB "
            f"after 30 updates, {late:.0f} MB at the end: {late / early:.2f} times",
            flush=True,
        )
    shutil.rmtree(folder)
