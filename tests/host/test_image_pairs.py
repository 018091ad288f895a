"""Training on images without trajectories: encoded through the graph's VAE and CLIP, by Diffusion-DPO."""

import math
import re

import numpy as np
import pytest
from PIL import Image

from tests.host.graphs import found, node, probe, stage, train_nodes, unique


def graph(source, dataset, split="all", **training):
    return {
        "loader": stage()["loader"],
        "import": node(
            "D3POImportPreferences", source=source, dataset=dataset, annotator="import", problems="stop"
        ),
        "encode": encoded(split),
        **train_nodes(preferences=("encode", 0), **training),
        "losses": probe("LossMap", "train", 2),
    }


def encoded(split="all"):
    return node(
        "D3POEncodePairs",
        model=["loader", 0],
        clip=["loader", 1],
        vae=["loader", 2],
        dataset=["import", 0],
        split=split,
        held_out=0.3,
        annotators="",
        joining="all",
        limit=0,
    )


@pytest.mark.usefixtures("emoji_model")
def test_imported_pairs_train_a_lora_that_ranks_held_out_pairs(host, source):
    prompt = graph(
        source,
        unique("dataset"),
        "train",
        epochs=2,
        sets_per_update=3,
        learning_rate=3e-3,
        rank=4,
        alpha=4.0,
        targets="all linear and convolutions",
        draws_per_set=2,
    )
    prompt["held"] = encoded("held out")
    prompt["train"]["inputs"]["held_out"] = ["held", 0]
    entry = host.run(prompt)
    losses = found(entry, "losses")
    assert losses["loss"][0] == pytest.approx(math.log(2), abs=1e-4), "the LoRA starts as nothing"
    assert np.mean(losses["loss"][-3:]) < losses["loss"][0]
    report = entry["outputs"]["train"]["text"][0]
    assert float(re.search(r"held-out accuracy: ([\d.]+)", report)[1]) > 0.75, report


def test_the_same_pairs_train_the_same_bits(host, source):
    def losses(dataset):
        host.post("/free", {"unload_models": True, "free_memory": True})
        return found(host.run(graph(source, dataset, sets_per_update=2, draws_per_set=1)), "losses")["loss"]

    assert losses(unique("dataset")) == losses(unique("dataset"))


def test_images_alone_cannot_be_trained_as_if_they_were_trajectories(failure, host, source):
    dataset = unique("dataset")
    host.run({"import": graph(source, dataset)["import"]})
    load = {
        "load": node(
            "D3POLoadPreferences",
            dataset=dataset,
            split="all",
            held_out=0.1,
            annotators="",
            joining="all",
            limit=0,
            since="",
            until="",
        )
    }
    message = failure(load).message
    assert "D3PO Encode" in message


def test_an_encoded_model_and_the_trained_one_must_be_the_same(failure, source):
    prompt = graph(source, unique("dataset"))
    prompt["other"] = node("UNETLoader", unet_name="other.safetensors", weight_dtype="default")
    prompt["train"]["inputs"]["model"] = ["other", 0]
    assert "another model" in failure(prompt).message


@pytest.mark.usefixtures("emoji_model")
def test_a_pair_of_one_and_the_same_picture_pulls_nowhere(host, base):
    """Had winner and loser other noise, another level, another caption or another flip, they would differ."""
    root = base / "input" / unique("same")
    for side in "wl":
        (root / side).mkdir(parents=True)
        ramp = np.broadcast_to(
            np.linspace(0, 255, 32)[None, :, None], (32, 32, 3)
        )  # not its own mirror image
        Image.fromarray(ramp.astype(np.uint8)).save(root / side / "1.png")
    prompt = graph(
        root.name, unique("dataset"), epochs=2, **{"method": "Diffusion-DPO", "caption_dropout": 0.5}
    )
    losses = found(host.run(prompt), "losses")
    assert losses["loss"] == pytest.approx([math.log(2)] * 2, abs=1e-6)
    assert max(losses["gradient_norm"]) < 1e-5 and losses["margin"] == [0.0, 0.0]
