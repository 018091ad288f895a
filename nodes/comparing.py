"""Whether a LoRA is better: its pictures beside the base's, and blind."""

import hashlib
import math
import random
import time
from contextlib import suppress
from pathlib import PureWindowsPath

import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker

from ..d3po_core.runs.compared import keep_compared
from ..d3po_core.runs.store import LATEST, run_folder
from ..d3po_core.training.win_rate import WinRate
from . import host, routes
from .library import runs_root
from .picking import are_there, finished, sets_in
from .stored import ImageSet
from .types import CATEGORY

IMAGES_A = dict(tooltip="The base model's pictures, from VAE Decode, or those of any other first side.")
IMAGES_B = dict(
    tooltip="The LoRA's pictures, or the other side's: the same prompts and seeds in the same order."
)
NAME_A = dict(default="base", tooltip="What the first side is called.")
NAME_B = dict(default="LoRA", tooltip="What the second side is called.")
GAP = 1 / 16  # between pairs in the grid, in parts of a picture's width
SAME = (
    "The two sides' pictures are the same throughout. Is the LoRA on the model that the second side is "
    "sampled with, and trained?"
)
OPEN = "The result comes when all {} pairs are judged, or before if it is clear: until then it would sway you"

_files = {}  # a pair's name -> its two pictures as files for the page


class D3POCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POCompare",
            display_name="D3PO Compare",
            category=CATEGORY,
            search_aliases=["before after", "compare lora", "image compare", "difference", "side by side"],
            description=(
                "Shows pictures of the base and of the LoRA in pairs: side by side, under a slider, in the "
                "same place, or their difference, all zoomed together."
            ),
            is_input_list=True,
            inputs=[
                io.Image.Input("images_a", **IMAGES_A),
                io.Image.Input("images_b", **IMAGES_B),
                io.String.Input("name_a", **NAME_A),
                io.String.Input("name_b", **NAME_B),
            ],
            outputs=[
                io.Image.Output(
                    display_name="grid",
                    tooltip="All pairs in one picture, the first side on the left of each: for Save Image.",
                )
            ],
            has_intermediate_output=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images_a, images_b, name_a, name_b):
        pairs = paired(images_a, images_b)
        shown = [[file_of(picture, cls) for picture in pair] for pair in pairs]
        return io.NodeOutput(grid_of(pairs), ui={"compared": shown, "names": [name_a[0], name_b[0]]})


class D3POWinRate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POWinRate",
            display_name="D3PO Win Rate",
            category=CATEGORY,
            search_aliases=["a/b test", "win rate", "compare lora", "blind test", "human evaluation"],
            description=(
                "Asks you blind which of two pictures is better, the base's or the LoRA's, and says how "
                "often the LoRA wins, with a 95% interval."
            ),
            is_input_list=True,
            inputs=[
                io.Image.Input("images_a", **IMAGES_A),
                io.Image.Input("images_b", **IMAGES_B),
                io.String.Input(
                    "picks",
                    default="",
                    multiline=True,
                    socketless=True,
                    extra_dict={"widgetType": "D3PO_PICKER"},
                    tooltip='The answers so far, as JSON: {"version": 1, "sets": {pair name: {"pairs": '
                    '[[winner, loser]]} or {"ties": [[0, 1]]}}}. 0 is the first side and 1 the second.',
                ),
                io.String.Input("name_a", **NAME_A),
                io.String.Input("name_b", **NAME_B),
            ],
            outputs=[
                io.Float.Output(
                    display_name="win_rate",
                    tooltip="Share of the answers that prefer the second side, ties counting half. 0.5 is "
                    "chance.",
                ),
                io.Float.Output(display_name="low", tooltip="Lower end of its 95% interval."),
                io.Float.Output(display_name="high", tooltip="Upper end of its 95% interval."),
                io.String.Output(display_name="report", tooltip="Answers, win rate and what they say."),
            ],
            hidden=[io.Hidden.extra_pnginfo, io.Hidden.dynprompt, io.Hidden.unique_id],
            has_intermediate_output=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images_a, images_b, picks, name_a, name_b):
        pairs = {name_of(pair): pair for pair in paired(images_a, images_b)}
        said = sets_in(picks[0])
        if all(torch.equal(bits(a), bits(b)) for a, b in pairs.values()):
            pairs = {}
        answers = [finished(said, ImageSet(name, 2)) for name in pairs]
        workflow = routes.workflow_id(cls.hidden.extra_pnginfo)
        told = [
            {
                "set": name,
                "candidates": 2,
                "images": files_of(name, pairs[name], cls),
                "judged": answer is not None,
                "workflow": workflow,
            }
            for name, answer in zip(pairs, answers)
        ]
        given, complete = [answer for answer in answers if answer is not None], None not in answers
        rate = rate_of(given)
        verdict = rate.verdict(complete)
        if pairs and (complete or verdict != "open"):
            text = "\n".join(report(rate, verdict, name_a[0], name_b[0]))
            outputs = [rate.share, *rate.interval(), text]
            keep_with_run(run_compared(cls.hidden.dynprompt, cls.hidden.unique_id), rate)
        else:
            text = OPEN.format(len(pairs)) if pairs else SAME
            outputs = [ExecutionBlocker(None)] * 4
        return io.NodeOutput(*outputs, ui={"d3po": told, "text": [text]})


# --- pairs ---


