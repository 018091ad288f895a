"""What a train step tells of what it did, in words and numbers."""

from ...d3po_core.candidates.judgement import cycle_in
from ...d3po_core.training.methods import METHODS
from .. import host

MOST_NAMED = 3  # sets in a line


def listed(names):
    """The first of these names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (
        f" and {more} {'other' if more == 1 else 'others'}" if more > 0 else ""
    )


def report(preferences, out, seconds):
    last, pairs = out.history[-1], sum(len(p.pairs) for p in preferences)
    kept = f", of which {len(out.history)} are kept" if len(out.history) < len(out.made) else ""
    lines = [
        f"{pairs} pairs in {len(preferences)} sets, {len(out.made)} updates{kept} ({out.step} in all), {seconds:.0f} s"
    ]
    lines += [
        f"{name}: {last[name]:.4g}"
        for name in (
            "loss",
            "margin",
            "implicit accuracy",
            "winner log-ratio",
            "loser log-ratio",
            "KL to reference",
            "clip fraction",
            "gradient norm",
        )
        if name in last
    ]
    return "\n".join(lines)


def sets_report(preferences, settings):
    """What there is to say of the judged sets themselves, in lines."""
    circles = {number: cycle for number, p in enumerate(preferences, 1) if (cycle := cycle_in(p.pairs))}
    told = [
        f"set {number} ({', '.join(f'{w + 1} over {l + 1}' for w, l in zip(cycle, cycle[1:] + cycle[:1]))})"
        for number, cycle in circles.items()
    ]
    lines = (
        [
            f"Picks of {len(circles)} of {len(preferences)} sets go round in a circle and pull against each other: "
            + listed(told)
        ]
        if circles
        else []
    )
    kept = sum(
        not p.candidates.recorded and not p.candidates.settings.get(host.EMPTY_NEGATIVE) for p in preferences
    )
    if settings.caption_dropout and kept:
        lines.append(
            f"caption_dropout: the prompt was kept in {kept} of {len(preferences)} sets, whose negative prompt is not "
            "known to be empty"
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


def held_out_report(last, preferences, held_out, before):
    known = {p.candidates.set_id for p in preferences} & {p.candidates.set_id for p in held_out}
    lines = [
        f"{name}: {last[name]:.4g}"
        for name in ("held-out accuracy", "held-out margin", "held-out KL to reference", "held-out pairs")
        if name in last
    ]
    came_in = before[-1].get("held-out accuracy", 0) if before else 0
    if came_in > last.get("held-out accuracy", came_in):
        lines.append(f"the LoRA that came in ranked held_out better: {came_in:.4g}")
    if known:
        lines.append(f"{len(known)} of the held-out sets are trained on as well, so they say little")
    return lines


def loss_map(history):
    """Every metric of a run by update, as the host's loss graph reads it; nan where one was not measured."""
    names = dict.fromkeys(name for metrics in history for name in metrics)
    return {
        name.replace(" ", "_"): [metrics.get(name, float("nan")) for metrics in history] for name in names
    }
