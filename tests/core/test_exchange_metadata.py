"""Prompts, seeds and models that image programs write into their files."""

import io
import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from d3po_core.exchange.metadata import Origin, origin

WEBUI = (
    "a red panda, Steps: of stone\nsecond line\nNegative prompt: blurry,\nbad hands\n"
    "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 4711, "
    'Model: "dream, shaper", Version: v1.9.4'
)
OF_WEBUI = Origin(
    "a red panda, Steps: of stone\nsecond line", "blurry,\nbad hands", 965400086, "dream, shaper"
)
GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": "x"}},
    "3": {"class_type": "PrimitiveString", "inputs": {"value": "a fox"}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": ["3", 0]}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "blurry"}},
    "6": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["4", 0], "negative": ["5", 0]}},
    "7": {"class_type": "KSampler", "inputs": {
        "model": ["2", 0], "positive": ["6", 0], "negative": ["6", 1], "seed": 7, "latent_image": ["8", 0]}},
    "8": {"class_type": "EmptyLatentImage", "inputs": {"width": 8, "height": 8}},
    "9": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
    "10": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "x"}},
}  # fmt: skip
IN_PIECES = GRAPH | {
    "7": {"class_type": "SamplerCustomAdvanced", "inputs": {
        "noise": ["11", 0], "guider": ["12", 0], "sampler": ["13", 0], "latent_image": ["8", 0]}},
    "11": {"class_type": "RandomNoise", "inputs": {"noise_seed": 9}},
    "12": {"class_type": "BasicGuider", "inputs": {"model": ["14", 0], "conditioning": ["4", 0]}},
    "13": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "14": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux.safetensors"}},
}  # fmt: skip
INVOKE = {
    "positive_prompt": "a cat",
    "negative_prompt": "dog",
    "seed": 3,
    "model": {"name": "base", "key": "k"},
}
SWARM = {"sui_image_params": {"prompt": "a cat", "negativeprompt": "dog", "seed": 3, "model": "base"}}
FOOOCUS = {"prompt": "a cat", "negative_prompt": "dog", "seed": "3", "base_model": "base", "steps": 30}
OF_JSON = Origin("a cat", "dog", 3, "base")


def saved(kind="PNG", **options):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind, **options)
    return buffer.getvalue()


def png(**texts):
    info = PngInfo()
    for name, text in texts.items():
        (info.add_text if text.isascii() else info.add_itxt)(name, text)
    return saved(pnginfo=info)


def with_exif(kind, tags=(), comment=None):
    exif = Image.Exif()
    for tag, value in dict(tags).items():
        exif[tag] = value
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    return saved(kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("coding", ["utf-16-be", "utf-16-le"])
def test_a_text_of_lines_is_read_wherever_programs_put_it(kind, coding):
    assert origin(png(parameters=WEBUI)) == OF_WEBUI
    assert origin(with_exif(kind, comment=b"UNICODE\0" + WEBUI.encode(coding))) == OF_WEBUI
    assert origin(with_exif(kind, comment=b"ASCII\0\0\0" + WEBUI.encode())) == OF_WEBUI
    assert origin(saved("JPEG", comment=WEBUI)) == OF_WEBUI
    umlauts = WEBUI.replace("red panda", "röter Pánda 熊猫")
    assert "熊猫" in origin(with_exif(kind, comment=b"UNICODE\0" + umlauts.encode(coding))).prompt
    assert origin(png(parameters=umlauts)).prompt.startswith("a röter Pánda")


@pytest.mark.parametrize(
    "graph, told",
    [
        (GRAPH, Origin("a fox", "blurry", 7, "sd15.safetensors")),
        (IN_PIECES, Origin("a fox", None, 9, "flux.safetensors")),
    ],
    ids=["a sampler", "in pieces"],
)
def test_a_graph_tells_what_its_sampler_was_given(graph, told):
    text = json.dumps(graph)
    assert origin(png(prompt=text, workflow="{}")) == told
    assert origin(with_exif("WEBP", {0x010F: "workflow:{}", 0x0110: f"prompt:{text}"})) == told


@pytest.mark.parametrize(
    "texts",
    [
        dict(invokeai_metadata=json.dumps(INVOKE)),
        dict(parameters=json.dumps(SWARM)),
        dict(parameters=json.dumps(FOOOCUS)),
    ],
    ids=["InvokeAI", "SwarmUI", "Fooocus"],
)
def test_mappings_of_other_programs_are_read(texts):
    assert origin(png(**texts)) == OF_JSON


def test_a_description_is_the_prompt_of_a_comment_without_one():
    comment = json.dumps({"seed": 3, "uc": "dog", "steps": 28})
    assert origin(png(Description="a cat", Comment=comment)) == Origin("a cat", "dog", 3)


LOOP = {"1": {"inputs": {"positive": ["2", 0], "images": ["1", 0]}}, "2": {"inputs": {"clip": ["1", 0]}}}


@pytest.mark.parametrize(
    "texts",
    [
        {},
        dict(prompt="a cat, as somebody typed it"),
        dict(prompt="[1, 2]"),
        dict(prompt=json.dumps({"1": 5, "2": {"inputs": {"positive": [["1"], 0], "images": 3}}})),
        dict(prompt=json.dumps(LOOP)),
        dict(prompt="[" * 5000),
        dict(parameters="Steps of stone"),
        dict(parameters=json.dumps({"prompt": 5, "seed": [1]})),
        dict(invokeai_metadata=json.dumps({"positive_prompt": "\ud800"})),
        dict(Comment="nonsense"),
    ],
    ids=str,
)
def test_what_makes_no_sense_tells_nothing(texts):
    assert origin(png(**texts)) == Origin()


def test_a_seed_that_is_none_leaves_the_prompt():
    assert origin(png(parameters=json.dumps(FOOOCUS | {"seed": True}))) == OF_JSON._replace(seed=None)
