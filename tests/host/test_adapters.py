"""Adapters of every kind in the host, and runs that start from a LoRA file."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import EVERY
from tests.host.graphs import (
    cached_nodes,
    found,
    judged,
    loop,
    node,
    same_tensors,
    says,
    sized,
    stage,
    stock_image,
    train_nodes,
    trained,
    unique,
    watch,  # fmt: skip
)
from tests.host.test_lora_files import COMFYUI, KOHYA, WIDE, loaded
from tests.host.test_model_untouched import look
from tests.host.test_runs import LONG, Midway, went_on

KINDS = ("LoRA", "rsLoRA", "DoRA", "LoHa", "LoKr")
# rsLoRA's files are LoRA's, and LoHa's go LoKr's way
USUAL = KINDS if EVERY else ("LoRA", "DoRA", "LoKr")
SHAPE = dict(targets=WIDE, rank=2, alpha=2.0)
TEXT_ENCODER = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def saver(name, naming, prefix):
    return node(
        "D3POSaveLoRA", model=["loader", 0], lora=[name, 1], filename_prefix=f"loras/{prefix}", naming=naming
    )


def file_of(host, entry, name):
    return host.base / "output" / entry["outputs"][name]["text"][0]


def listed(host, path):
    """A LoRA file as the host lists it."""
    return path.relative_to(host.base / "output" / "loras").as_posix()


def latent(host, graph, model):
    return found(host.run(graph | stock_image(model, "seen")), "seen_latent")["sha"]


def start(run, file, **inputs):
    return node("D3POLoadRun", model=["loader", 0], run=run, start_from=file, **inputs)


def test_the_host_merges_what_an_adapter_of_each_kind_computes(host):
    entry = host.run({"look": node("TestAdapterMerge", nonce=unique())})
    found = json.loads(entry["outputs"]["look"]["text"][0])
    assert found.keys() == set(KINDS)
    assert all(apart < 1e-5 for apart in found.values()), found


@pytest.mark.parametrize("kind", USUAL)
def test_training_an_adapter_of_each_kind_leaves_the_model_as_it_was(host, kind):
    before = look(host)
    host.run(trained(dict(targets=WIDE, adapter=kind), seed=301))
    assert look(host) == before


@pytest.fixture(scope="module", params=USUAL)
def saved(request, host):
    """A run of an adapter of each kind: its files, and the latent of the train step's model."""
    kind, run = request.param, unique(request.param)
    graph = loop(run, SHAPE | dict(adapter=kind, learning_rate=2e-2, epochs=2), seed=301)
    graph["comfyui"] = saver("train", COMFYUI, f"{run}-comfyui")
    if kind != "DoRA":
        graph["kohya"] = saver("train", KOHYA, f"{run}-kohya")
    entry = host.run(graph | stock_image() | stock_image(["train", 0], "tuned"))
    latents = {name: found(entry, f"{name}_latent")["sha"] for name in ("stock", "tuned")}
    files = {name: file_of(host, entry, name) for name in ("comfyui", "kohya") if name in graph}
    files["run"] = host.base / "output" / "loras" / "d3po" / f"{run}.safetensors"
    return SimpleNamespace(kind=kind, run=run, files=files, latents=latents)


def test_the_stock_loader_makes_the_train_steps_model_of_every_file(host, saved):
    assert saved.latents["tuned"] != saved.latents["stock"]
    for path in saved.files.values():
        began = len(host.log())
        entry = host.run(stage() | loaded("file", listed(host, path)))
        assert found(entry, "file_stock_latent")["sha"] == saved.latents["tuned"], path
        log = host.log()[began:]
        assert "lora key not loaded" not in log and "NOT LOADED" not in log and "ERROR" not in log


def test_a_run_goes_on_with_its_kind_alone(host, failure, saved):
    graph = stage() | {"run": node("D3POLoadRun", model=["loader", 0], run=saved.run)}
    assert latent(host, graph, ["run", 0]) == saved.latents["tuned"]
    other = KINDS[KINDS.index(saved.kind) - 1]
    says(
        failure(loop(saved.run, SHAPE | dict(adapter=other), seed=302)),
        "D3POTrainStep",
        f"adapter {saved.kind}",
        "Set the same again",
    )
    host.run(loop(saved.run, SHAPE | dict(adapter=saved.kind), seed=302))


def test_a_file_says_its_kind(saved):
    with safe_open(saved.files["comfyui"], framework="pt") as file:
        told = file.metadata()
    module, arguments = told["ss_network_module"], json.loads(told.get("ss_network_args", "{}"))
    assert json.loads(told["d3po"])["settings"]["adapter"] == saved.kind
    if saved.kind in ("LoRA", "rsLoRA"):
        assert module == "networks.lora" and not arguments
    else:
        assert module == "lycoris.kohya"
        assert arguments["algo"] == {"DoRA": "locon", "LoHa": "loha", "LoKr": "lokr"}[saved.kind]
    (alpha,) = {float(t) for name, t in load_file(saved.files["comfyui"]).items() if name.endswith(".alpha")}
    assert alpha == pytest.approx(float(told["ss_network_alpha"]))
    assert told["ss_network_alpha"] == str(2.0 * 2**0.5 if saved.kind == "rsLoRA" else 2.0)


