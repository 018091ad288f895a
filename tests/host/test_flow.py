"""Flow models learn from image pairs, and recorded candidates give back the noise that they came from."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

from tests.host.graphs import found, node, probe, recording, stage, train_nodes, unique
from tools.model_card import background_of, name_background
from tools.model_pictures import COLOURS as WORDS
from tools.model_pictures import caption
from tools.sheet import as_batch
from tools.stock import stock_images

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60)}


@pytest.fixture(scope="module")
def source(base):
    """Three pairs in ComfyUI's input folder: plain colours, the brighter one preferred."""
    root = base / "input" / unique("colours")
    for side, shade in {"w": 1.0, "l": 0.45}.items():
        (root / side).mkdir(parents=True)
        for name, colour in COLOURS.items():
            Image.new("RGB", (64, 64), tuple(int(shade * part) for part in colour)).save(
                root / side / f"{name}.png"
            )
            (root / side / f"{name}.txt").write_text(f"a {name} background")
    return root.name


def graph(source, encoded=("flow", 0), trained=("flow", 0), **training):
    """Image pairs that train the flow model; `shifted` is the same one with another shift."""
    return stage() | {
        "flow": node("UNETLoader", unet_name="flow.safetensors", weight_dtype="default"),
        "vae": node("VAELoader", vae_name="flow.safetensors"),
        "shifted": node("ModelSamplingSD3", model=["flow", 0], shift=6.0),
        "import": node("D3POImportPreferences", source=source, dataset=unique("dataset"), annotator="import",
                       problems="stop"),
        "encode": node("D3POEncodePairs", model=list(encoded), clip=["loader", 1], vae=["vae", 0],
                       dataset=["import", 0], split="all", held_out=0.3, annotators="", joining="all",
                       limit=0),
        **train_nodes(model=trained, preferences=("encode", 0), targets="all linear and convolutions",
                      **training),
        "losses": probe("LossMap", "train", 2),
    }  # fmt: skip


def sampled(model, name):
    """Nodes that sample a flow MODEL with the stock KSampler."""
    return {
        "text": node("CLIPTextEncode", clip=["loader", 1], text="a red background"),
        "sixteen": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        f"{name}_sample": node(
            "KSampler", model=list(model), seed=5, steps=4, cfg=1.0, sampler_name="euler", scheduler="simple",
            positive=["text", 0], negative=["negative", 0], latent_image=["sixteen", 0], denoise=1.0),
        name: probe("Latent", f"{name}_sample"),
    }  # fmt: skip


def test_the_small_flow_model_makes_what_its_prompts_say(host):
    """By the stock nodes alone: grounds have the colours that the prompts name."""
    texts = [caption("fox", word) for word in WORDS]
    images = stock_images(
        host, texts, range(len(texts)), steps=5, sampler_name="euler", scheduler="simple", flow=True
    )
    pixels = torch.from_numpy(as_batch(images)).float().movedim(-1, 1)
    named = name_background(background_of(pixels), random.Random(0))
    assert (named == torch.arange(len(WORDS))).sum() >= len(WORDS) - 1


@pytest.mark.parametrize("model", ["flow", "shifted"])
def test_image_pairs_train_a_flow_model_that_the_stock_sampler_samples(host, source, model):
    prompt = graph(
        source, (model, 0), (model, 0), epochs=6, sets_per_update=3, learning_rate=1e-3, dpo_beta=100.0
    )
    prompt |= {"before": probe("Model", model)} | sampled((model, 0), "base") | sampled(("train", 0), "tuned")
    entry = host.run(prompt)
    losses = found(entry, "losses")["loss"]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6), "the LoRA starts as nothing"
    assert np.mean(losses[-2:]) < losses[0] - 0.05
    base, tuned = found(entry, "base"), found(entry, "tuned")
    assert tuned["shape"] == base["shape"] == [1, 16, 8, 8] and math.isfinite(tuned["largest"])
    assert tuned["sha"] != base["sha"]
    after = host.run({name: prompt[name] for name in ("flow", "shifted")} | {"after": probe("Model", model)})
    assert found(after, "after") == found(entry, "before"), "the wired model is as it was"


def test_another_shift_while_training_is_refused(failure, source):
    message = failure(graph(source, ("shifted", 0), ("flow", 0))).message
    assert "preferences" in message and "same ModelSampling node before both" in message


def test_a_flow_model_that_begins_with_images_is_refused(failure, source):
    prompt = graph(source, ("as", 0))
    prompt["as"] = node("ModelSamplingDiscrete", model=["flow", 0], sampling="img_to_img_flow", zsnr=False)
    assert "model: this flow model does not begin with plain noise" in failure(prompt).message


@pytest.mark.parametrize("sampling, zsnr", [("eps", False), ("v_prediction", True)])
def test_recorded_candidates_give_back_the_noise_of_their_seed(host, sampling, zsnr):
    prompt = recording(model=("as", 0), seed=8, candidates=3)
    prompt["as"] = node("ModelSamplingDiscrete", model=["loader", 0], sampling=sampling, zsnr=zsnr)
    prompt["look"] = node("TestProbeFinished", value=["sampler", 0], model=["as", 0])
    look = found(host.run(prompt), "look")
    assert look["prediction"] == {"eps": "epsilon", "v_prediction": "v"}[sampling]
    assert look["levels"] == [1000, pytest.approx(look["first"])]
    assert look["noise"] == [1, 4, 4, 4] and look["off"] < 1e-6
    assert look["fresh"] and all(look["same"]) and all(look["named"])


@pytest.mark.parametrize("change", ["denoise", "image"])
def test_candidates_that_did_not_begin_with_noise_alone_have_none_to_give(failure, change):
    prompt = recording(
        seed=8, **({"denoise": 0.5} if change == "denoise" else {"latent_image": ["other", 0]})
    )
    prompt |= {
        "picture": node("EmptyImage", width=64, height=64, batch_size=1, color=0x4080C0),
        "other": node("VAEEncode", pixels=["picture", 0], vae=["loader", 2]),
        "look": node("TestProbeFinished", value=["sampler", 0], model=["loader", 0]),
    }
    message = failure(prompt).message
    assert "not recorded from pure noise on (denoise 1" in message and "choose fresh noise" in message


def test_each_set_has_its_own_prompt_with_all_that_belongs_to_it(host):
    prompt = stage() | {"flow": node("UNETLoader", unet_name="flow.safetensors", weight_dtype="default")}
    prompt["look"] = node("TestProbePrompts", value=["flow", 0], conditioning=["negative", 0], nonce=unique())
    seen = found(host.run(prompt), "look")
    assert seen["same"] and seen["apart"] > 1e-3
