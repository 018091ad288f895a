"""Rows of sessions: on disk, in words, and what they come to."""

import hashlib
import json
import statistics
from dataclasses import asdict
from pathlib import Path

from d3po_core.training.presets import sized
from tools.lab import hero
from tools.lab.session import Evenings, interval

KEPT = ("objects kept", "grounds kept", "spread kept")


def stamp(recipe, plan):
    """Names a session by all that it depends on here."""
    content = json.dumps([recipe, asdict(plan)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def told(row):
    return (
        f"{row['recipe']}, {row['taste']}, seed {row['seed']}: {row['labels']} labels, {row['answers']} "
        f"answers: gain {row['gain']:+.2f} (seen {row['gain seen']:+.2f}), kept {row['objects kept']:.2f}, "
        f"grounds {row['grounds kept']:.2f}, spread {row['spread kept']:.2f}, moved {row['moved'] or 0:.2f} "
        f"({row['left'] or 1:.0%} left), taste {row['told'] or 0:.2f}, {row['updates']} updates, "
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
                "method": (sized(plan.strength, 1) | plan.settings).get("method", "D3PO"),
                "seed": plan.seed,
                "prompts": plan.prompts,
                "candidates": plan.candidates,
            }
            rows = []
            evenings = hero.Hero if recipe == "HERO" else Evenings
            for _, row in evenings(*laboratory(), plan).run():
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
        for name in ("gain", *KEPT):
            values = [row[name] for row in own]
            half = interval(values)
            parts.append(f"{name} {statistics.fmean(values):.2f}" + (f" ± {half:.2f}" if half else ""))
        lines.append(f"{own[0]['recipe']}, {taste}: {', '.join(parts)}")
    return "\n".join(lines)
