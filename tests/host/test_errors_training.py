"""What an artist reads when training, loading or saving cannot work, and that nothing is harmed."""

import pytest
import torch
from safetensors.torch import save_file

from tests.host.graphs import (
    found,
    judged,
    loop,
    node,
    probe,
    says,
    stage,
    train_nodes,
    trained,
    unique,
    watch,
)


def with_model(graph, file):
    """The graph with another model at the train step."""
    graph["other"] = node("UNETLoader", unet_name=file, weight_dtype="default")
    graph["train"]["inputs"]["model"] = ["other", 0]
    return graph


# --- the train step ---


def test_candidates_of_a_model_with_other_weights_are_refused(failure):
    says(
        failure(with_model(trained(), "other.safetensors")),
        "D3POTrainStep",
        "preferences",
        "another model",
        "'model'",
    )


def test_candidates_of_another_kind_of_model_are_refused(failure):
    says(
        failure(with_model(trained(), "flow.safetensors")), "D3POTrainStep", "preferences", "4 channels", "16"
    )


def test_a_loss_that_is_not_finite_stops_before_the_step(host, failure, run_file, lora_file):
    run = unique("finite")
    host.run(loop(run, seed=123))
    kept = run_file(run).read_bytes(), lora_file(run).read_bytes()
    graph = loop(run, trajectory=("spoil", 0), seed=124)
    graph["spoil"] = node("TestSpoilTrajectory", trajectory=["sampler", 0], how="nan")
    error = failure(graph)
    says(error, "D3POTrainStep", "update 2", "kept the LoRA as it was", "learning_rate", "beta")
    assert (run_file(run).read_bytes(), lora_file(run).read_bytes()) == kept


def test_too_little_memory_says_what_to_lower(failure):
    graph = trained(seed=125)
    graph["trap"] = node("TestTrapModel", model=["loader", 0], error="memory", call=3, times=9)
    graph["train"]["inputs"]["model"] = ["trap", 0]
    says(
        failure(graph), "D3POTrainStep", "Out of memory", "one candidate", "checkpointing", "rank", "targets"
    )


@pytest.mark.usefixtures("emoji_model")
@pytest.mark.parametrize(
    "times, told", [(1, "checkpointing"), (2, "2 went through"), (3, "1 went through")], ids=str
)
def test_too_little_memory_for_some_passes_is_made_up_for_and_learns_the_same(host, times, told):
    graph = trained(dict(epochs=2), seed=125, candidates=4)
    usual = found(host.run(graph), "losses")
    graph["trap"] = node("TestTrapModel", model=["loader", 0], error="memory", call=4, times=times)
    graph["train"]["inputs"]["model"] = ["trap", 0]
    graph |= {"losses": probe("LossMap", "train", 2)}
    entry = host.run(graph)
    losses = found(entry, "losses")
    assert losses.keys() == usual.keys()
    assert all(losses[name] == pytest.approx(usual[name], rel=1e-3, abs=1e-5) for name in usual)
    assert told in entry["outputs"]["train"]["text"][0]


def test_too_little_memory_for_pictures_costs_nothing_but_these_pictures(host):
    usual = found(host.run(trained(dict(epochs=2), seed=125)), "losses")
    graph = trained(dict(epochs=2, vae=["loader", 2]), seed=125)
    graph["trap"] = node("TestTrapModel", model=["loader", 0], error="memory", call=9, times=1)
    graph["train"]["inputs"]["model"] = ["trap", 0]
    entry, seen = watch(host, graph)
    told = [one["data"] for one in seen if one["type"] == "d3po.learning"]
    assert not any(one["pictures"] for one in told if one["stage"] == "learning")
    assert found(entry, "losses") == usual
    (last,) = entry["outputs"]["train"]["pictures"]
    assert len(last["before"]) == len(last["now"]) == 4, "the end looks again"


def test_a_vae_of_another_kind_of_model_is_refused_before_anything_is_learned(host, failure):
    graph = trained(dict(epochs=500, vae=["other", 0]), seed=125)
    graph["other"] = node("VAELoader", vae_name="flow.safetensors")
    says(failure(graph), "D3POTrainStep", "vae: it cannot decode", "belongs to this model")


@pytest.mark.parametrize(
    "change, told",
    [
        (dict(rank=4), "rank 2"),
        (dict(alpha=4.0), "alpha 2"),
        (dict(targets="all linear"), "targets attention"),
    ],
)
def test_a_run_keeps_its_shape(host, failure, run_file, change, told):
    run = unique("shape")
    host.run(loop(run, seed=126))
    kept = run_file(run).read_bytes()
    says(failure(loop(run, change, seed=127)), "D3POTrainStep", "lora", told, "another name")
    assert run_file(run).read_bytes() == kept


