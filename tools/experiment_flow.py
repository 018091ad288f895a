"""What a round of the objective loop gains on the epsilon model and on the flow model, with the same prompts.

The round is that of the template d3po_objective_loop: six candidates for each of six prompts, of which the
objective prefers one of any two, and the strength `recommended`. Gain and what is kept are those of the
experiment `artists`, each by its own base model. Rows go to experiment_output/flow.json, as there.
"""

import argparse
import statistics
import time

from tools.experiment_artists import OUT, SMOKE, laboratory
from tools.lab.results import KEPT, Results
from tools.lab.session import Plan, interval

MODELS = ("epsilon", "flow")
OBJECTIVES = ("bright", "compressible")
LOOP = dict(sets=6, candidates=6, unjudged=0, measured=4)
FIGURES = ("gain", "gain seen", *KEPT, "moved", "left")


def mean(values):
    """In words, with its 95% interval."""
    half = interval(values)
    return f"{statistics.fmean(values):.2f}" + (f" ± {half:.2f}" if half else "")


def summary(rows):
    """Means over seeds, and over the pairs of how much more flow has. rows: by (objective, model), a row a
    seed."""
    lines = []
    for objective in OBJECTIVES:
        of_models = [rows[objective, model] for model in MODELS]
        for model, own in zip(MODELS, of_models):
            parts = [f"{name} {mean([row[name] for row in own])}" for name in FIGURES]
            lines.append(f"{objective}, {model}: {', '.join(parts)}")
        more = [flow["gain"] - epsilon["gain"] for epsilon, flow in zip(*of_models)]
        lines.append(f"{objective}, flow less epsilon: gain {mean(more)}")
    return "\n".join(lines)


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="the least of everything, to see that it runs")
    parser.add_argument("--out", default=OUT / "flow.json")
    given = parser.parse_args(arguments)
    results, began = Results(given.out), time.monotonic()
    rooms = {model: laboratory(given.out, given.smoke, model == "flow") for model in MODELS}
    rows = {(objective, model): [] for objective in OBJECTIVES for model in MODELS}
    for seed in range(given.seeds):
        for objective, model in rows:
            plan = Plan(objective, seed=seed, **LOOP | (SMOKE | dict(unjudged=0) if given.smoke else {}))
            done = results.session(rooms[model], f"objective loop, {model}", plan)
            rows[objective, model].append(done[-1])
    print(summary(rows))
    print(f"{time.monotonic() - began:.0f} s")