def test_both_namings_hold_the_same_weights_of_every_kind(saved):
    if saved.kind == "DoRA":
        return
    ours, kohya = load_file(saved.files["comfyui"]), load_file(saved.files["kohya"])
    assert all(name.startswith("lora_unet_") and name.count(".") <= 2 for name in kohya)
    as_bytes = [sorted(t.numpy().tobytes() for t in tensors.values()) for tensors in (ours, kohya)]
    assert as_bytes[0] == as_bytes[1] and len(ours) == len(kohya) > 30


def test_dora_is_not_saved_for_programs_that_would_spoil_it(failure):
    graph = judged(seed=301) | {
        **train_nodes(**SHAPE, adapter="DoRA"),
        "save": saver("train", KOHYA, unique()),
    }
    says(failure(graph), "D3POSaveLoRA", "naming: ", "DoRA", "Choose ComfyUI's naming")


def test_dropout_is_for_the_adapters_that_have_it(host, failure):
    run = unique("dropout")
    entry = host.run(loop(run, dict(adapter="DoRA", dropout=0.3, epochs=2), seed=301))
    assert "2 updates" in entry["outputs"]["train"]["text"][0]
    graph = judged(seed=301) | train_nodes(adapter="LoKr", dropout=0.3)
    graph["save"] = node("D3POSaveRun", lora=["train", 1], run=unique())
    says(failure(graph), "D3POTrainStep", "dropout: LoKr has none", "Set it to 0")


# --- starting from a LoRA file ---


@pytest.fixture(scope="module")
def files(host):
    """A LoRA for half of the layers, under every naming, as the host lists the files."""
    run = unique("start")
    half = dict(targets="attention and feed-forward", rank=2, alpha=2.0)
    graph = loop(run, half | dict(learning_rate=2e-2, epochs=2), seed=311)
    graph |= {
        "comfyui": saver("train", COMFYUI, f"{run}-comfyui"),
        "kohya": saver("train", KOHYA, f"{run}-kohya"),
    }
    graph["loha"] = saver("other", COMFYUI, f"{run}-loha")
    graph |= train_nodes("other", adapter="LoHa")
    entry = host.run(graph)
    paths = {name: file_of(host, entry, name) for name in ("comfyui", "kohya", "loha")}
    paths["diffusers"] = paths["kohya"].with_name(f"{run}-diffusers.safetensors")
    save_file(diffusers_names(load_file(paths["kohya"])), paths["diffusers"])
    paths["text encoder"] = paths["kohya"].with_name(f"{run}-te.safetensors")
    save_file(load_file(paths["kohya"]) | lora_for(TEXT_ENCODER, 3072, 768), paths["text encoder"])
    return {name: listed(host, path) for name, path in paths.items()}


def lora_for(name, outputs, inputs):
    return {
        f"{name}.lora_up.weight": torch.ones(outputs, 1),
        f"{name}.lora_down.weight": torch.ones(1, inputs),
        f"{name}.alpha": torch.tensor(1.0),
    }


def diffusers_names(kohya):
    """diffusers' own conversion. It tells alphas apart from the weights; here they come to a scale of 1."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    tensors, alphas = _convert_non_diffusers_lora_to_diffusers(dict(kohya))
    assert set(alphas.values()) == {2.0} and len(tensors) == 2 * len(alphas)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def deltas(path):
    """What a LoRA file adds to the weights, by layer."""
    tensors = load_file(path)
    return {
        name.removesuffix(".lora_up.weight"): (
            tensors[name].flatten(1)
            @ tensors[name.replace("_up", "_down")].flatten(1)
            * tensors[name.replace("lora_up.weight", "alpha")]
            / tensors[name].shape[1]
        )
        for name in tensors
        if name.endswith(".lora_up.weight")
    }


@pytest.mark.parametrize("name", ["comfyui", "kohya", "diffusers", "text encoder"])
def test_a_new_run_samples_with_the_file_it_starts_from(host, files, name):
    model = latent(host, stage() | {"run": start(unique("from"), files[name])}, ["run", 0])
    assert model == latent(host, stage() | loaded("file", files[name]), ["file", 0])
    assert model != latent(host, stage(), ["loader", 0])


@pytest.mark.parametrize(
    "kind, rank, name", [("LoRA", 2, "kohya"), ("rsLoRA", 3, "kohya"), ("LoRA", 5, "diffusers")]
)
def test_training_goes_on_from_the_file(host, files, lora_file, kind, rank, name):
    run = unique("from")
    shape = dict(targets=WIDE, rank=rank, alpha=3.0, adapter=kind)
    graph = loop(run, shape | dict(learning_rate=0.0), seed=312)
    graph["run"] = start(run, files[name])
    host.run(graph)
    kept, before = deltas(lora_file(run)), deltas(host.base / "output" / "loras" / files["comfyui"])
    assert len(before) < len(kept)
    for path, delta in kept.items():
        expected = before.get(path, torch.zeros_like(delta))
        torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-8)
    entry = host.run(loop(run, shape | dict(learning_rate=1e-3), seed=313))
    assert "(2 in all)" in entry["outputs"]["train"]["text"][0]
    assert all(not torch.equal(delta, kept[path]) for path, delta in deltas(lora_file(run)).items())


def test_the_reference_may_be_the_file(host, files):
    """The margin of a first update is 0 against what sampled, to float32's rounding, and not against base."""
    margins = {}
    for reference in ("base", "round start"):
        run = unique("from")
        graph = sized(loop(run, dict(targets=WIDE, rank=2, reference=reference), seed=314), 64)
        graph["run"] = start(run, files["kohya"])
        history = host.run(graph | {"losses": node("TestProbeLossMap", value=["train", 2], nonce=unique())})
        margins[reference] = found(history, "losses")["margin"][0]
    # merged weights against an adapter's
    assert abs(margins["round start"]) < 1e-4 * abs(margins["base"]), margins


