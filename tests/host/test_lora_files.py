"""LoRA files: what the stock nodes and other programs make of them."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.host.graphs import found, judged, loop, node, stage, stock_image, train_nodes, unique

pytestmark = pytest.mark.usefixtures("emoji_models")

COMFYUI, KOHYA = "ComfyUI", "kohya (A1111, Forge, diffusers)"
WIDE = "all linear and convolutions"


def loaded(name, filename, class_type="LoraLoaderModelOnly"):
    """Nodes that put a LoRA file on the model by a stock loader and make an image."""
    inputs = dict(model=["loader", 0], lora_name=filename, strength_model=1.0)
    if class_type == "LoraLoader":
        inputs |= dict(clip=["loader", 1], strength_clip=1.0)
    return {name: node(class_type, **inputs)} | stock_image([name, 0], f"{name}_stock")


@pytest.fixture(scope="module")
def saved(host, base):
    """One training, saved by every node that can: the files, and the latents of the models nodes give."""
    run = unique("files")
    graph = loop(run, dict(learning_rate=1e-2, epochs=2, targets=WIDE, rank=2, alpha=1.0), seed=101)
    for name, naming in (("comfyui", COMFYUI), ("kohya", KOHYA)):
        graph[name] = node(
            "D3POSaveLoRA",
            model=["loader", 0],
            lora=["train", 1],
            filename_prefix=f"loras/{run}-{name}",
            naming=naming,
        )
    graph["core"] = node("SaveLoRA", lora=["train", 1], prefix=f"loras/{run}-core", steps=["train", 3])
    graph["apply"] = node(
        "LoraModelLoader", model=["loader", 0], lora=["train", 1], strength_model=1.0, bypass=False
    )
    graph["plot"] = node("LossGraphNode", loss=["train", 2], filename_prefix="loss")
    graph |= stock_image() | stock_image(["train", 0], "tuned") | stock_image(["apply", 0], "applied")
    entry = host.run(graph)
    folder = base / "output" / "loras"
    files = {
        name: folder / entry["outputs"][name]["text"][0].removeprefix("loras/")
        for name in ("comfyui", "kohya")
    }
    files |= {"core": next(folder.glob(f"{run}-core*")), "run": folder / "d3po" / f"{run}.safetensors"}
    latents = {name: found(entry, f"{name}_latent")["sha"] for name in ("stock", "tuned", "applied")}
    return SimpleNamespace(run=run, files=files, latents=latents, entry=entry, folder=folder)


def listed(saved, name):
    return saved.files[name].relative_to(saved.folder).as_posix()


def test_a_lora_changes_the_image_and_all_ways_to_apply_it_agree(host, saved):
    assert saved.latents["tuned"] == saved.latents["applied"] != saved.latents["stock"]
    graph = stage() | {"run": node("D3POLoadRun", model=["loader", 0], run=saved.run)}
    entry = host.run(graph | stock_image(["run", 0], "next"))
    assert found(entry, "next_latent")["sha"] == saved.latents["tuned"]


@pytest.mark.parametrize("name", ["run", "comfyui", "kohya", "core"])
@pytest.mark.parametrize("loader", ["LoraLoaderModelOnly", "LoraLoader"])
def test_the_stock_loaders_read_every_key_of_a_file(host, saved, name, loader):
    began = len(host.log())
    entry = host.run(stage() | loaded("file", listed(saved, name), loader))
    assert found(entry, "file_stock_latent")["sha"] == saved.latents["tuned"]
    log = host.log()[began:]
    assert "lora key not loaded" not in log and "NOT LOADED" not in log


def test_a_key_that_the_host_does_not_know_would_show(host, saved):
    """What the test above looks for is what the host says."""
    tensors = load_file(saved.files["run"])
    save_file(
        tensors | {"nobody.lora_up.weight": torch.zeros(1, 1)}, saved.folder / f"{saved.run}-odd.safetensors"
    )
    began = len(host.log())
    host.run(stage() | loaded("file", f"{saved.run}-odd.safetensors"))
    assert "lora key not loaded: nobody.lora_up.weight" in host.log()[began:]


def test_both_namings_hold_the_same_weights(saved):
    ours, kohya = load_file(saved.files["comfyui"]), load_file(saved.files["kohya"])
    assert all(name.startswith("diffusion_model.") for name in ours)
    assert all(
        name.startswith("lora_unet_") and "." not in name.rsplit(".lora_", 1)[0].removesuffix(".alpha")
        for name in kohya
    )
    assert len(ours) == len(kohya) > 30
    as_bytes = [sorted(t.numpy().tobytes() for t in tensors.values()) for tensors in (ours, kohya)]
    assert as_bytes[0] == as_bytes[1]
    assert {float(t) for name, t in ours.items() if name.endswith(".alpha")} == {1.0}


def test_diffusers_finds_a_layer_for_every_key_of_the_kohya_file(saved):
    """Its own conversion uses up all keys, and each names a layer, of the right shape, of this UNet."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    converted, alphas = _convert_non_diffusers_lora_to_diffusers(load_file(saved.files["kohya"]))
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320,), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=768,
            attention_head_dim=8)  # fmt: skip
    layers = dict(unet.named_modules())
    ups = {
        name.removeprefix("unet.").rsplit(".lora.", 1)[0].replace("_lora.up.weight", ""): tensor
        for name, tensor in converted.items()
        if ".up.weight" in name
    }
    assert len(ups) == len(alphas) == len(converted) // 2
    for name, up in ups.items():
        path = name.replace(".processor.to_out", ".to_out.0").replace(".processor.", ".")
        assert layers[path].weight.shape[0] == up.shape[0], name


