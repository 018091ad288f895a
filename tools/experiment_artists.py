"""What simulated artists end up with: gain, what is kept, answers and seconds, session by session.

A session is a hidden taste, an artist who answers by it in the pack's own forms, and rounds of candidates,
answers and training. Held-out seeds of four prompts that were trained on and of eight that were not are
sampled with the LoRA and without.

  gain           the taste's mean over held-out prompts, LoRA less base, in standard deviations among a
                 prompt's images of the base: 1.2 means that 80% would prefer the LoRA's image
  objects kept   images whose object is still named right, as a share of the base's own; so are grounds
  spread kept    mean distance between images of a prompt, as a share of the base's
  labels         candidates that somebody looked at; answers are the keys they pressed

Rows go to experiment_output/artists.json; what is there already is not measured again.
"""

import argparse
import hashlib
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path

from d3po_core.training.presets import PAPER, sized
from tools.host import ROOT
from tools.lab.artists import MODES, Artist
from tools.lab.namer import Namer
from tools.lab.session import Evenings, Plan
from tools.lab.studio import Studio
from tools.lab.tastes import TASTES

OUT = ROOT / "experiment_output"
PER_ROUND = 36  # labels
# the least of everything that still is a session
SMOKE = dict(
    prompts=2, sets=2, candidates=3, unjudged=2, others=1, measured=2, settings=dict(epochs=2, leash=0.01)
)  # fmt: skip
# by name, how a Plan differs from the recommended
RECIPES = {
    "recommended": {},
    "picks alone": dict(unjudged=0),
    "own prompts": dict(others=0),
    "paper": dict(strength=PAPER, unjudged=0, replay=False),
}


def stamp(recipe, plan):
    """Names a session by all that it depends on here."""
    content = json.dumps([recipe, asdict(plan)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def told(row):
    return (
        f"{row['recipe']}, {row['taste']}, seed {row['seed']}: {row['labels']} labels, {row['answers']} "
        f"answers: gain {row['gain']:+.2f} (seen {row['gain seen']:+.2f}), kept {row['objects kept']:.2f}, "
        f"grounds {row['grounds kept']:.2f}, spread {row['spread kept']:.2f}, moved {row['moved'] or 0:.2f} "
        f"({row['left']:.0%} left), taste {row['told'] or 0:.2f}, {row['updates']} updates, "
        f"{row['seconds']:.0f} s"
    )


class Results:
    """Rows of sessions by name, on disk."""

    def __init__(self, file):
        self.file = Path(file)
        self.rows = json.loads(self.file.read_text()) if self.file.exists() else {}

    def session(self, laboratory, recipe, plan):
        """A row after each round of a session; from disk where it is there."""
        name = stamp(recipe, plan)
        if name not in self.rows:
            about = {
                "recipe": recipe,
                "taste": plan.taste,
                "error": plan.artist.error,
                "mode": plan.artist.mode,
                "method": sized(plan.strength, 1).get("method", "D3PO"),
                "seed": plan.seed,
            }
            rows = []
            for _, row in Evenings(*laboratory(), plan).run():
                rows.append(about | row)
                print(told(rows[-1]), flush=True)
            self.rows[name] = rows
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.rows, indent=1))
        return self.rows[name]


def summary(rows):
    """Means over sessions' last rounds, with 95% intervals over seeds."""
    lines = []
    for taste in dict.fromkeys(row["taste"] for row in rows):
        own = [row for row in rows if row["taste"] == taste]
        parts = []
        for name in ("gain", "objects kept", "grounds kept", "spread kept"):
            values = [row[name] for row in own]
            half = interval(values)
            parts.append(f"{name} {statistics.fmean(values):.2f}" + (f" ± {half:.2f}" if half else ""))
        lines.append(f"{own[0]['recipe']}, {taste}: {', '.join(parts)}")
    return "\n".join(lines)


def interval(values):
    """Half of a mean's 95% interval, by Student's t; None for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def parsed(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--taste", choices=TASTES, action="append", help="default: all")
    parser.add_argument("--recipe", choices=RECIPES, default="recommended")
    parser.add_argument("--labels", type=int, default=108)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--error", type=float, default=0.0, help="share of wrong answers")
    parser.add_argument("--mode", choices=MODES, default="ranking")
    parser.add_argument("--smoke", action="store_true", help="the least of everything, to see that it runs")
    parser.add_argument("--out", default=OUT / "artists.json")
    return parser.parse_args(arguments)


def main(arguments):
    given = parsed(arguments)
    made = []

    def laboratory():
        if not made:
            studio = Studio()
            small = [Path(given.out).with_name("smoke_namer.pt"), 8, 2]
            made.extend([studio, Namer(studio, *(small if given.smoke else [OUT / "namer.pt"]))])
        return made

    results, rows, began = Results(given.out), [], time.monotonic()
    for taste in given.taste or TASTES:
        for seed in range(given.seeds):
            plan = Plan(
                taste,
                Artist(given.mode, given.error),
                rounds=max(1, given.labels // PER_ROUND),
                seed=seed,
                **RECIPES[given.recipe] | (SMOKE if given.smoke else {}),
            )
            rows.append(results.session(laboratory, given.recipe, plan)[-1])
    print(summary(rows))
    print(f"{time.monotonic() - began:.0f} s")
