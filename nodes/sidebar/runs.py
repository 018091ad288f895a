"""The runs on disk for the tab in the sidebar.

    GET  /d3po/runs         {"runs": [...]}, the newest first, as `shown` has each
    POST /d3po/runs/branch  {"run", "new_name", "checkpoint"}
    POST /d3po/runs/delete  {"run", "confirm"}: confirm is the run's "as_it_is" when a person was asked
    POST /d3po/runs/export  {"run"}: a LoRA file of its own

A reply says in "told" what was done. The last round is taken back by POST /d3po/undo (manage_runs.py).
"""

import asyncio
from dataclasses import asdict

from aiohttp import web
from server import PromptServer

from ...d3po_core.runs import store
from ...d3po_core.runs.looks import PICTURES
from ..library import on_shelf, runs_root
from ..routes import Refused, answering, in_thread, texts_in
from ..run_actions import Unconfirmed, as_it_is, branch_run, delete_run, export_run

routes = PromptServer.instance.routes


def listed():
    """All runs, the newest first."""
    runs = sorted(store.list_runs(runs_root()), key=lambda run: run.changed, reverse=True)
    return [shown(run) for run in runs]


def shown(run):
    """A run's Summary as the page takes it, its pictures as /view has files; with what a person confirms to
    delete it, and its name in Load LoRA's list, or null."""
    pictures = run.look and {
        "before": [as_file(run.name, name) for name in run.look["before"]],
        "now": [as_file(run.name, name) for name in run.look["now"]],
        "prompts": run.look["prompts"],
    }
    lora = f"d3po/{run.name}.safetensors" if on_shelf(run.name).is_file() else None
    said = {name: value for name, value in asdict(run).items() if name not in ("look", "compared")}
    said |= {"pictures": pictures, "lora": lora, "as_it_is": as_it_is(run)}
    return said | {"win_rate": run.compared and in_numbers(run.compared)}


def in_numbers(compared):
    """The last session of D3PO Win Rate with a run."""
    rate = compared.rate
    low, high = rate.interval()
    return {"share": rate.share, "low": low, "high": high, "answers": rate.answers, "when": compared.when}


def as_file(run, name):
    return {"filename": name, "subfolder": f"d3po/runs/{run}/{PICTURES}", "type": "output"}


@routes.get("/d3po/runs")
async def get_runs(request):
    return web.json_response({"runs": await asyncio.to_thread(listed)})


@routes.post("/d3po/runs/branch")
@answering
async def post_branch(body):
    return {"told": await in_thread(branch_run, *texts_in(body, "run", "new_name", "checkpoint"))}


@routes.post("/d3po/runs/delete")
@answering
async def post_delete(body):
    run, confirm = texts_in(body, "run", "confirm")
    try:
        return {"told": "\n".join(await in_thread(delete_run, run, confirm))}
    except Unconfirmed:
        raise Refused(
            409, f"{run} has changed since you were asked, so it was left as it is. Look again"
        ) from None


@routes.post("/d3po/runs/export")
@answering
async def post_export(body):
    return {"file": await in_thread(export_run, *texts_in(body, "run"))}
