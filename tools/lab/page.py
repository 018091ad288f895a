"""docs/learning.md's table of tastes, of the rows of sessions."""

import statistics

from tools.host import ROOT
from tools.lab.results import KEPT
from tools.lab.session import interval
from tools.measured import put

DOC = ROOT / "docs" / "learning.md"
BEGIN, END = "<!-- measured: python dev.py experiment artists --write -->", "<!-- end of artists -->"
ROUNDS = (48, 96)  # labels
# in the page's order, with what each wants
WANTS = {
    "bright": "brighter pictures",
    "orange": "near to orange",
    "warm ground": "a warm ground",
    "large": "a large object",
    "compressible": "small files",
    "sharp": "sharp",
    "left": "the object on the left",
    "learned": "no rule that words could tell",
}
HEAD = (
    "| taste | sessions | gain after 48 | gain after 96 | objects kept | grounds kept | spread | moved |\n"
    "|---|---|---|---|---|---|---|---|"
)
ENOUGH = 3  # sessions, from which on an interval says something


def write(rows):
    """Put the table of rows {session: [a row a round]} into the page."""
    put(DOC, BEGIN, END, table(rows))


def table(rows):
    """A line for each taste that was measured as recommended, by rankings without errors."""
    lines = [HEAD]
    for taste, wants in WANTS.items():
        sessions = [session for session in rows.values() if _counts(session, taste)]
        if sessions:
            lines.append(f"| {taste}: {wants} | {len(sessions)} | {' | '.join(_cells(sessions))} |")
    return "\n".join(lines)


def _counts(session, taste):
    wanted = {"recipe": "recommended", "taste": taste, "mode": "ranking", "error": 0.0}
    return [row["labels"] for row in session] == list(ROUNDS) and wanted.items() <= session[0].items()


def _cells(sessions):
    """Gains as means with an interval, of what is kept the worst session, how far pictures have moved."""
    for place in range(len(ROUNDS)):
        gains = [session[place]["gain"] for session in sessions]
        half = interval(gains) if len(gains) >= ENOUGH else None
        yield f"{statistics.fmean(gains):.2f}" + (f" ± {half:.2f}" if half is not None else "")
    for name in KEPT:
        yield f"{min(session[-1][name] for session in sessions):.2f}"
    yield f"{statistics.fmean(session[-1]['moved'] for session in sessions):.2f}"
