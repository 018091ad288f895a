"""What a train step tells of what it did: figures as data, and the words that are written of them."""

import math

from ...d3po_core.candidates.judgement import cycle_in
from ...d3po_core.training import metrics
from ...d3po_core.training.methods import METHODS
from .. import host

MOST_NAMED = 3  # sets in a line
TRAINED = (*metrics.SHOWN, metrics.MOVED, metrics.CLIP_FRACTION, metrics.GRADIENT_NORM)
HELD_OUT = (
    metrics.HELD_OUT_ACCURACY,
    metrics.HELD_OUT_MARGIN,
    metrics.HELD_OUT_KL,
    metrics.HELD_OUT_PAIRS,
)


def listed(names):
    """The first of these names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (
        f" and {more} {'other' if more == 1 else 'others'}" if more > 0 else ""
    )


def figures_of(preferences, out, seconds):
    """{name: number} of all that the report says of this train step in numbers.

    "updates" were made, of which "kept" led to the LoRA. "step" counts the run's updates. The metrics are
    those of the last update that is kept.
    """
    last = out.history[-1]
    return {
        "pairs": sum(len(p.pairs) for p in preferences),
        "sets": len(preferences),
        "updates": len(out.made),
        "kept": len(out.history),
        "step": out.step,
        "seconds": seconds,
    } | {name: last[name] for name in (*TRAINED, *HELD_OUT) if name in last}


def as_data(figures):
    """Figures as every reader of JSON takes them: null for what is not a finite number."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def report(figures):
    made = f"{figures['updates']} updates"
    if figures["kept"] < figures["updates"]:
        made += f", of which {figures['kept']} are kept"
    first = (
        f"{figures['pairs']} pairs in {figures['sets']} sets, {made} ({figures['step']} in all), "
        f"{figures['seconds']:.0f} s"
    )
    return "\n".join([first, *lines_of(figures, TRAINED)])


def lines_of(figures, names):
    return [f"{name}: {figures[name]:.4g}" for name in names if name in figures]


def sets_report(preferences, settings):
    """What there is to say of the judged sets themselves, in lines."""
    circles = {number: cycle for number, p in enumerate(preferences, 1) if (cycle := cycle_in(p.pairs))}
    descriptions = [
        f"set {number} ({', '.join(f'{w + 1} over {l + 1}' for w, l in zip(cycle, cycle[1:] + cycle[:1]))})"
        for number, cycle in circles.items()
    ]
    lines = (
        [
            f"Picks of {len(circles)} of {len(preferences)} sets go round in a circle and pull against "
            "each other: " + listed(descriptions)
        ]
        if circles
        else []
    )
    kept = sum(
        not p.candidates.recorded and not p.candidates.settings.get(host.EMPTY_NEGATIVE) for p in preferences
    )
    if settings.caption_dropout and kept:
        lines.append(
            f"caption_dropout: the prompt was kept in {kept} of {len(preferences)} sets, whose negative "
            "prompt is not known to be empty"
        )
    return lines


def passed_over_report(passed, preferences, settings):
    """What there is to say of sets that a method has nothing to learn from, in lines."""
    if not passed:
        return []
    verb = "was" if len(passed) == 1 else "were"
    return [
        f"{len(passed)} of {len(preferences)} sets {verb} passed over: {METHODS[settings['method']].wanted} "
        f"({named(passed)})"
    ]


def named(preferences):
    """The judged sets' names."""
    return "set " + listed([p.candidates.set_id for p in preferences])


def held_out_report(figures, preferences, held_out, before):
    known = {p.candidates.set_id for p in preferences} & {p.candidates.set_id for p in held_out}
    lines = lines_of(figures, HELD_OUT)
    came_in = before[-1].get(metrics.HELD_OUT_ACCURACY, 0) if before else 0
    if came_in > figures.get(metrics.HELD_OUT_ACCURACY, came_in):
        lines.append(f"the LoRA that came in ranked held_out better: {came_in:.4g}")
    if known:
        lines.append(f"{len(known)} of the held-out sets are trained on as well, so they say little")
    return lines


def loss_map(history):
    """Every metric of a run by update, as the host's loss graph reads it; nan where one was not measured."""
    names = dict.fromkeys(name for update in history for name in update)
    return {name.replace(" ", "_"): [update.get(name, float("nan")) for update in history] for name in names}
