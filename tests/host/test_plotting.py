"""Runs that were really trained, drawn by the node."""

import io
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.host.graphs import (
    TEXT,  # fmt: skip
    cached_nodes,
    found,
    loop,
    node,
    probe,
    says,
    stage,
    trained,
    unique,
)
from tests.host.test_runs import with_held_out

SCREENSHOTS = Path(__file__).resolve().parents[1] / "screenshots"
PLOT = dict(
    runs="",
    metrics="loss, margin, implicit accuracy, winner log-ratio, loser log-ratio, KL to reference",
    smoothing=0.6,
    width=840,
    height=520,
)
BLUE, ORANGE, GREEN = ((0, 114, 178), (213, 94, 0), (0, 158, 115))


def plot(**inputs):
    return node("D3POPlot", **(PLOT | inputs))


def picture(host, entry, name="plot"):
    """The preview that the node shows, uint8 [height, width, 3]."""
    (shown,) = entry["outputs"][name]["images"]
    query = urllib.parse.urlencode(shown)
    with urllib.request.urlopen(f"{host.url}/view?{query}") as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))


def keep(picture, name):
    """To be looked at."""
    SCREENSHOTS.mkdir(exist_ok=True)
    Image.fromarray(picture).save(SCREENSHOTS / f"{name}.png")


def drawn(picture, colour):
    """Whether a curve of this colour is below the legend."""
    return (picture[60:] == colour).all(-1).sum() > 50


@pytest.fixture(scope="module")
def two_runs(host):
    """Names of two saved runs: one of 8 updates, one of 2 rounds of 4 with held-out figures."""
    names = unique("plain"), unique("held")
    host.run(loop(names[0], dict(epochs=8), seed=301))
    for seed in (302, 303):
        host.run(with_held_out(loop(names[1], dict(epochs=4), seed=seed), seed=304))
    return names


def test_the_run_at_hand_and_two_saved_ones_are_in_one_picture(host, two_runs):
    graph = trained(dict(epochs=12), seed=305) | {
        "plot": plot(loss_map=["train", 2], runs=", ".join(two_runs)),
        "output": node("PreviewImage", images=["plot", 0]),
    }
    entry = host.run(graph)
    image = picture(host, entry)
    assert image.shape == (520, 840, 3)
    assert all(drawn(image, colour) for colour in (BLUE, ORANGE, GREEN))
    assert (picture(host, entry, "output") == image).all()
    keep(image, "plot_three_runs")


def test_saved_runs_alone_are_drawn_without_a_train_step(host, two_runs):
    inputs = dict(
        runs="\n".join(two_runs),
        metrics="loss, held-out accuracy, gradient_norm, KL to reference",
        width=1200,
        height=800,
    )
    image = picture(host, host.run({"plot": plot(**inputs)}))
    assert (
        image.shape == (800, 1200, 3)
        and drawn(image, BLUE)
        and drawn(image, ORANGE)
        and not drawn(image, GREEN)
    )
    keep(image, "plot_saved_runs")


def test_the_same_graph_draws_the_same_picture(host, two_runs):
    graph = {"plot": plot(runs=two_runs[0])}
    first = picture(host, host.run(graph))
    host.post("/free", {"unload_models": True, "free_memory": True})
    assert (picture(host, host.run(graph | {"plot": plot(runs=two_runs[0], smoothing=0.6)})) == first).all()


def test_a_picture_comes_from_the_cache_until_a_named_run_changes(host, two_runs):
    run = unique("growing")
    host.run(loop(run, dict(epochs=2), seed=306))
    graph = {"plot": plot(runs=run, width=640, height=400)}  # in every prompt: the host forgets what is not
    before = picture(host, host.run(graph))
    host.run(graph | loop(two_runs[0], seed=307))
    assert "plot" in cached_nodes(host.run(graph))
    host.run(graph | loop(run, dict(epochs=3), seed=308))
    entry = host.run(graph)
    assert "plot" not in cached_nodes(entry) and not (picture(host, entry) == before).all()


@pytest.mark.usefixtures("emoji_model")
def test_another_trainers_loss_map_is_drawn(host):
    graph = stage() | {
        "positive": node("CLIPTextEncode", clip=["loader", 1], text=TEXT),
        "other": node(
            "TrainLoraNode",
            model=["loader", 0],
            latents=["empty", 0],
            positive=["positive", 0],
            batch_size=1,
            grad_accumulation_steps=1,
            steps=6,
            learning_rate=1e-3,
            rank=2,
            optimizer="AdamW",
            loss_function="MSE",
            seed=0,
            training_dtype="fp32",
            lora_dtype="fp32",
            quantized_backward=False,
            algorithm="LoRA",
            gradient_checkpointing=False,
            checkpoint_depth=1,
            offloading=False,
            existing_lora="[None]",
            bucket_mode=False,
            bypass_mode=False,
        ),
        "plot": plot(loss_map=["other", 1]),
        "losses": probe("LossMap", "other", 1),
    }
    entry = host.run(graph)
    assert set(found(entry, "losses")) == {"loss"} and drawn(picture(host, entry), BLUE)


@pytest.mark.parametrize(
    "inputs, told",
    [
        (dict(), "nothing to draw"),
        (dict(runs="nobody"), "runs: there is no run 'nobody'"),
        (dict(runs="{run}, ../x"), "runs: '../x' cannot name a folder"),
        (dict(runs="{run}", metrics="loss, acuracy"), "metrics: acuracy cannot be drawn"),
        (dict(runs="{run}", metrics="held-out accuracy"), "metrics: held-out accuracy cannot be drawn"),
        (dict(runs="{run}", metrics=" , "), "metrics: name at least one"),
    ],
)
def test_what_cannot_be_drawn_is_told_with_what_there_is(failure, two_runs, inputs, told):
    inputs = {name: value.format(run=two_runs[0]) for name, value in inputs.items()}
    there = {"nothing": two_runs[1], "runs: t": two_runs[1], "runs: '": "'-'", "metrics": "There are: loss, "}
    says(
        failure({"plot": plot(**inputs)}),
        "D3POPlot",
        told,
        *(v for k, v in there.items() if told.startswith(k)),
    )
