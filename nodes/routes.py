"""What the picker's widget asks of the server, and the runs that wait for its answer.

    GET  /d3po/pending    the sets that lack picks: of runs that wait, and of runs that stopped and are in the
                          history
    POST /d3po/answer     {"prompt_id", "node", "picks": {set: judgement}}: the picks a waiting node lacks;
                          the reply says that they are where the node keeps them, or why they cannot be:
                          then it goes on waiting

Browsers are told "d3po.waiting" when a node begins to wait and "d3po.closed" when it ends, however it ends.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web
from server import PromptServer

from ..d3po_core.candidates.judgement import Judgement
from ..d3po_core.dataset.index import DiskFull

LARGEST_BODY = 2**20  # bytes
SHOWN = ("set", "candidates", "images", "text")  # what the page is told of a set
MOST_STOPPED = 100  # of the newest runs in the history

_lock = threading.Lock()
_waits = {}  # (prompt id, execution id of the node) -> Wait


class Refused(Exception):
    """A request that cannot be served: an HTTP status and the reason."""

    def __init__(self, status, reason):
        super().__init__(reason)
        self.status = status


@dataclass
class Wait:
    """One node that waits for the picks of its sets.

    picks  {set: Judgement}, once they came
    keep   puts picks on disk, where the node has a place for them. Raises ValueError or OSError where it
           cannot
    """

    prompt_id: str
    node: str
    workflow: str | None
    sets: list  # of SHOWN each
    keep: Callable[[dict], None]
    picks: dict | None = None
    _over: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def shown(self):
        return {
            "prompt_id": self.prompt_id,
            "node": self.node,
            "workflow": self.workflow,
            "waiting": True,
            "sets": self.sets,
        }

    def take(self, picks):
        """Keep picks, and let the node go on with them. Raises Refused; then it goes on waiting."""
        with self._lock:
            if self._over:
                raise Refused(404, NOTHING_WAITS)
            if self.picks not in (None, picks):
                raise Refused(409, "other picks came first")
            if self.picks is None:
                try:
                    self.keep(picks)
                except (ValueError, OSError) as error:
                    raise Refused(507 if isinstance(error, DiskFull) else 500, str(error)) from error
                self.picks = picks

    def end(self):
        """Take nothing any more; what is being kept right now still counts."""
        with self._lock:
            self._over = True


NOTHING_WAITS = "nothing waits there: the run went on, was cancelled, or never was"


@contextmanager
def waiting(wait):
    """A Wait that browsers can answer inside the `with`, and that is gone after it in every case."""
    server = PromptServer.instance
    with _lock:
        _waits[wait.prompt_id, wait.node] = wait
    try:
        server.send_sync("d3po.waiting", wait.shown())
        yield
    finally:
        with _lock:
            del _waits[wait.prompt_id, wait.node]
        wait.end()
        server.send_sync(
            "d3po.closed",
            {
                "prompt_id": wait.prompt_id,
                "node": wait.node,
                "workflow": wait.workflow,
                "picks": {name: judgement.as_json for name, judgement in (wait.picks or {}).items()},
            },
        )


async def read_json(request):
    """The request's JSON object, at most LARGEST_BODY long. Raises Refused."""
    if request.content_type != "application/json":
        raise Refused(415, "the body must be application/json")
    body = bytearray()
    try:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > LARGEST_BODY:
                raise Refused(413, f"the body is longer than {LARGEST_BODY} bytes")
    except web.RequestPayloadError as error:
        raise Refused(400, "the body cannot be unpacked") from error
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is not JSON") from error
    if not isinstance(value, dict):
        raise Refused(400, "the body is not a JSON object")
    return value


def _no_constant(name):
    raise ValueError(f"{name} is not JSON")


def answering(answer):
    """A handler of requests whose body is a JSON object: what `await answer(body)` returns, as JSON, or why
    it was Refused."""

    async def handle(request):
        try:
            return web.json_response(await answer(await read_json(request)))
        except Refused as refusal:
            return web.json_response({"error": str(refusal)}, status=refusal.status)

    return handle


def texts_in(body, *names):
    """The texts of a body's fields, which are these and no others. Raises Refused."""
    if body.keys() != {*names} or not all(isinstance(value, str) for value in body.values()):
        are = "are" if len(names) > 1 else "is"
        raise Refused(400, f"the body must have {' and '.join(names)}, which {are} text, and nothing else")
    return [body[name] for name in names]


