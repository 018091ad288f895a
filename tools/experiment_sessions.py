"""Sessions drawn at random: whatever the taste, the prompts, the errors and the way of asking, pictures stay
whole and no session makes them worse.

Everything that the strength `recommended` decides is as artists have it. A session is measured at its end.
Rows go to experiment_output/sessions.json, as those of the experiment `artists`.
"""

import argparse
import math
import time
from dataclasses import replace

from tools.experiment_artists import OUT, SMOKE, laboratory
from tools.lab.artists import MODES, Artist, chance
from tools.lab.results import KEPT, Results
from tools.lab.session import Plan
from tools.lab.tastes import TASTES

ROUNDS = (1, 1, 1, 2, 2, 2, 3, 4, 6, 10)  # each as probable
PROMPTS, SETS, CANDIDATES = 48, 12, (2, 8)
ERRORS = (0.0, 0.1, 0.2)
MEASURED = 12  # pictures of each prompt
WHOLE = 0.95


def drawn(number):
    """(recipe, Plan) of a session: half of them with further candidates that a taste judges."""
    rng = chance("session", number)
    prompts = round(math.exp(rng.uniform(0, math.log(PROMPTS))))
    by_taste = rng.random() < 0.5
    return "recommended" if by_taste else "picks alone", Plan(
        taste=rng.choice(sorted(TASTES)),
        artist=Artist(rng.choice(MODES), rng.choice(ERRORS), blur=rng.choice((0.0, 0.3))),
        prompts=prompts,
        sets=min(prompts, SETS),
        candidates=rng.randint(*CANDIDATES),
        rounds=rng.choice(ROUNDS),
        measured=MEASURED,
        only_last=True,
        seed=number,
        **({} if by_taste else {"unjudged": 0}),
    )


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first session")
    parser.add_argument("--smoke", action="store_true", help="the least of everything, to see that it runs")
    parser.add_argument("--out", default=OUT / "sessions.json")
    given = parser.parse_args(arguments)
    results, rooms, began = Results(given.out), laboratory(given.out, given.smoke), time.monotonic()
    rows = []
    for number in range(given.first, given.first + given.count):
        recipe, plan = drawn(number)
        if given.smoke:
            plan = replace(plan, rounds=1, **SMOKE)
        rows.append(results.session(rooms, recipe, plan)[-1])
    print(summary(rows))
    print(f"{time.monotonic() - began:.0f} s")


def summary(rows):
    broken = [row for row in rows if min(row[name] for name in KEPT[:2]) < WHOLE]
    worse = [row for row in rows if row["gain"] + row["gain half"] < 0]
    lines = [
        f"{len(rows)} sessions: mean gain {sum(row['gain'] for row in rows) / len(rows):.2f}, lowest "
        f"{min(row['gain'] for row in rows):.2f}; least kept: "
        + ", ".join(f"{name.removesuffix(' kept')} {min(row[name] for row in rows):.2f}" for name in KEPT)
    ]
    for told, found in (("broken", broken), ("worse", worse)):
        lines.append(f"{told}: {len(found)}")
        lines += [f"  session {row['seed']}, {row['taste']}" for row in found]
    return "\n".join(lines)
