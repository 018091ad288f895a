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
import time
from pathlib import Path

from d3po_core.training.presets import PAPER
from tools.host import ROOT
from tools.lab import hero, page
from tools.lab.artists import MODES, Artist
from tools.lab.namer import Namer
from tools.lab.results import Results, summary
from tools.lab.session import Plan
from tools.lab.studio import Studio
from tools.lab.tastes import TASTES

OUT = ROOT / "experiment_output"
PER_ROUND = 48  # labels
# the least of everything that still is a session
SMOKE = dict(
    prompts=2, sets=2, candidates=3, unjudged=2, others=1, measured=2,
    settings=dict(epochs=2, draws_per_set=1, leash=0.01),
)  # fmt: skip
# by name, how a Plan differs from the recommended
RECIPES = {
    "recommended": {},
    "picks alone": dict(unjudged=0),
    "own prompts": dict(others=0),
    "taste guidance": dict(settings=dict(method="taste guidance")),
    "taste guidance, picks alone": dict(unjudged=0, settings=dict(method="taste guidance")),
    "paper": dict(strength=PAPER, unjudged=0, replay=False),
    "HERO": dict(strength=PAPER) | hero.RECIPE,
} | {
    f"paper, {method}": dict(
        strength=PAPER, unjudged=0, replay=False, settings=dict(method=method, learning_rate=1e-3)
    )
    for method in ("D3PO", "DDPO", "DPOK", "reward-weighted", "supervised", "Diffusion-DPO")
}


def parsed(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--taste", choices=TASTES, action="append", help="default: all")
    parser.add_argument("--recipe", choices=RECIPES, default="recommended")
    parser.add_argument("--labels", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--error", type=float, default=0.0, help="share of wrong answers")
    parser.add_argument("--mode", choices=MODES, default="ranking")
    parser.add_argument("--smoke", action="store_true", help="the least of everything, to see that it runs")
    parser.add_argument("--out", default=OUT / "artists.json")
    parser.add_argument("--write", action="store_true", help="put all rows there are into docs/learning.md")
    return parser.parse_args(arguments)


def recipe(name, smoke=False):
    """How a Plan differs from the recommended, by a name of RECIPES."""
    own = RECIPES[name]
    return SMOKE | own | {"settings": own.get("settings", {}) | SMOKE["settings"]} if smoke else own


def laboratory(out, smoke=False, flow=False):
    """A function that gives (studio, namer), made when they are first wanted."""
    made = []

    def of():
        if not made:
            folder = Path(out).parent / "smoke" if smoke else OUT
            studio = Studio(flow=flow, keep=folder / "base")
            made.extend([studio, Namer(studio, folder / "namer.pt", *([2, 2] if smoke else []))])
        return made

    return of


def main(arguments):
    given = parsed(arguments)
    results, rows, began = Results(given.out), [], time.monotonic()
    rooms = laboratory(given.out, given.smoke)
    for taste in given.taste or TASTES:
        for seed in range(given.seeds):
            plan = Plan(
                taste,
                Artist(given.mode, given.error),
                rounds=max(1, given.labels // PER_ROUND),
                seed=seed,
                **recipe(given.recipe, given.smoke),
            )
            rows.append(results.session(rooms, given.recipe, plan)[-1])
    print(summary(rows))
    if given.write:
        page.write(results.rows)
    print(f"{time.monotonic() - began:.0f} s")