def test_a_first_round_from_a_file_that_was_cancelled_goes_on(host, files, run_file):
    run, other = unique("from"), unique("straight")
    graphs = []
    for name in (run, other):
        graphs.append(loop(name, dict(targets=WIDE) | LONG, seed=317))
        graphs[-1]["run"] = start(name, files["kohya"])
    watch(host, graphs[0], Midway(host.interrupt, "train"))
    assert went_on(host.run(graphs[0])) >= 3
    host.run(graphs[1])
    assert same_tensors(run_file(run), run_file(other))


def test_once_a_run_is_saved_what_it_started_from_has_no_effect(host, files):
    run = unique("from")
    graph = loop(run, dict(targets=WIDE, rank=2, learning_rate=1e-2), seed=315)
    graph["run"] = start(run, files["kohya"])
    tuned = found(host.run(graph | stock_image(["train", 0], "tuned")), "tuned_latent")["sha"]
    for file in (files["kohya"], "nothing"):
        assert latent(host, stage() | {"run": start(run, file)}, ["run", 0]) == tuned


def test_a_file_that_changes_is_read_again(host, files):
    path = host.base / "output" / "loras" / files["kohya"]
    copy = path.with_name(f"{unique('copy')}.safetensors")
    copy.write_bytes(path.read_bytes())
    graph = stage() | {"run": start(unique("from"), listed(host, copy))}
    before = latent(host, graph, ["run", 0])
    assert "run" in cached_nodes(host.run(graph | stock_image(["run", 0], "again")))
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, copy)
    assert latent(host, graph, ["run", 0]) != before


def test_the_text_encoders_part_is_told_to_be_left_out(host, files):
    for name, left in (("text encoder", True), ("kohya", False)):
        graph = stage() | {"run": start(unique("from"), files[name])}
        (told, *more) = host.run(graph | stock_image(["run", 0], "seen"))["outputs"]["run"]["text"]
        assert told.startswith(f"{files[name]}: ") and told.endswith(" layers")
        assert bool(more) == left
    graph = stage() | {"run": start(unique("from"), files["text encoder"])}
    _, more = host.run(graph | stock_image(["run", 0], "seen"))["outputs"]["run"]["text"]
    assert more.startswith("3 tensors are left out") and "text encoder" in more and TEXT_ENCODER in more


@pytest.mark.parametrize(
    "training, told",
    [
        (
            dict(rank=1, targets=WIDE),
            "rank: the LoRA file to start from has rank 2, and this one 1. Set rank to 2 or more",
        ),
        (
            dict(rank=2, targets="attention"),
            "targets: the LoRA file to start from also adapts layers outside of 'attention'",
        ),
        (
            dict(rank=2, targets=WIDE, adapter="LoKr"),
            "adapter: a LoRA file to start from does not go into LoKr",
        ),
    ],
)
def test_a_file_without_room_in_the_train_step_is_refused_with_what_to_set(
    files, failure, run_file, training, told
):
    run = unique("from")
    graph = loop(run, training, seed=316)
    graph["run"] = start(run, files["kohya"])
    says(failure(graph), "D3POTrainStep", told)
    assert not run_file(run).exists()


def test_files_that_are_no_lora_for_this_model_are_refused(host, files, failure):
    folder = host.base / "output" / "loras"
    odd, wide = f"{unique('odd')}.safetensors", f"{unique('wide')}.safetensors"
    save_file(lora_for("somebody", 2, 2), folder / odd)
    save_file(lora_for("lora_unet_down_blocks_0_attentions_0_proj_in", 640, 640), folder / wide)
    for file, told in (
        (files["loha"], "is not a plain LoRA"),
        (odd, "has nothing for this model"),
        (wide, "for another base model"),
    ):
        graph = stage() | {"run": start(unique("from"), file)} | stock_image(["run", 0], "seen")
        says(failure(graph), "D3POLoadRun", f"start_from: {file}", told)