def paired(images_a, images_b):
    """[(a, b)], [H, W, 3] each, of two lists of batches."""
    a, b = ([picture[..., :3] for batch in images for picture in batch] for images in (images_a, images_b))
    if len(a) != len(b):
        raise ValueError(
            f"images_a, images_b: there are {len(a)} pictures of the one side and {len(b)} of the other. "
            "Sample both with the same prompts, seeds and batch size"
        )
    for number, (one, other) in enumerate(zip(a, b), 1):
        if one.shape != other.shape:
            raise ValueError(
                f"images_a, images_b: pair {number} is of a picture of {size_of(one)} and one of "
                f"{size_of(other)}. Sample both from the same latent image"
            )
    return list(zip(a, b))


def size_of(picture):
    return f"{picture.shape[1]}x{picture.shape[0]}"


def name_of(pair):
    """The name of a pair, by what is to be seen: the same pictures keep it, and with it their answer, in a
    longer session too. A LoRA that has learned more makes others."""
    digest = hashlib.sha256()
    for picture in pair:
        digest.update(f"{tuple(picture.shape)}".encode())
        digest.update(bits(picture).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def bits(picture):
    """A picture as a PNG has it: 8 bits a channel."""
    return (255 * picture).clamp(0, 255).to(torch.uint8).cpu()


def file_of(picture, cls):
    """A picture as a file for the page. Each has a random name, which does not tell its side."""
    return ui.PreviewImage(picture[None], cls=cls).as_dict()["images"][0]


def files_of(name, pair, cls):
    """A pair's pictures as files, written in an order drawn by lot; those that were written before serve
    again."""
    if name not in _files or not are_there(_files[name]):
        written = {side: file_of(pair[side], cls) for side in random.sample((0, 1), 2)}
        _files[name] = [written[0], written[1]]
    return _files[name]


def grid_of(pairs):
    """All pairs in one picture, [1, H, W, 3], about as wide as it is high; smaller ones stand at the top left
    of their places."""
    height, width = (max(a.shape[axis] for a, _ in pairs) for axis in (0, 1))
    gap = max(1, round(GAP * width))
    columns = max(1, round(math.sqrt(len(pairs) * (height + gap) / (2 * width + gap))))
    places = [torch.cat([fitted(picture, height, width) for picture in pair], 1) for pair in pairs]
    places += [torch.zeros_like(places[0])] * (-len(places) % columns)
    places = [F.pad(place, (0, 0, 0, gap, 0, gap)) for place in places]
    rows = [torch.cat(places[i : i + columns], 1) for i in range(0, len(places), columns)]
    return torch.cat(rows)[None, :-gap, :-gap]


def fitted(picture, height, width):
    return F.pad(picture, (0, 0, 0, width - picture.shape[1], 0, height - picture.shape[0]))


# --- answers ---


def rate_of(answers):
    """The WinRate of Judgements of pairs. One that says neither a preference nor a tie was skipped."""
    wins, losses = (sum(pair in answer.pairs for answer in answers) for pair in ((1, 0), (0, 1)))
    return WinRate(wins, losses, sum(bool(answer.ties) for answer in answers))


def report(rate, verdict, name_a, name_b):
    """What a session says, in lines."""
    low, high = rate.interval()
    yield f"{name_b} {rate.wins}, {name_a} {rate.losses}, no difference {rate.ties}"
    yield (
        f"win rate of {name_b}: {rate.share:.0%} of {rate.answers} answers (95% interval {low:.0%} to "
        f"{high:.0%}; ties count half)"
    )
    yield {
        "better": f"Enough answers: you prefer {name_b}, beyond chance",
        "worse": f"Enough answers: you prefer {name_a}, beyond chance",
        "same": "Enough answers: there is no difference to be seen, at most 10 points either way",
        "open": "Not beyond chance: 50% lies in the interval. More pairs make it narrower",
    }[verdict]


# --- the run that was compared ---


def keep_with_run(run, rate):
    """Keep a session's WinRate with a run, for the tab in the sidebar."""
    with suppress(ValueError, OSError):  # it is the answers that must not be lost, and the workflow has them
        if run and rate.answers:
            keep_compared(run_folder(runs_root(), run), rate, time.time())


def run_compared(graph, node_id):
    """The run whose LoRA is all that the second side's pictures have and the first's have not, by the graph
    above; None for any other two sides."""
    inputs = graph.get_node(node_id)["inputs"]
    first, second = (loras_above(graph, inputs[side][0]) for side in ("images_a", "images_b"))
    own = second - first
    if first - second or len(own) != 1:
        return None
    return own.pop()[0]


def loras_above(graph, node_id):
    """What nodes above load: {(the run whose latest LoRA it is, or None; what is named)}."""
    loras = set()
    for node in host.nodes_above(graph, node_id):
        inputs = node["inputs"]
        if node["class_type"] == "D3POLoadRun":
            run, checkpoint = inputs["run"], inputs.get("checkpoint", LATEST)
            is_known = isinstance(run, str) and checkpoint == LATEST
            loras.add((run if is_known else None, f"{run} {checkpoint}"))
        elif "lora_name" in inputs:
            file = PureWindowsPath(str(inputs["lora_name"]))  # which takes both kinds of slashes
            loras.add((file.stem if file.parts[:-1] == ("d3po",) else None, str(file)))
    return loras
