"""What the page is told of a train step while it learns, and its button that ends the learning.

Browsers are told "d3po.learning" after updates, at most every PACE seconds, and once more when it has ended:

    {"prompt_id", "node", "workflow", "stage": one of STAGES, "words", "curves": {metric: [number or null]},
     "pictures": null or {"before": [file], "now": [file], "prompts": [text]}, as /view has files}

    POST /d3po/enough  {"prompt_id", "node"}: training ends after the update that is being made
"""

import math
import threading
import time
from contextlib import contextmanager

from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...d3po_core.taste.features import evenly
from ...d3po_core.training import metrics
from ...d3po_core.training.learner import SHIFT_OF_LEASH
from .. import routes
from .report import as_data

STAGES = LEARNING, LOOKING, DONE = "learning", "looking", "done"
LEASH = "share of the leash"  # that pictures have moved by; where none were sampled, predictions
SHOWN = (
    metrics.ACCURACY,
    metrics.HELD_OUT_ACCURACY,
    metrics.MARGIN,
    metrics.SCORE,
    metrics.GAIN,
    metrics.FIDELITY,
    metrics.KL,
    LEASH,
)
MOST_POINTS = 100  # of a curve
PACE = 0.5  # seconds between two drawings of the curves: a page that draws more often becomes slow to use

_lock = threading.Lock()
_learning = {}  # (prompt id, execution id of the node) -> Live


class Live:
    """A train step that learns, on a leash (0: none). `enough` says whether somebody asked it to end."""

    def __init__(self, workflow, leash):
        context = get_executing_context()
        self.about = {"prompt_id": context.prompt_id, "node": context.node_id, "workflow": workflow}
        self.leash, self.total, self.resumed, self.enough, self.history = leash, 0, 0, False, []
        self.told, self.pictures = -math.inf, None

    @property
    def key(self):
        return self.about["prompt_id"], self.about["node"]

    def begin(self, total, resumed):
        """Of so many updates so many have been made before, and the others follow now."""
        self.total, self.resumed, self.began = total, resumed, time.monotonic()

    def updated(self, history):
        """Tell of the last update, where its time has come; history are the metrics of all."""
        self.history = history
        if time.monotonic() - self.told >= PACE or len(history) == self.total:
            self.told = time.monotonic()
            self.tell(LEARNING)

    def tell(self, stage):
        event = {"stage": stage, "words": self.words(stage), "curves": self.curves()}
        event |= self.about | {"pictures": self.pictures}
        PromptServer.instance.send_sync("d3po.learning", event)

    def words(self, stage):
        """Where training is, in a line."""
        made = len(self.history)
        if stage == LOOKING:
            return "looking at what pictures have become" if made else "looking at pictures before it learns"
        if stage == DONE:
            return f"ended after update {made} of {self.total}"
        each = (time.monotonic() - self.began) / max(1, made - self.resumed)
        left = f", {duration(each * (self.total - made))} left" if made < self.total else ""
        return f"update {made} of {self.total}{left}"

    def ended_early(self):
        """That somebody asked for the end, in words; "" where nobody did."""
        return f"ended after update {len(self.history)}, as you asked" if self.enough else ""

    def curves(self):
        """Each of SHOWN that is measured, at most MOST_POINTS of it, the last one among them."""
        points = [
            as_data(self.shown(p)) for p in evenly(self.history[:-1], MOST_POINTS - 1) + self.history[-1:]
        ]
        found = [name for name in SHOWN if any(name in point for point in points)]
        return {name: [point.get(name) for point in points] for name in found}

    def shown(self, figures):
        """An update's figures, with how much of the leash is used."""
        if not self.leash:
            return figures
        if metrics.MOVED in figures:
            return figures | {LEASH: figures[metrics.MOVED] / self.leash}
        if metrics.SHIFT in figures:
            return figures | {LEASH: math.sqrt(figures[metrics.SHIFT] / SHIFT_OF_LEASH) / self.leash}
        return figures


def duration(seconds):
    """Seconds in words, as exact as they are worth saying."""
    if seconds < 55:
        return f"{max(1, round(seconds / 5)) * 5} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def learning(workflow, leash):
    """A Live that the page can end inside the `with`, and that is told to have ended in every case."""
    live = Live(workflow, leash)
    with _lock:
        _learning[live.key] = live
    try:
        yield live
    finally:
        with _lock:
            del _learning[live.key]
        live.tell(DONE)


def end(body):
    """End the train step that a request names, after its update. Raises routes.Refused."""
    key = tuple(routes.texts_in(body, "prompt_id", "node"))
    with _lock:
        live = _learning.get(key)
        if live is None:
            raise routes.Refused(404, "nothing is training there: it has ended, or never began")
        live.enough = True


@PromptServer.instance.routes.post("/d3po/enough")
@routes.answering
async def post_enough(body):
    end(body)
    return {"ending": True}
