"""DOODL: one picture's noise led along a score's gradient, in the running host."""

import re

import pytest
import torch

from d3po_core.candidates.objectives import brightness, soft_jpeg_size
from tests.host.graphs import TEXT, found, node, probe, says, stage

MEASURES = {
    "brightness (brighter)": brightness,
    "compressibility (smaller JPEG)": lambda images: -soft_jpeg_size(images).numpy(),
}


def doodl(seed, objective="brightness (brighter)", model=("loader", 0), name="doodl"):
    """The node and a look at what it gives."""
    graph = stage() | {
        "positive": node("CLIPTextEncode", clip=["loader", 1], text=TEXT),
        f"{name}_scorer": node("D3POObjectiveScorer", objective=objective, target_colour=""),
        name: node(
            "D3PODOODL", model=list(model), vae=["loader", 2], scorer=[f"{name}_scorer", 0],
            positive=["positive", 0], negative=["negative", 0], latent_image=["empty", 0], seed=seed, steps=2,
            cfg=2.0, scheduler="normal", updates=2, step=0.1),
    }  # fmt: skip
    names = ("image", "before", "latent", "noise", "score", "history", "report")
    return graph | {
        f"{name}_{output}": probe("Value", name, slot)
        for slot, output in enumerate(names)
        if output != "noise"
    }


def test_it_raises_the_score_of_epsilon_and_v_models_and_leaves_the_model_as_it_is(host):
    """The v model is the epsilon one read as one: its pictures are none, but its gradient is."""
    untouched = lambda: found(host.run(stage() | {"look": probe("Model", "loader")}), "look")
    before = untouched()
    brighter, smaller = MEASURES
    graph = doodl(1, brighter, name="first") | doodl(2, smaller, name="second")
    graph |= doodl(3, brighter, ("v", 0), "third") | {
        "v": node("ModelSamplingDiscrete", model=["loader", 0], sampling="v_prediction", zsnr=False),
        "guider": node("BasicGuider", model=["loader", 0], conditioning=["positive", 0]),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["loader", 0], scheduler="normal", steps=3, denoise=1.0),
        "again": node("SamplerCustomAdvanced", noise=["first", 3], latent_image=["empty", 0],
                      **{name: [name, 0] for name in ("guider", "sampler", "sigmas")}),
        "noise": probe("Latent", "again"),
    }  # fmt: skip
    entry = host.run(graph)
    for name, objective in {"first": brighter, "second": smaller, "third": brighter}.items():
        image, first, score, history, report = (
            found(entry, f"{name}_{output}") for output in ("image", "before", "score", "history", "report")
        )
        assert len(history) == 3 and score == max(history) > history[0] + 0.005, history
        measure = MEASURES[objective]
        assert float(measure(torch.tensor(image))[0]) == pytest.approx(score, abs=1e-5)
        assert float(measure(torch.tensor(first))[0]) == pytest.approx(history[0], abs=1e-5)
        assert float(re.search(r"but for (\S+) of it", report)[1]) < 1e-6
    assert found(entry, "noise")["shape"] == [1, 4, 4, 4]
    assert untouched() == before


def test_a_scorer_without_a_gradient_and_a_flow_model_are_refused(failure):
    graph = doodl(1)
    graph["doodl_scorer"] = node("TestScorer", numbers="{}")
    says(failure(graph), "D3PODOODL", "scorer: of numbers has no gradient", "D3PO Noise Search")
    graph = doodl(1, model=("flow", 0))
    graph["flow"] = node("UNETLoader", unet_name="flow.safetensors", weight_dtype="default")
    says(failure(graph), "D3PODOODL", "model: this is a flow model", "D3PO Noise Search")
