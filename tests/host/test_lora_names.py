"""LoRA files under every naming, of every family: what the stock loader makes of them, and what diffusers."""

import re
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.conftest import EVERY
from tests.host import in_diffusers, test_families
from tests.host.graphs import found, node, probe, says, unique
from tests.host.support import FAMILIES
from tests.host.test_lora_files import COMFYUI, KOHYA

pytestmark = pytest.mark.usefixtures("emoji_models")

DIFFUSERS = "diffusers"
ATTENTION, BLOCKS, LINEAR, WIDE = TARGETS = (
    "attention",
    "attention and feed-forward",
    "all linear",
    "all linear and convolutions",
)
# how many layers each of TARGETS finds
LAYERS = {
    "SD1.5": (32, 40, 47, 69),
    "SD3": (7, 13, 24, 25),
    "SD2": (32, 40, 55, 69),
    "SDXL": (32, 40, 57, 71),
    "Flux": (6, 10, 23, 23),
    "Flux.2": (6, 10, 21, 21),
    "Chroma": (6, 10, 17, 17),
    "Lumina 2": (6, 15, 23, 23),
    "Z-Image": (6, 15, 23, 23),
    "Qwen-Image": (8, 12, 20, 20),
    "HunyuanVideo": (6, 10, 36, 36),
    "Wan": (8, 10, 16, 16),
}
NOT_IN_BLOCKS = re.compile(r"embed|_in\b|_in\.|final|\bhead\b|norm_out|proj_out$|\bmod|_mod|adaLN|guidance")
REFUSED = {
    ("Lumina 2", DIFFUSERS): "diffusers and ComfyUI have names in common for",
    ("Z-Image", KOHYA): "kohya's names are known for",
    ("HunyuanVideo", KOHYA): "kohya's names are known for",
}
# layers that one of the two has no name for, or takes for another
REFUSED_BEYOND_BLOCKS = {
    ("Flux.2", DIFFUSERS): "no name for 7 of this LoRA's layers, such as time_in.in_layer",
    ("Chroma", DIFFUSERS): "no name for 4 of this LoRA's layers, such as distilled_guidance_layer.in_proj",
    ("HunyuanVideo", DIFFUSERS): "no name for 23 of this LoRA's layers, such as time_in.in_layer",
}


def family(name):
    """Nodes, whose "family" gives a small MODEL of it."""
    nodes, links = test_families.family(name)
    return nodes | {"family": nodes[links["model"][0]]}


def exported(name, targets, naming, prefix, adapter="LoRA"):
    """Nodes that save some LoRA for a family's model, by the name of targets and naming."""
    lora = f"{adapter} {targets}"
    return family(name) | {
        lora: node("TestSomeLora", model=["family", 0], targets=targets, adapter=adapter),
        f"{lora} {naming}": node(
            "D3POSaveLoRA", model=["family", 0], lora=[lora, 0], filename_prefix=f"loras/{prefix}",
            naming=naming),
    }  # fmt: skip


def expressible(name, targets, naming):
    return (name, naming) not in REFUSED and (
        targets == BLOCKS or (name, naming) not in REFUSED_BEYOND_BLOCKS
    )


# what is fused, split and named in each way; the others are much like these
USUAL = ("SD1.5", "SDXL", "SD3", "Flux", "Z-Image", "Wan")


@pytest.fixture(scope="module", params=FAMILIES if EVERY else USUAL)
def saved(request, host):
    """Of a family: what targets find, and files of two LoRAs under every naming that can express them."""
    name = request.param
    graph = family(name) | {"targets": probe("Targets", "family")}
    for targets in (BLOCKS, WIDE):
        for naming in (COMFYUI, KOHYA, DIFFUSERS):
            if expressible(name, targets, naming):
                graph |= exported(name, targets, naming, unique("names"))
    entry = host.run(graph)
    outputs = entry["outputs"]
    paths = {
        (targets, naming): host.base / "output" / outputs[f"LoRA {targets} {naming}"]["text"][0]
        for targets in (BLOCKS, WIDE)
        for naming in (COMFYUI, KOHYA, DIFFUSERS)
        if expressible(name, targets, naming)
    }
    return SimpleNamespace(name=name, paths=paths, **found(entry, "targets"))


def deltas(path):
    """What a file with ComfyUI's names adds to the weights, by layer, as matrices."""
    tensors, ends = load_file(path), ".lora_up.weight"
    return {
        key.removeprefix("diffusion_model.").removesuffix(ends): (
            tensors[key].flatten(1) @ tensors[key.replace("_up", "_down")].flatten(1) * (2.0 / 3)
        )
        for key in tensors
        if key.endswith(ends)
    }


def test_targets_find_a_familys_layers_and_attention_none_outside_its_blocks(saved):
    found = [set(saved.targets[choice]) for choice in TARGETS]
    assert tuple(map(len, found)) == LAYERS[saved.name]
    assert all(narrow <= wide for narrow, wide in zip(found, found[1:]))
    outside = [path for path in found[1] if NOT_IN_BLOCKS.search(path)]
    assert not outside, outside