async def in_thread(work, *arguments):
    """What work(*arguments) returns, while the server has others to serve: a disk may be slow. Raises Refused
    where it cannot be done."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except ValueError as error:
        raise Refused(404, str(error)) from error
    except OSError as error:
        raise Refused(500, str(error)) from error


def asked_for(body):
    """(Wait, {set: Judgement}) of a request's body, of the sets that are waited for. Raises Refused."""
    if body.keys() != {"prompt_id", "node", "picks"}:
        raise Refused(400, "the body must have prompt_id, node and picks, and nothing else")
    prompt_id, node, picks = body["prompt_id"], body["node"], body["picks"]
    if not (isinstance(prompt_id, str) and isinstance(node, str) and isinstance(picks, dict)):
        raise Refused(400, "prompt_id and node must be text, and picks an object")
    with _lock:
        wait = _waits.get((prompt_id, node))
    if wait is None:
        raise Refused(404, NOTHING_WAITS)
    candidates = {set_["set"]: set_["candidates"] for set_ in wait.sets}
    if picks.keys() != candidates.keys():
        raise Refused(400, f"picks must be of the sets {', '.join(candidates)}, and of no other")
    return wait, {name: judgement_of(name, answer, candidates[name]) for name, answer in picks.items()}


def judgement_of(name, said, candidates):
    """A set's Judgement out of a request. Raises Refused."""
    try:
        judgement = Judgement.parse_finished(said, candidates)
    except ValueError as error:
        raise Refused(400, f"set {name}: {error}") from error
    if judgement is None:
        raise Refused(400, f"set {name}: it is not finished")
    return judgement


def stopped():
    """What was shown without picks in the runs of ComfyUI's history, oldest first; each set in the newest run
    that showed it. Whatever else the history holds is passed over."""
    # by reference: the queue cannot go on while its history is walked
    history = PromptServer.instance.prompt_queue.get_history(map_function=lambda run: run)
    unanswered, seen = [], set()
    for prompt_id, run in reversed(history.items()):
        outputs = [(node, output["d3po"]) for node, output in run["outputs"].items() if "d3po" in output]
        workflow = workflow_id(run["prompt"][3].get("extra_pnginfo")) if outputs else None
        outputs = [
            (node, [set_ for set_ in sets if _is_ours(set_) and (workflow, node, set_["set"]) not in seen])
            for node, sets in outputs
        ]
        seen |= {(workflow, node, set_["set"]) for node, sets in outputs for set_ in sets}
        for node, sets in reversed(outputs):
            missing = [
                {key: set_[key] for key in SHOWN if key in set_} for set_ in sets if not set_["judged"]
            ]
            if missing:
                unanswered.append(
                    {
                        "prompt_id": prompt_id,
                        "node": node,
                        "workflow": workflow,
                        "waiting": False,
                        "sets": missing,
                    }
                )
        if len(unanswered) >= MOST_STOPPED:
            break
    return unanswered[MOST_STOPPED - 1 :: -1]


def _is_ours(entry):
    """Whether this is what the picker tells of a set. Another node may call its output "d3po" too."""
    if not (isinstance(entry, dict) and entry.keys() >= {"set", "candidates", "images", "judged"}):
        return False
    images = entry["images"]
    return (
        isinstance(entry["set"], str)
        and isinstance(images, list)
        and entry["candidates"] == len(images)
        and all(
            isinstance(image, dict) and all(isinstance(value, str) for value in image.values())
            for image in images
        )
    )


def workflow_of(extra_pnginfo):
    """The workflow that ComfyUI's page sends along with a run, or None. Other programs send there what they
    like."""
    workflow = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, dict) else None
    return workflow if isinstance(workflow, dict) else None


def workflow_id(extra_pnginfo):
    """The id of that workflow, which is text, or None."""
    name = (workflow_of(extra_pnginfo) or {}).get("id")
    return name if isinstance(name, str) else None


@PromptServer.instance.routes.get("/d3po/pending")
async def get_pending(request):
    missing = stopped()
    with _lock:
        missing += [wait.shown() for wait in _waits.values() if wait.picks is None]
    return web.json_response(missing)


@PromptServer.instance.routes.post("/d3po/answer")
@answering
async def post_answer(body):
    wait, picks = asked_for(body)
    await asyncio.to_thread(wait.take, picks)  # a disk may be slow, and the server has others to serve
    return {"answered": True}