def test_files_tell_what_they_are_and_how_they_were_trained(saved):
    for name in ("run", "comfyui", "kohya"):
        with safe_open(saved.files[name], framework="pt") as file:
            told = file.metadata()
        assert (
            told["modelspec.sai_model_spec"] == "1.0.0"
            and told["modelspec.architecture"] == "stable-diffusion-v1/lora"
        )
        assert told["modelspec.title"] and told["modelspec.date"] and told["modelspec.implementation"]
        assert (told["ss_network_module"], told["ss_network_dim"], float(told["ss_network_alpha"])) == (
            "networks.lora",
            "2",
            1.0,
        )
        assert float(told["ss_learning_rate"]) == 1e-2 and told["ss_steps"] == "2"
        record = json.loads(told["d3po"])
        assert record["settings"]["targets"] == WIDE and record["settings"]["beta"] == 200.0
        assert record["step"] == 2 and len(record["model"]) == 16


def test_the_loss_graph_of_the_host_draws_the_loss_map(host, saved):
    (image,) = saved.entry["outputs"]["plot"]["images"]
    assert host.image(image).size == (840, 520)
    assert (0, 0, 255) in {colour for _, colour in host.image(image).convert("RGB").getcolors(1 << 20)}


def test_saving_again_never_overwrites_a_file(host, saved):
    files = []
    for seed in (102, 103):
        graph = judged(seed=seed) | train_nodes()
        graph["save"] = node(
            "D3POSaveLoRA",
            model=["loader", 0],
            lora=["train", 1],
            filename_prefix=f"loras/{saved.run}-twice",
            naming=COMFYUI,
        )
        files.append(host.run(graph)["outputs"]["save"]["text"][0])
    assert len(set(files)) == 2
    assert all((saved.folder.parent / file).is_file() for file in files)


def test_a_runs_lora_alone_can_be_saved_and_loaded(host, saved):
    """Load Run to Save LoRA, without training."""
    graph = stage() | {"run": node("D3POLoadRun", model=["loader", 0], run=saved.run)}
    graph["save"] = node(
        "D3POSaveLoRA",
        model=["loader", 0],
        lora=["run", 1],
        filename_prefix=f"loras/{saved.run}-alone",
        naming=KOHYA,
    )
    file = saved.folder.parent / host.run(graph)["outputs"]["save"]["text"][0]
    ours, alone = load_file(saved.files["kohya"]), load_file(file)
    assert ours.keys() == alone.keys() and all(torch.equal(ours[name], alone[name]) for name in ours)
