"""The runs on disk at a glance, and what can be done with one."""

import time
from datetime import datetime

from comfy_api.latest import io
from server import PromptServer

from ..d3po_core.runs import store
from .library import runs_root
from .routes import answering, in_thread, texts_in
from .run_actions import Unconfirmed, branch_run, delete_run, take_back_round
from .types import CATEGORY

UNDO = "undo last round"


class D3POManageRuns(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POManageRuns",
            display_name="D3PO Manage Runs",
            category=CATEGORY,
            search_aliases=["list runs", "branch run", "copy run", "delete run", "checkpoints"],
            description=(
                "Lists the runs in output/d3po/runs with their checkpoints, starts a new run from a "
                "checkpoint of another, deletes a run, or takes back a run's last round."
            ),
            inputs=[
                io.Combo.Input(
                    "action",
                    options=["list", "branch", "delete", UNDO],
                    default="list",
                    tooltip="branch: start new_name as a copy of run at a checkpoint; run stays as it is. "
                    "delete: remove run and its copy in Load LoRA's list, for good. undo last round: put run "
                    "back to where its last round began.",
                ),
                io.String.Input(
                    "run", default="", optional=True, tooltip="The run that the action is about."
                ),
                io.String.Input(
                    "new_name",
                    default="",
                    optional=True,
                    tooltip="Name of the run that a branch starts. It must not exist yet.",
                ),
                io.String.Input(
                    "checkpoint",
                    default=store.LATEST,
                    optional=True,
                    tooltip="Where to branch: latest, best (on held-out preferences) or a number of steps "
                    "from the list.",
                ),
                io.String.Input(
                    "confirm",
                    default="",
                    optional=True,
                    tooltip="To delete a run, write its name and its steps here, as in: my run 12.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="All runs after the action, a line for each.")
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_):
        return time.time_ns()  # what is on disk may have changed: never from the cache

    @classmethod
    def execute(cls, action, run="", new_name="", checkpoint=store.LATEST, confirm=""):
        lines = {
            "list": list,
            "branch": lambda: [branch_run(run, new_name, checkpoint), ""],
            "delete": lambda: cls.delete(run, confirm),
            UNDO: lambda: [take_back_round(run), ""],
        }[action]()
        text = "\n".join([*lines, table(store.list_runs(runs_root()))])
        return io.NodeOutput(text, ui={"text": [text]})

    @classmethod
    def delete(cls, run, confirm):
        try:
            return [*delete_run(run, confirm), ""]
        except Unconfirmed as wanted:
            raise ValueError(
                f"confirm: write {str(wanted)!r} here to delete this run, as it is now, for good. Nothing "
                "was deleted"
            ) from None


def table(listed):
    """Runs as lines of text in columns."""
    if not listed:
        return "no runs yet"
    rows = [
        ("run", "steps", "rounds", "rank", "held-out", "best", "MB", "changed", "checkpoints", "base model")
    ]
    for run in listed:
        if run.problem:
            continue
        rows.append(
            (
                run.name,
                run.step,
                run.rounds,
                run.rank,
                _share(run.accuracy),
                _share(run.best),
                f"{run.size / 1e6:.1f}",
                f"{datetime.fromtimestamp(run.changed):%Y-%m-%d %H:%M}",
                ", ".join(map(str, run.checkpoints)),
                run.model,
            )
        )
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{value!s:<{width}}" for value, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines + [f"{run.name}: {run.problem}" for run in listed if run.problem])


def _share(accuracy):
    return "-" if accuracy is None else f"{accuracy:.2f}"


@PromptServer.instance.routes.post("/d3po/undo")
@answering
async def post_undo(body):
    """{"run"}: take back a saved run's last round, for Save Run's button; the reply says where it is now."""
    (run,) = texts_in(body, "run")
    return {"told": await in_thread(take_back_round, run)}
