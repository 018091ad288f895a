"""Run a workflow without a page: python dev.py run WORKFLOW.json [options]

The file is a workflow as the page saves it, or in its API format. Seeds and other widgets move on between
rounds as the workflow says (fixed, increment, decrement, randomize). What is learned is kept as on the page:
a run that was stopped goes on when it is called again.

With --until-stop no round follows one whose training ended before its last update: by stop_kl, by patience,
by what a scorer's guard saw, or by the page's button.

Started by torchrun or `accelerate launch`, its processes share the work and train one LoRA (docs/scale.md):

    torchrun --standalone --nproc-per-node 2 dev.py run WORKFLOW.json

Ends with 0; with 1 if a round failed; with 2 if something is wrong with what was asked for; with 3 if it
waits for picks. Ctrl+C ends with 130 once the progress is kept, SIGTERM with 0.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import aiohttp

from tools.host import BASE, Host, HostError, WorkflowError, make_base
from tools.workflow import control_values, spec_of, to_api, unknown_nodes

TOGETHER = "D3PO_TOGETHER"  # tells a ComfyUI that it is one of several (nodes/together.py)
FAILED, WRONG, WAITS, INTERRUPTED = 1, 2, 3, 130
EVERY = 2.0  # seconds between two lines of progress
LARGEST_SEED = 2**64 - 1
KINDS = {"INT": int, "FLOAT": float}


class Wrong(ValueError):
    """What was asked for cannot be done; the message says why."""


class Among(NamedTuple):
    """This process among several that run the workflow together, on their own device each: as torchrun and
    `accelerate launch` say in the environment."""

    rank: int
    count: int
    device: int

    @classmethod
    def of_environment(cls):
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, count, device = (int(os.environ.get(name, -1)) for name in names)
        return cls(rank, count, device) if rank >= 0 and count > 1 else cls(0, 1, -1)

    @property
    def name(self):
        return f" (process {self.rank} of {self.count})" if self.count > 1 else ""

    def host(self, base):
        """A ComfyUI of its own."""
        if self.count == 1:
            return Host(make_base(base), apart=True)
        device = ("--cuda-device", self.device) if self.device >= 0 else ()
        together = {TOGETHER: "1"}
        return Host(make_base(base), device, apart=True, number=self.rank, environment=together)


def parsed(arguments):
    parser = argparse.ArgumentParser(
        prog="dev.py run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--rounds", type=int, default=1, help="how often it is run (default: once)")
    parser.add_argument(
        "--until-stop", action="store_true", help="end sooner, after a round whose training ended by itself"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="an input's value; NODE is a type, a title or an id, and stands for all such nodes",
    )
    parser.add_argument("--url", help="of a ComfyUI that runs already; else one is started")
    parser.add_argument(
        "--base", type=Path, default=BASE, help="the started ComfyUI's folder of models, input and output"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what is missing, and run nothing")
    return parser.parse_args(arguments)


# --- what is run ---


def read(path):
    """A workflow's JSON. Raises Wrong."""
    try:
        workflow = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Wrong(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise Wrong(f"{path} is no JSON: {error}") from error
    if not isinstance(workflow, dict) or not (is_api(workflow) or isinstance(workflow.get("nodes"), list)):
        raise Wrong(f"{path} is no workflow of ComfyUI's")
    return workflow


def is_api(workflow):
    nodes = workflow.values()
    return bool(nodes) and all(isinstance(node, dict) and "class_type" in node for node in nodes)


def prompt_of(workflow, object_info):
    """(an API prompt, how its inputs move on: {node: {input: how}}). Raises Wrong where nodes are missing."""
    types = {node["class_type"] for node in workflow.values()} if is_api(workflow) else None
    missing = sorted(types - object_info.keys()) if types else unknown_nodes(workflow, object_info)
    if missing:
        raise Wrong(f"this ComfyUI has no node {', '.join(missing)}. Install the packs that they are from")
    if types:
        return workflow, {}
    return to_api(workflow, object_info), control_values(workflow, object_info)


def input_of(object_info, node, name):
    """(kind, options) of a node's input; None where it has none of that name."""
    inputs = object_info[node["class_type"]]["input"]
    spec = ((inputs.get("required") or {}) | (inputs.get("optional") or {})).get(name)
    return spec and spec_of(spec)


def change(prompt, object_info, told):
    """Set an input by "NODE.INPUT=VALUE". Raises Wrong."""
    place, equals, text = told.partition("=")
    which, dot, name = place.rpartition(".")
    if not equals or not dot:
        raise Wrong(f"--set {told}: write NODE.INPUT=VALUE, such as D3POTrainStep.epochs=4")
    chosen = [
        node
        for key, node in prompt.items()
        if which in (key, node["class_type"], node.get("_meta", {}).get("title"))
    ]
    if not chosen:
        types = sorted({node["class_type"] for node in prompt.values()})
        raise Wrong(f"--set {told}: there is no node {which}. There are {', '.join(types)}")
    for node in chosen:
        spec = input_of(object_info, node, name)
        if spec is None:
            raise Wrong(f"--set {told}: {node['class_type']} has no input {name}")
        node["inputs"][name] = value_of(told, spec[0], text)


def value_of(told, kind, text):
    if kind == "BOOLEAN":
        if text.lower() not in ("true", "false"):
            raise Wrong(f"--set {told}: write true or false")
        return text.lower() == "true"
    try:
        return KINDS.get(kind, str)(text)
    except ValueError:
        raise Wrong(f"--set {told}: that is no number") from None


def absent(prompt, object_info):
    """What inputs name that is not there: files of models, above all."""
    for key, node in prompt.items():
        for name, value in node["inputs"].items():
            kind, options = input_of(object_info, node, name) or ("", {})
            choices = options.get("options") or []
            if kind == "COMBO" and choices and isinstance(value, str) and value not in choices:
                yield f"node {key} ({node['class_type']}): {name}: there is no {value!r} here"


def moved_on(value, how, rng=random):
    """A widget's value for the next round."""
    steps = {"increment": 1, "increment-wrap": 1, "decrement": -1}
    if how == "randomize":
        return rng.randrange(LARGEST_SEED >> 11)  # what a page can hold exactly
    return min(LARGEST_SEED, max(0, value + steps.get(how, 0)))


def move_on(prompt, controls):
    for key, inputs in controls.items():
        for name, how in inputs.items():
            own = prompt.get(key, {}).get("inputs", {})
            if isinstance(own.get(name), int) and not isinstance(own[name], bool):
                own[name] = moved_on(own[name], how)


# --- running it ---


class Running(Host):
    """A ComfyUI that somebody else started, and ends."""

    def __init__(self, url):
        super().__init__()
        self._url = url.rstrip("/")

    @property
    def url(self):
        return self._url

    def start(self):
        try:
            self.get("/system_stats")
        except OSError as error:
            raise Wrong(f"--url: no ComfyUI answers at {self._url}: {error}") from error

    def stop(self):
        pass

    def _check_alive(self):
        pass


def say(text):
    if not Among.of_environment().rank:  # the others do and find the same
        print(text, flush=True)


async def followed(host, prompt):
    """Run a prompt and tell of it: its entry in the history. Raises WorkflowError."""
    client, titles = uuid.uuid4().hex, {key: title_of(node) for key, node in prompt.items()}
    socket = host.url.replace("http", "ws", 1) + f"/ws?clientId={client}"
    async with aiohttp.ClientSession() as session, session.ws_connect(socket, max_msg_size=0) as events:
        queued, last = host.queue(prompt, client), 0.0
        async for message in events:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            told = json.loads(message.data)
            event, data = told.get("type"), told.get("data") or {}
            if data.get("prompt_id") != queued:
                continue
            if event == "executing" and data.get("node"):
                say(f"  {titles.get(data['node'], data['node'])}")
            elif event == "progress" and time.monotonic() - last > EVERY:
                last = time.monotonic()
                say(f"    {data['value']} of {data['max']}")
            elif event in ("execution_success", "execution_error", "execution_interrupted"):
                break
    return host.ended(queued)


def title_of(node):
    return node.get("_meta", {}).get("title") or node["class_type"]


def reported(prompt, entry):
    """Tell what the nodes of a round have said, each text once."""
    told = set()
    for key, output in entry["outputs"].items():
        for text in output.get("text") or ():
            if isinstance(text, str) and key in prompt and text not in told:
                told.add(text)
                say(f"{title_of(prompt[key])}: {text}")


def waits(entry):
    """Whether picks are waited for."""
    shown = (each for output in entry["outputs"].values() for each in output.get("d3po") or ())
    return any(not each.get("judged", True) for each in shown)


def stopped(entry):
    """Why training ended before its last update, of each train step that it did."""
    return [why for output in entry["outputs"].values() for why in output.get("stopped") or ()]


def rounds(host, workflow, given):
    info = host.object_info()
    prompt, controls = prompt_of(workflow, info)
    for told in given.set:
        change(prompt, info, told)
    if missing := [*absent(prompt, info)]:
        raise Wrong("\n".join(missing))
    if given.dry_run:
        say(f"{given.workflow}: {len(prompt)} nodes, nothing is missing")
        return 0
    for number in range(given.rounds):
        say(f"round {number + 1} of {given.rounds}")
        entry = asyncio.run(followed(host, prompt))
        reported(prompt, entry)
        if waits(entry):
            say("It waits for picks: judge them on the page, then run this again")
            return WAITS
        if given.until_stop and stopped(entry):
            say(f"No further round: {stopped(entry)[0]}")
            break
        move_on(prompt, controls)
    return 0


class Stopped(BaseException):
    """SIGTERM has come."""


def stop(*_):
    raise Stopped


def main(arguments):
    given, among = parsed(arguments), Among.of_environment()
    signal.signal(signal.SIGTERM, stop)
    try:
        if given.rounds < 1:
            raise Wrong("--rounds: at least 1")
        if given.url and among.count > 1:
            raise Wrong("--url: several processes start a ComfyUI each, and share none that runs")
        workflow = read(given.workflow)
        with Running(given.url) if given.url else among.host(given.base) as host:
            say(f"ComfyUI is at {host.url}")
            try:
                return rounds(host, workflow, given)
            except (KeyboardInterrupt, Stopped) as ended:
                host.settle()
                say("Stopped. Run it again to go on")
                return 0 if isinstance(ended, Stopped) else INTERRUPTED
            except (WorkflowError, HostError):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself: torchrun would end it too
                raise
    except Wrong as wrong:
        print(f"dev.py run{among.name}: {wrong}", file=sys.stderr)
        return WRONG
    except (WorkflowError, HostError) as error:
        print(f"dev.py run{among.name}: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
