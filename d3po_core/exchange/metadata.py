"""What a picture says of how it was made, where the program that made it wrote that into the file.

ComfyUI writes its graph (PNG text "prompt"; WEBP's EXIF Make and Model); Stable Diffusion WebUI and its kin a
text of lines (PNG text "parameters"; EXIF UserComment), which others copy; InvokeAI, SwarmUI, Fooocus and
NovelAI JSON of their own. All of it is somebody else's data: what makes no sense is passed over.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from PIL import Image

from ..candidates.judgement import is_text
from ..dataset.index import NONSENSE
from .record import Source, open_image

EXIF, USER_COMMENT, DESCRIPTION, MAKE, CAMERA = 0x8769, 0x9286, 0x010E, 0x010F, 0x0110  # "CAMERA": Model
ENCODINGS = {b"UNICODE\0": ("utf-16-be", "utf-16-le"), b"ASCII\0\0\0": ("ascii",), bytes(8): ("utf-8",)}
LONGEST = 2**16  # characters of a prompt, and nodes of a graph
SETTINGS = re.compile(r"^Steps: \d+", re.MULTILINE)
NEGATIVE = re.compile(r"^Negative prompt:", re.MULTILINE)
# names that programs have for the same thing, in JSON of theirs
PROMPT = ("positive_prompt", "prompt")
UNWANTED = ("negative_prompt", "negativeprompt", "uc")
MODEL = ("model", "base_model", "model_name", "name")
# and in ComfyUI's nodes: what a text, a seed and a model's file are called
TEXTS = ("text", "text_g", "t5xxl", "clip_l", "prompt", "string", "value")
SEEDS = ("seed", "noise_seed", "value")
FILES = ("ckpt_name", "unet_name", "model_name")
MAKES_NO_SENSE = (*NONSENSE, OSError, SyntaxError)


class Origin(NamedTuple):
    """How a picture was made, each None where that is not known."""

    prompt: str | None = None
    negative: str | None = None
    seed: int | None = None
    model: str | None = None


def origin(source: Source) -> Origin:
    """The Origin that an image file, or its bytes, tells. Raises ValueError as open_image does."""
    with open_image(source) as image:
        written = _written(image)
    for name, text in written.items():
        for read in READERS.get(name, ()):
            with suppress(*MAKES_NO_SENSE):
                found = read(text, written)
                if found and found.prompt:
                    return found
    return Origin()


def _written(image: Image.Image) -> dict[str, str]:
    """{what it is: text} of all that programs write into an image."""
    found = {
        name: text for name, text in image.info.items() if isinstance(name, str) and isinstance(text, str)
    }
    if type(comment := image.info.get("comment")) is bytes:
        found["comment"] = comment.decode("utf-8", "replace")
    with suppress(*MAKES_NO_SENSE):
        exif = image.getexif()
        for value in (exif.get(MAKE), exif.get(CAMERA)):
            name, colon, text = value.partition(":") if isinstance(value, str) else ("", "", "")
            if colon:  # "prompt:{...}" and "workflow:{...}"
                found.setdefault(name.lower(), text)
        comment = exif.get_ifd(EXIF).get(USER_COMMENT) or exif.get(DESCRIPTION)
        if type(comment) is bytes:
            comment = _decoded(comment)
        if comment:
            found.setdefault("parameters", comment)
    return found


def _decoded(comment: bytes) -> str:
    """An EXIF comment, which begins with the name of its encoding. Of UTF-16 nobody says which end is first:
    the one by which most of it is ASCII."""
    texts = [comment[8:].decode(name, "replace") for name in ENCODINGS.get(comment[:8], ())]
    return max(texts or [comment.decode("utf-8", "replace")], key=lambda t: sum(c.isascii() for c in t))


# --- one program's or another's ------------------------------------------------------------------


def _lines(text: str, _: Any) -> Origin | None:
    """Prompt, "Negative prompt: ..." and "Steps: 20, Seed: 5, Model: name, ..."."""
    places = [line.start() for line in SETTINGS.finditer(text)]
    if not places:
        return None
    said, told = text[: places[-1]], text[places[-1] :]
    negative = NEGATIVE.search(said)
    prompt = said[: negative.start()] if negative else said
    return _origin(
        prompt,
        said[negative.end() :] if negative else None,
        next(iter(re.findall(r"\bSeed: (\d+)", told)), None),
        next(iter(re.findall(r'\bModel: ("[^"]*"|[^,\n]+)', told)), "").strip('"'),
    )


def _json(text: str, written: dict[str, str]) -> Origin | None:
    """A mapping with a prompt, a seed and a model under one of their usual names."""
    said = json.loads(text)
    said = said.get("sui_image_params", said)
    if not isinstance(said, dict):
        return None
    model = _first(said, MODEL)
    return _origin(
        _first(said, PROMPT) or written.get("Description"),
        _first(said, UNWANTED),
        said.get("seed"),
        _first(model, MODEL) if isinstance(model, dict) else model,
    )


def _graph(text: str, _: Any) -> Origin | None:
    """ComfyUI's graph in its API format: what the sampler nearest to the saved pictures was given."""
    graph = json.loads(text)
    graph = {
        key: node["inputs"] for key, node in graph.items() if isinstance(node, dict) and "inputs" in node
    }
    if len(graph) > LONGEST:
        return None
    saved = [key for key, own in graph.items() if "images" in own or "samples" in own] or list(graph)
    for key in _above(graph, saved):
        own = graph[key]
        # of a sampler that is wired up piece by piece, else the sampler itself
        guider = graph.get(_from(own.get("guider")) or "", own)
        if (wire := guider.get("positive", guider.get("conditioning"))) is not None:
            return _origin(
                _found(graph, wire, TEXTS, str, "positive"),
                _found(graph, guider.get("negative"), TEXTS, str, "negative"),
                _found(graph, own.get("noise", [key, 0]), SEEDS, int),
                _found(graph, guider.get("model"), FILES, str),
            )
    return None


