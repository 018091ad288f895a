"""What the sidebar asks of the server about datasets: what there is, pages of sets, and what is said of them.

    GET  /d3po/datasets           ?annotator: all datasets, the newest first; one that is damaged says how
    GET  /d3po/datasets/sets      ?dataset &annotator &filter=all|unjudged|judged &order=newest|oldest
                                  &search &page (from 0): sets with their images and what counts of what was
                                  said; the newest first with how many there are, the oldest more at a time
    POST /d3po/datasets/judge     {"dataset", "set", "annotator", "mode", "judgement"}
    POST /d3po/datasets/withdraw  {"dataset", "set", "annotator"}

What is said or taken back is on disk before the reply says so, and adds to what was said before. Browsers are
told "d3po.kept" when sets have come into a dataset.
"""

import asyncio
import re
from pathlib import Path

import folder_paths
from aiohttp import web
from server import PromptServer

from ...d3po_core.candidates.judgement import is_text
from ...d3po_core.dataset.browsing import FILTERS, ORDERS
from ...d3po_core.dataset.index import DatasetError, DiskFull
from ...d3po_core.dataset.sets import INDEX
from ...d3po_core.dataset.store import Dataset
from ..routes import Refused, answering, judgement_of
from ..stored import HELD_OUT, NOT_YET, dataset_folder, datasets_root

MODES = ("pairs", "ranking", "best", "stars", "thumbs")  # as the picker has them
TOOL = "sidebar"
PAGE, TO_JUDGE = 24, 100  # sets on a page to look at; at a time to be judged
THUMBNAILS = 4  # of a dataset
NUMBER = "[0-9]{1,9}"
LONGEST = 200  # characters of a person's name, or of what is searched for


def asking(answer):
    """A handler of GET requests: what `answer(query)` returns, made in a thread, or why it was Refused."""

    async def handle(request):
        try:
            return web.json_response(await asyncio.to_thread(answer, request.rel_url.query))
        except Refused as refusal:
            return web.json_response({"error": str(refusal)}, status=refusal.status)

    return handle


def annotator_of(name):
    """The name of who judges, as it is written. Raises Refused."""
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST or not is_text(name):
        raise Refused(400, f"annotator: write who judges, in 1 to {LONGEST} characters")
    return name.strip()


def opened(name):
    """The dataset of a name that came with a request. Raises Refused where there is none of it."""
    try:
        folder = dataset_folder(name if isinstance(name, str) else "")
    except ValueError as error:
        raise Refused(400, str(error)) from error
    if not (folder / INDEX).exists():
        raise Refused(404, NOT_YET.format(name))
    return Dataset(folder, create=False)


def refused(error):
    return Refused(507 if isinstance(error, DiskFull) else 500, str(error))


def references(name, files):
    """Files of a dataset as ComfyUI's /view has them; [] where one is gone."""
    folder = dataset_folder(name)
    paths = [folder / file for file in files]
    if not all(map(Path.is_file, paths)):
        return []
    root = folder_paths.get_output_directory()
    return [
        {"filename": path.name, "subfolder": path.parent.relative_to(root).as_posix(), "type": "output"}
        for path in paths
    ]


def glance(name, annotator):
    """What the list says of a dataset."""
    try:
        with opened(name) as store:
            newest = store.browse(annotator, limit=THUMBNAILS)
            images = [image for shown in newest for image in references(name, shown.images[:1])]
            return {"name": name, "images": images} | store.overview(annotator)
    except (DatasetError, Refused) as error:
        return {"name": name, "problem": str(error)}


def list_datasets(query):
    annotator = annotator_of(query.get("annotator"))
    names = sorted(index.parent.name for index in datasets_root().glob(f"*/{INDEX}"))
    told = [glance(name, annotator) for name in names]
    return sorted(told, key=lambda dataset: dataset.get("newest") or "", reverse=True)


def said_of(entry):
    return {
        "annotator": entry.annotator,
        "judgement": entry.judgement.as_json,
        "time": entry.time.isoformat(),
    }


def told_of(name, shown):
    """A set as the page is told of it."""
    row = shown.row
    return {
        "set": row.id,
        "candidates": row.candidates,
        "images": references(name, shown.images),
        "text": row.prompt or "",
        "created": row.created.isoformat(),
        "held_out": row.share < HELD_OUT["default"],
        "said": [said_of(entry) for entry in shown.said],
    }


def page_of_sets(query):
    annotator, name = annotator_of(query.get("annotator")), query.get("dataset", "")
    which, order = query.get("filter", "all"), query.get("order", "newest")
    search, page = query.get("search", ""), query.get("page", "0")
    if which not in FILTERS or order not in ORDERS or len(search) > LONGEST or not re.fullmatch(NUMBER, page):
        raise Refused(400, "filter, order, search or page is none that can be asked for")
    size = PAGE if order == "newest" else TO_JUDGE
    try:
        with opened(name) as store:
            shown = store.browse(annotator, which, search, order, size, int(page) * size)
            told = {"sets": [told_of(name, each) for each in shown], "size": size}
            # who judges needs the next sets soon, and in a large dataset counting takes longer than they do
            return told | ({"total": store.count(annotator, which, search)} if order == "newest" else {})
    except DatasetError as error:
        raise refused(error) from error


def say(dataset, set_id, annotator, judged, tool):
    """Keep what a Judgement of so many candidates, by `judged(count)`, or None says of a set."""
    annotator = annotator_of(annotator)
    try:
        with opened(dataset) as store:
            row = store.find(set_id) if isinstance(set_id, str) and is_text(set_id) else None
            if row is None:
                raise Refused(404, f"dataset: {dataset!r} does not hold this set any more")
            store.judge(set_id, judged(row.candidates), annotator, tool, again=False)
    except DatasetError as error:
        raise refused(error) from error


def require_fields(body, *names):
    if body.keys() != {*names}:
        raise Refused(400, f"the body must have {', '.join(names)}, and nothing else")


def judge(body):
    require_fields(body, "dataset", "set", "annotator", "mode", "judgement")
    name, mode, said = body["set"], body["mode"], body["judgement"]
    if mode not in MODES:
        raise Refused(400, f"mode must be one of {', '.join(MODES)}")
    tool = f"{TOOL}, {mode}"
    say(body["dataset"], name, body["annotator"], lambda count: judgement_of(name, said, count), tool)


def withdraw(body):
    require_fields(body, "dataset", "set", "annotator")
    say(body["dataset"], body["set"], body["annotator"], lambda count: None, TOOL)


routes = PromptServer.instance.routes
routes.get("/d3po/datasets")(asking(list_datasets))
routes.get("/d3po/datasets/sets")(asking(page_of_sets))


@routes.post("/d3po/datasets/judge")
@answering
async def post_judge(body):
    await asyncio.to_thread(judge, body)
    return {"kept": True}


@routes.post("/d3po/datasets/withdraw")
@answering
async def post_withdraw(body):
    await asyncio.to_thread(withdraw, body)
    return {"kept": True}