def test_the_stock_loader_makes_the_same_weights_of_a_file_of_every_naming(host, saved):
    began, graph = len(host.log()), family(saved.name)
    for (targets, naming), path in saved.paths.items():
        listed = path.relative_to(host.base / "output" / "loras").as_posix()
        graph[f"{targets} {naming}"] = node(
            "LoraLoaderModelOnly", model=["family", 0], lora_name=listed, strength_model=1.0
        )
        if naming != COMFYUI:
            look = probe("Apart", f"{targets} {COMFYUI}")
            look["inputs"] |= dict(other=[f"{targets} {naming}", 0], base=["family", 0])
            graph[f"{targets} {naming} look"] = look
    entry = host.run(graph)
    for targets, naming in saved.paths:
        if naming != COMFYUI:
            seen = found(entry, f"{targets} {naming} look")
            assert seen["layers"] == len(saved.targets[targets]), (targets, naming)
            assert seen["apart"] < (1e-5 if naming == DIFFUSERS else 1e-7), (targets, naming, seen)
    log = host.log()[began:]
    assert "lora key not loaded" not in log and "NOT LOADED" not in log and "ERROR" not in log


# the most layers that diffusers reads of a family's file; of kohya's names only what its conversions know
READ = {
    DIFFUSERS: {name: WIDE for name in FAMILIES if (name, DIFFUSERS) not in REFUSED}
    | {name: BLOCKS for name, naming in REFUSED_BEYOND_BLOCKS},
    KOHYA: {name: WIDE for name in ("SD2", "SDXL", "Qwen-Image")}  # SD1.5's: test_lora_files
    | {name: BLOCKS for name in ("Flux", "Flux.2", "Chroma", "Wan")},
}


def test_diffusers_adds_to_each_of_its_weights_what_the_lora_adds_to_the_hosts(saved):
    """By its own loading of LoRA files against its own conversion of whole checkpoints."""
    for naming, targets in ((naming, of[saved.name]) for naming, of in READ.items() if saved.name in of):
        ours = deltas(saved.paths[targets, COMFYUI])
        with in_diffusers.of_small_networks():
            network = in_diffusers.loaded(saved.name, load_file(saved.paths[targets, naming]))
            expected = in_diffusers.expected(saved.name, saved.shapes, ours)
        updates = in_diffusers.updates(network)
        assert updates.keys() == expected.keys()
        assert len(expected) >= len(ours) == len(saved.targets[targets])
        for key, update in updates.items():
            torch.testing.assert_close(update, expected[key], rtol=1e-4, atol=1e-6)
        inputs = in_diffusers.inputs(saved.name)
        if inputs:
            merged = in_diffusers.with_updates(saved.name, network, expected)
            with torch.no_grad():
                pair = network(**inputs).sample, merged(**inputs).sample
            torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name, naming, targets, told",
    [
        *((*of, BLOCKS, told) for of, told in REFUSED.items()),
        *((*of, WIDE, told) for of, told in REFUSED_BEYOND_BLOCKS.items()),
    ],
)
def test_what_a_naming_cannot_express_is_refused_before_anything_is_written(
    host, failure, name, naming, targets, told
):
    prefix = unique("refused")
    says(failure(exported(name, targets, naming, prefix)), "D3POSaveLoRA", "naming: ", told, "Choose")
    assert not list((host.base / "output" / "loras").glob(f"{prefix}*"))


def test_a_run_starts_from_a_file_whose_layers_are_parts_of_the_models(host, saved):
    targets = BLOCKS if (saved.name, DIFFUSERS) in REFUSED_BEYOND_BLOCKS else WIDE
    ours, theirs = saved.paths[targets, COMFYUI], saved.paths.get((targets, DIFFUSERS))
    if theirs:
        ours, theirs = (
            path.relative_to(host.base / "output" / "loras").as_posix() for path in (ours, theirs)
        )
        graph = family(saved.name) | {
            "run": node("D3POLoadRun", model=["family", 0], run=unique("from"), start_from=theirs),
            "begun": node("TestBegun", model=["family", 0], lora=["run", 1]),
            "ours": node("LoraLoaderModelOnly", model=["family", 0], lora_name=ours, strength_model=1.0),
            "look": probe("Apart", "ours"),
        }
        graph["look"]["inputs"] |= dict(other=["begun", 0], base=["family", 0])
        entry = host.run(graph)
        assert entry["outputs"]["run"]["text"] == [f"{theirs}: {len(saved.targets[targets])} layers"]
        assert found(entry, "look")["apart"] < 1e-5


@pytest.mark.parametrize("adapter", ["DoRA", "LoHa", "LoKr"])
def test_diffusers_gets_no_adapter_that_it_does_not_load(host, failure, adapter):
    prefix = unique("refused")
    graph = exported("Qwen-Image", BLOCKS, DIFFUSERS, prefix, adapter)
    says(failure(graph), "D3POSaveLoRA", "naming: ", adapter, "Choose")
    assert not list((host.base / "output" / "loras").glob(f"{prefix}*"))


def test_rslora_has_its_scale_in_every_naming(host):
    names = {naming: f"rsLoRA {BLOCKS} {naming}" for naming in (COMFYUI, DIFFUSERS)}
    graph = {}
    for naming in names:
        graph |= exported("Flux", BLOCKS, naming, unique("rslora"), "rsLoRA")
    outputs = host.run(graph)["outputs"]
    paths = {naming: host.base / "output" / outputs[name]["text"][0] for naming, name in names.items()}
    ours, theirs = map(load_file, paths.values())
    with safe_open(paths[DIFFUSERS], framework="pt") as file:
        assert file.metadata()["ss_network_alpha"] == file.metadata()["ss_network_dim"] == "3"
    up = ours["diffusion_model.double_blocks.0.img_attn.proj.lora_up.weight"]
    torch.testing.assert_close(
        theirs["transformer.transformer_blocks.0.attn.to_out.0.lora_B.weight"], up * 2.0 / 3**0.5
    )
