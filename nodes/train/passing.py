"""Rounds and sets of which nothing is learned: all ties, none is good, or the LoRA has gone far enough.

They are no error.
"""

from dataclasses import replace

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ...d3po_core.training.loop import require_kind
from ...d3po_core.training.methods import METHODS
from ...d3po_core.training.monitor import kl_above
from ..library import file_of, with_lora
from ..types import TrainedLora
from .report import named
from .results import ended_early


def passed_over(preferences, method):
    """Those of the judged sets that a method has nothing to learn from."""
    return [p for p in preferences if not METHODS[method].taking_part(p)]


def why_nothing(preferences, method, stop_kl, history):
    """Why a train step makes no update, as a clause; "" where it does.

    history is earlier history whose KL is to the same reference.

    Raises ValueError where the method could not learn from such candidates, whatever is said of them.
    """
    if len(passed_over(preferences, method)) == len(preferences):
        require_kind(method, [p.candidates for p in preferences])
        return f"{METHODS[method].wanted} ({named(preferences)})"
    if kl := kl_above(stop_kl, history):
        return (
            f"KL to reference is {kl:.3g} already, above stop_kl {stop_kl:g}: the LoRA has gone as far from "
            "the model as stop_kl allows. Look at its pictures, then raise stop_kl or start a new run"
        )
    return ""


def round_of_nothing(model, start, settings, round_, why, losses, stopped):
    """A train step's output where nothing is learned: the LoRA as it came in, and a round without an update.

    losses is the loss map so far; stopped says why there will be no further update, "" where there may be.
    """
    state = replace(
        start, settings=start.settings if start.step else settings, rounds=start.rounds + [round_]
    )
    next_ = (
        "Save Run keeps the round, and the next Run shows new candidates"
        if start.home
        else "Change the sampler's seed for new candidates"
    )
    text = f"Nothing was learned in this round: {why}. The LoRA is as it came in. {next_}"
    return io.NodeOutput(
        with_lora(model, state),
        TrainedLora(file_of(state) if state.step else {}, state),
        losses if start.history else ExecutionBlocker(None),
        state.step,
        text,
        ui={"text": [text], "warnings": [text], "figures": [{}]} | ended_early(stopped),
    )