def test_a_run_of_another_model_is_refused(host, failure):
    run = unique("elsewhere")
    host.run(loop(run, seed=128))
    graph = stage() | {"other": node("UNETLoader", unet_name="other.safetensors", weight_dtype="default")}
    graph |= {"run": node("D3POLoadRun", model=["other", 0], run=run), "model": probe("Model", "run")}
    says(failure(graph), "D3POLoadRun", "run", run, "another base model")


def test_a_lora_of_another_models_run_is_refused_by_the_train_step(failure):
    graph = loop(unique(), seed=129)
    graph["other"] = node("UNETLoader", unet_name="other.safetensors", weight_dtype="default")
    graph["elsewhere"] = node("D3POLoadRun", model=["other", 0], run=unique())
    graph["train"]["inputs"]["lora"] = ["elsewhere", 1]
    says(failure(graph), "D3POTrainStep", "lora", "another base model")


# --- LoRAs from elsewhere ---


@pytest.mark.parametrize(
    "class_type, inputs",
    [
        ("D3POTrainStep", {}),
        ("D3POSaveRun", {"run": "foreign"}),
        ("D3POSaveLoRA", {"model": ["loader", 0], "filename_prefix": "loras/foreign", "naming": "ComfyUI"}),
    ],
)
def test_a_lora_that_is_not_ours_is_refused(failure, base, class_type, inputs):
    graph = judged(seed=130) if class_type == "D3POTrainStep" else stage()
    graph["foreign"] = node("TestForeignLora")
    if class_type == "D3POTrainStep":
        graph |= {**train_nodes(lora=["foreign", 0]), "losses": probe("LossMap", "train", 2)}
    else:
        graph["save"] = node(class_type, lora=["foreign", 0], **inputs)
    says(failure(graph), class_type, "lora", "does not come from")
    assert not list(base.glob("output/**/*foreign*"))


@pytest.mark.parametrize("class_type", ["D3POSaveRun", "D3POSaveLoRA"])
def test_an_untrained_lora_is_not_saved(failure, base, class_type):
    run = unique("empty")
    graph = stage() | {"run": node("D3POLoadRun", model=["loader", 0], run=run)}
    graph["save"] = (
        node("D3POSaveRun", lora=["run", 1], run=run)
        if class_type == "D3POSaveRun"
        else node(
            "D3POSaveLoRA",
            model=["loader", 0],
            lora=["run", 1],
            filename_prefix=f"loras/{run}",
            naming="ComfyUI",
        )
    )
    says(failure(graph), class_type, "lora", "empty", "not been trained")
    assert not list(base.glob(f"output/**/*{run}*"))


def test_kohyas_names_for_a_model_that_has_none_are_refused(host, failure):
    graph = judged(seed=131) | train_nodes()
    graph["flow"] = node("UNETLoader", unet_name="flow.safetensors", weight_dtype="default")
    graph["save"] = node(
        "D3POSaveLoRA",
        model=["flow", 0],
        lora=["train", 1],
        filename_prefix="loras/odd",
        naming="kohya (A1111, Forge, diffusers)",
    )
    says(failure(graph), "D3POSaveLoRA", "naming", "ComfyUI's naming")


# --- files of runs ---


def damage(kind, file):
    if kind == "garbage":
        file.write_bytes(b"not a safetensors file" * 99)
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        save_file({"lora.a": torch.zeros(1)}, file)


@pytest.mark.parametrize("kind", ["garbage", "empty", "cut short", "somebody else's"])
def test_a_damaged_run_is_named_and_left_alone(host, failure, run_file, kind):
    run = unique("damaged")
    host.run(loop(run, seed=132))
    whole = run_file(run).read_bytes()
    damage(kind, run_file(run))
    kept = run_file(run).read_bytes()
    error = failure(loop(run, seed=133))
    says(error, "D3POLoadRun", str(run_file(run)), "damaged", "left as it is", "another name")
    assert run_file(run).read_bytes() == kept
    assert sorted(path.name for path in run_file(run).parent.iterdir()) == ["checkpoints", "run.safetensors"]
    run_file(run).write_bytes(whole)
    host.run(loop(run, seed=133))


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "", ".hidden", "dots.", "x" * 101, "NUL"])
def test_a_run_name_that_cannot_be_a_folder_is_refused(failure, base, name):
    before = sorted(base.rglob("*"))
    graph = stage() | {
        "run": node("D3POLoadRun", model=["loader", 0], run=name),
        "model": probe("Model", "run"),
    }
    says(failure(graph), "D3POLoadRun", "run: ", "cannot name a folder")
    assert sorted(base.rglob("*")) == before


def test_saving_under_a_bad_run_name_is_refused(failure, base):
    graph = loop(unique(), seed=134)
    graph["save"]["inputs"]["run"] = "../outside"
    says(failure(graph), "D3POSaveRun", "run: ", "cannot name a folder")
    assert not list(base.rglob("outside*"))
