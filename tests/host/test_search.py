"""Better pictures without training: the best of several, and a search for better noise."""

import json

import numpy as np
import pytest
import torch

from d3po_core.candidates.objectives import brightness
from tests.host.graphs import TEXT, Once, found, node, probe, says, stage, watch

SAMPLING = dict(steps=3, cfg=2.0, scheduler="normal", denoise=1.0)
PROMPTS = dict(positive=["positive", 0], negative=["negative", 0])
WIRES = dict(model=["loader", 0], latent_image=["empty", 0], **PROMPTS)


def searching(node_type, seed=7, sampler="euler", **inputs):
    """A node that searches by brightness."""
    return stage() | {
        "positive": node("CLIPTextEncode", clip=["loader", 1], text=TEXT),
        "scorer": node("D3POObjectiveScorer", objective="brightness (brighter)", target_colour=""),
        "search": node(
            node_type, **WIRES, **SAMPLING, vae=["loader", 2], scorer=["scorer", 0], seed=seed,
            sampler_name=sampler, per_pass=3, **inputs),
    }  # fmt: skip


def looked_at(graph, names, source="search"):
    """The graph with a look at a node's outputs in their order."""
    return graph | {name: probe("Value", source, slot) for slot, name in enumerate(names)}


def best_of(sampler="euler", candidates=5, keep=3, **inputs):
    return searching("D3POBestOfN", sampler=sampler, candidates=candidates, keep=keep, **inputs)


@pytest.mark.usefixtures("emoji_model")
@pytest.mark.parametrize("sampler, off", [("euler", 1e-4), ("euler_ancestral", 0)])
def test_the_best_come_first_and_ksampler_makes_them_again_of_their_seeds(host, sampler, off):
    graph = looked_at(best_of(sampler), ["images", "latent", "seeds", "scores", "report"])
    graph["again"] = node("KSampler", **WIRES, **SAMPLING, sampler_name=sampler, seed=["search", 2])
    graph["repeated"] = probe("Value", "again")
    entry = host.run(graph)
    images, latents, seeds, scores, report, repeated = (
        found(entry, name) for name in ("images", "latent", "seeds", "scores", "report", "repeated")
    )
    assert len(images) == 3 and len(set(seeds)) == 3
    assert set(seeds) < set(range(7, 12))
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(brightness(torch.tensor(images)), scores, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(repeated), latents, rtol=0, atol=off)
    assert f"the best of 5 pictures scores {scores[0]:.4g} (seed {seeds[0]})" in report
    assert ("were sampled one at a time" in report) == (sampler == "euler_ancestral")


def test_pictures_on_which_the_scorer_fails_are_left_out_and_it_gets_the_prompt(host, failure):
    graph = best_of(candidates=4, keep=4, seed=10)
    graph["scorer"] = node("TestScorer", numbers=json.dumps({TEXT: [1, "nan", 3, 2]}))
    entry = host.run(looked_at(graph, ["images", "latent", "seeds", "scores", "report"]))
    assert found(entry, "seeds") == [12, 13, 10] and found(entry, "scores") == [3, 2, 1]
    assert len(found(entry, "images")) == len(found(entry, "latent")) == 3
    assert "no finite number: seeds 11" in found(entry, "report")
    graph["text"] = node("PrimitiveString", value="another")
    graph["search"]["inputs"]["prompt"] = ["text", 0]
    says(failure(looked_at(graph, ["images"])), "D3POBestOfN", "scorer: ", "'another'")
    graph["scorer"]["inputs"]["numbers"] = json.dumps({"another": [1, 2, 3]})
    says(failure(looked_at(graph, ["images"])), "D3POBestOfN", "scorer: ", "3 scores for 4 images")
    graph["empty"]["inputs"]["batch_size"] = 2
    says(failure(looked_at(graph, ["images"])), "D3POBestOfN", "latent_image: it holds 2 latents")


def test_an_interrupt_ends_a_search_at_once(host):
    graph = looked_at(best_of(candidates=2000), ["images"])
    entry, seen = watch(host, graph, Once(host.interrupt, "search"))
    assert seen[-1]["type"] == "execution_interrupted" and "images" not in entry["outputs"]
    progress = [m["data"]["value"] for m in seen if m["type"] == "progress" and m["data"]["node"] == "search"]
    assert max(progress) < 1000


@pytest.mark.usefixtures("emoji_model")
@pytest.mark.parametrize("sampler, off", [("euler", 1e-4), ("euler_ancestral", 0)])
def test_a_search_in_the_noise_rises_and_its_noise_makes_the_picture_again(host, sampler, off):
    graph = searching("D3PONoiseSearch", sampler=sampler, seed=3, neighbours=3, step=0.6, rounds=3)
    graph = looked_at(graph, ["image", "latent", "noise", "score", "history", "report"])
    graph |= {
        "guider": node("CFGGuider", model=["loader", 0], **PROMPTS, cfg=2.0),
        "sampler": node("KSamplerSelect", sampler_name=sampler),
        "sigmas": node("BasicScheduler", model=["loader", 0], scheduler="normal", steps=3, denoise=1.0),
        "again": node("SamplerCustomAdvanced", noise=["search", 2], latent_image=["empty", 0],
                      **{name: [name, 0] for name in ("guider", "sampler", "sigmas")}),
        "noise": probe("Value", "again"),
        "plain": node("KSampler", **WIRES, **SAMPLING, sampler_name=sampler, seed=3),
        "decode": node("VAEDecode", samples=["plain", 0], vae=["loader", 2]),
        "first": probe("Value", "decode"),
    }  # fmt: skip
    entry = host.run(graph)
    history, score = found(entry, "history"), found(entry, "score")
    assert len(history) == 4 and history == sorted(history) and history[-1] == score > history[0] + 0.01
    first, image = (brightness(torch.tensor(found(entry, name))) for name in ("first", "image"))
    assert history[0] == pytest.approx(float(first[0]), abs=1e-4)
    assert score == pytest.approx(float(image[0]), abs=1e-5)
    np.testing.assert_allclose(found(entry, "noise"), found(entry, "latent"), rtol=0, atol=off)
    assert "10 pictures; " in found(entry, "report")
