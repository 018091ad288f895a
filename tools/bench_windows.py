"""What a window of a recording's steps costs to train on, and what it does to learning.

The small model in this process. Each seed has prompts of its own; every window's recordings are judged by
brightness and trained on by D3PO in one pass with the same settings. The gain is in standard deviations among
a prompt's candidates, over held-out seeds.
"""

import dataclasses
import statistics
import time

from d3po_core.candidates.judgement import pairs_from_scores
from d3po_core.candidates.preferences import Preferences
from d3po_core.training.loop import Example, Settings, Trainer
from tools.experiment_artists import laboratory
from tools.host import ROOT
from tools.lab.artists import chance
from tools.lab.session import CFG, PROMPTS, STEPS, Measure, interval
from tools.lab.tastes import TASTES
from tools.model_pictures import caption

DOC = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- measured: python dev.py bench windows --write -->", "<!-- end of windows -->"
WINDOWS = {"all steps": None} | {
    f"{count} from step {first} on": (first, count)
    for count, first in ((2, 0), (2, 2), (2, 4), (2, 7), (4, 2))
}
SETS, CANDIDATES, TASTE = 12, 4, "bright"
SETTINGS = Settings(
    learning_rate=1.5e-3, beta=100.0, clip=0.0, weighting="standardised", sets_per_update=2, epochs=1
)


def trained(studio, measure, prompts, seed, window):
    """(seconds of training, gain, share of what a whole recording keeps)"""
    recorded = studio.record(
        [caption(*p) for p in prompts],
        [1000 * seed + i for i in range(len(prompts))],
        CANDIDATES,
        STEPS,
        CFG,
        window=window,
    )
    judged = []
    for trajectory in recorded:
        scores = TASTES[TASTE](studio.pictures(trajectory.finished))
        preferences = Preferences(trajectory, tuple(pairs_from_scores(scores[:, None])))
        judged.append(Example(preferences, studio.denoiser(trajectory.settings["prompt"], CFG)))
    with studio.adapter(rank=8, alpha=8.0, targets="all linear", seed=seed) as adapter:
        trainer = Trainer(adapter, dataclasses.replace(SETTINGS, seed=seed), "base")
        began = time.monotonic()
        trainer.fit(judged)
        seconds = time.monotonic() - began
        kept = len(recorded[0].states) + len(recorded[0].denoised) + (window is not None)
        return seconds, measure.figures()[1]["gain"], kept / (2 * STEPS + 1)


def main(seeds=3, write=False):
    studio, namer = laboratory(ROOT / "experiment_output" / "artists.json")()
    found = {name: [] for name in WINDOWS}
    for seed in range(seeds):
        order = chance("windows", seed).sample(PROMPTS, len(PROMPTS))
        measure = Measure(studio, namer, order[: SETS + 8][-12:], TASTE)
        for name, window in WINDOWS.items():
            found[name].append(trained(studio, measure, order[:SETS], seed, window))
            print(name, *(f"{value:.2f}" for value in found[name][-1]), flush=True)
    lines = ["| random steps, of 10 | seconds of training | kept on disk | gain |", "|---|---|---|---|"]
    for name, rows in found.items():
        ratios = [row[0] / whole[0] for row, whole in zip(rows, found["all steps"])]
        gains, half = [row[1] for row in rows], interval([row[1] for row in rows])
        told = f"{statistics.fmean(gains):.2f}" + (f" ± {half:.2f}" if half else "")
        lines.append(f"| {name} | {statistics.median(ratios):.2f} | {rows[0][2]:.2f} | {told} |")
    table = "\n".join(lines)
    print(table)
    if write:
        text = DOC.read_text("utf-8")
        before, _, rest = text.partition(BEGIN)
        DOC.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", "utf-8")