def _from(wire: Any) -> str | None:
    """The node that a wire comes from; None for what is no wire."""
    return wire[0] if isinstance(wire, list) and len(wire) == 2 and type(wire[0]) is str else None


def _above(graph: dict[str, dict[str, Any]], keys: list[str], side: str = "") -> Iterator[str]:
    """Nodes of a graph and all that they are made from, nearest first, each once. Of a node that has both
    conditionings, only what is made of the one on that side."""
    queue = list(dict.fromkeys(keys))
    seen = set(queue)
    for key in queue:
        yield key
        own = graph[key]
        for wire in [own[side]] if side in own else own.values():
            source = _from(wire)
            if source in graph and source not in seen:
                seen.add(source)
                queue.append(source)


def _found(
    graph: dict[str, dict[str, Any]], wire: Any, names: tuple[str, ...], kind: type, side: str = ""
) -> Any:
    """The first value of that kind under one of the names, at the wire's other end or above it."""
    source = _from(wire)
    for key in _above(graph, [source], side) if source in graph else ():
        value = _first(graph[key], names)
        if type(value) is kind:
            return value
    return None


def _first(said: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((said[name] for name in names if said.get(name) is not None), None)


def _origin(prompt: Any, negative: Any, seed: Any, model: Any) -> Origin:
    """An Origin of what is found, None for what is none."""

    def text(value: Any) -> str | None:
        value = value.strip()[:LONGEST] if type(value) is str else ""
        return value if value and is_text(value) else None

    known = type(seed) is int or type(seed) is str and seed.isdecimal()
    return Origin(text(prompt), text(negative), int(seed) if known else None, text(model))


# in which text which programs write, the first that is understood counts
READERS = {
    "prompt": (_graph,),
    "parameters": (_lines, _json),
    "invokeai_metadata": (_json,),
    "Comment": (_json,),
    "comment": (_lines, _json),
}
