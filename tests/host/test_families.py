"""Every family of models in the real host: recorded, judged, trained by D3PO and by Diffusion-DPO as
recommended, and the LoRA at work through the stock loader."""

import math
import re

import pytest

from tests.host.graphs import found, node, probe, train_nodes, unique
from tools.host import ROOT

FAMILIES = (
    "SD2", "SDXL", "Flux", "Flux.2", "Chroma", "Lumina 2", "Z-Image", "Qwen-Image", "HunyuanVideo",
    "Wan")  # fmt: skip
CANDIDATES = 2


def test_all_are_tried_and_the_readme_names_these_and_no_others(object_info):
    assert set(object_info["TestFamily"]["input"]["required"]["name"][0]) == set(FAMILIES)
    said = re.search(
        r"small models of these families: (.*)\.$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert set(said[1].split(", ")) == {*FAMILIES, "SD1.5", "SD3"}  # whose tests are all others, and flow's


def judged(name, seed=3):
    return {
        "family": node("TestFamily", name=name),
        "sampler": node(
            "D3POKSampler", model=["family", 0], seed=seed, steps=3, cfg=2.0, sampler_name="euler_ancestral",
            scheduler="simple", positive=["family", 1], negative=["family", 2], latent_image=["family", 3],
            denoise=1.0, candidates=CANDIDATES, eta=1.0),
        "pictures": node("TestCandidates", seed=seed, candidates=CANDIDATES, sets=1, size=16),
        "judge": node(
            "D3POObjectivePreference", trajectory=["sampler", 0], images=["pictures", 1],
            objective="brightness (brighter)", second_objective="none", target_colour="#ff8800",
            least_difference=0.0),
    }  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_recorded_judged_trained_and_loaded(host, name):
    run, began = unique("family"), len(host.log())
    graph = judged(name) | {
        **train_nodes(model=("family", 0), targets="attention"),
        "losses": probe("LossMap", "train", 2),
        **train_nodes("again", model=("family", 0), targets="attention", checkpointing="on"),
        "same": probe("LossMap", "again", 2),
        "new": node("D3POLoadRun", model=["family", 0], run=run),
        "recommended": node("D3POTrainStep", model=["family", 0], preferences=["judge", 0], lora=["new", 1],
                            method="Diffusion-DPO", strength="recommended", epochs=2, rank=2,
                            targets="all linear"),
        "dpo": probe("LossMap", "recommended", 2),
        "save": node("D3POSaveRun", lora=["recommended", 1], run=run),
    }  # fmt: skip
    entry = host.run(graph)
    losses = found(entry, "losses")
    assert losses["winner_log-ratio"] == losses["loser_log-ratio"] == losses["KL_to_reference"] == [0.0]
    assert losses["loss"] == [pytest.approx(math.log(2), abs=1e-6)] and losses["gradient_norm"][0] > 0
    assert found(entry, "same") == losses, "with checkpointing to the bit"
    dpo = found(entry, "dpo")
    assert dpo["loss"][0] == pytest.approx(math.log(2), abs=1e-6) and dpo["margin"][-1] > 0
    (figures,) = entry["outputs"]["recommended"]["figures"]
    assert figures["pictures moved"] >= 0, "its blocks are seen"
    pictures = judged(name) | {
        "lora": node("LoraLoaderModelOnly", model=["family", 0], lora_name=f"d3po/{run}.safetensors",
                     strength_model=1.0),
    }  # fmt: skip
    for of in ("family", "lora"):
        pictures[f"{of}_sample"] = node(
            "KSampler", model=[of, 0], seed=5, steps=3, cfg=2.0, sampler_name="euler", scheduler="simple",
            positive=["family", 1], negative=["family", 2], latent_image=["family", 3],
            denoise=1.0)  # fmt: skip
        pictures[f"{of}_look"] = probe("Latent", f"{of}_sample")
    seen = host.run(pictures)
    plain, tuned = found(seen, "family_look"), found(seen, "lora_look")
    assert plain["sha"] != tuned["sha"] and math.isfinite(tuned["largest"])
    assert "lora key not loaded" not in host.log()[began:] and "NOT LOADED" not in host.log()[began:]
