"""Every family of models in the real host: recorded by each sampler, judged, trained by D3PO and by
Diffusion-DPO as recommended, and the LoRA at work through the stock loader."""

import math

import pytest

from tests.host import test_flow_recording as flow
from tests.host.graphs import TEXT, found, node, probe, stage, train_nodes, unique
from tests.host.support import FAMILIES, SAMPLERS, works

CANDIDATES = 2
PARTS = "model", "positive", "negative", "latent_image"


def family(name):
    """(nodes, links to PARTS) of a family's model."""
    if name == "SD1.5":
        nodes = stage() | {"positive": node("CLIPTextEncode", clip=["loader", 1], text=TEXT)}
        links = ["loader", 0], ["positive", 0], ["negative", 0], ["empty", 0]
    elif name == "SD3":
        nodes = flow.flow()
        links = ["flow", 0], ["positive", 0], ["negative", 0], ["sixteen", 0]
    else:
        nodes, links = {"family": node("TestFamily", name=name)}, [["family", slot] for slot in range(4)]
    return nodes, dict(zip(PARTS, links))


def sampler(links, seed=3, **inputs):
    return node("D3POKSampler", **(dict(
        links, seed=seed, steps=3, cfg=2.0, sampler_name="euler_ancestral", scheduler="simple", denoise=1.0,
        candidates=CANDIDATES, eta=1.0) | inputs))  # fmt: skip


def judged(nodes, links, seed=3, **sampling):
    return nodes | {
        "sampler": sampler(links, seed, **sampling),
        "pictures": node("TestCandidates", seed=seed, candidates=CANDIDATES, sets=1, size=16),
        "judge": node(
            "D3POObjectivePreference", trajectory=["sampler", 0], images=["pictures", 1],
            objective="brightness (brighter)", second_objective="none", target_colour="#ff8800",
            least_difference=0.0),
    }  # fmt: skip


def replays(links, names):
    """The judged recording and one by each further sampler, gone through again by the trainer's denoiser."""
    graph = {name: sampler(links, sampler_name=name, steps=2) for name in names if name != "euler_ancestral"}
    sources = dict.fromkeys(names, "sampler") | {name: name for name in graph}
    return graph | {
        f"{name} again": node("TestProbeReplay", value=[source, 0], model=links["model"])
        for name, source in sources.items()
    }


def test_all_families_and_samplers_are_tried(object_info):
    here = set(object_info["TestFamily"]["input"]["required"]["name"][0]) - {"SD2 inpainting"}
    assert here | {"SD1.5", "SD3"} == set(FAMILIES)
    offered = object_info["D3POKSampler"]["input"]["required"]["sampler_name"][1]["options"]
    assert {name for names in SAMPLERS.values() for name in names} == set(offered)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_recorded_judged_trained_and_loaded(host, name):
    (run, began), (nodes, links) = (unique("family"), len(host.log())), family(name)
    model = links["model"]
    graph = judged(nodes, links) | replays(links, SAMPLERS[FAMILIES[name]]) | {
        **train_nodes(model=model, targets="attention"),
        "losses": probe("LossMap", "train", 2),
        **train_nodes("again", model=model, targets="attention", checkpointing="on"),
        "same": probe("LossMap", "again", 2),
        "new": node("D3POLoadRun", model=model, run=run),
        "recommended": node("D3POTrainStep", model=model, preferences=["judge", 0], lora=["new", 1],
                            method="Diffusion-DPO", strength="recommended", epochs=2, rank=2,
                            targets="all linear"),
        "dpo": probe("LossMap", "recommended", 2),
        "save": node("D3POSaveRun", lora=["recommended", 1], run=run),
    }  # fmt: skip
    entry = host.run(graph)
    for each in SAMPLERS[FAMILIES[name]]:
        again = found(entry, f"{each} again")
        assert again["apart"] == 0 and again["predicts"] == FAMILIES[name], each
        mean, std, count = again["noise"]
        assert abs(mean) < 5 / math.sqrt(count) and abs(std - 1) < 5 / math.sqrt(2 * count), each
    losses = found(entry, "losses")
    assert losses["winner_log-ratio"] == losses["loser_log-ratio"] == losses["KL_to_reference"] == [0.0]
    assert losses["loss"] == [pytest.approx(math.log(2), abs=1e-6)] and losses["gradient_norm"][0] > 0
    assert found(entry, "same") == losses, "with checkpointing to the bit"
    dpo = found(entry, "dpo")
    assert dpo["loss"][0] == pytest.approx(math.log(2), abs=1e-6) and dpo["margin"][-1] > 0
    (figures,) = entry["outputs"]["recommended"]["figures"]
    assert figures["pictures moved"] >= 0, "its blocks are seen"
    lora = node("LoraLoaderModelOnly", model=model, lora_name=f"d3po/{run}.safetensors", strength_model=1.0)
    pictures = nodes | {"lora": lora}
    for of, link in {"plain": model, "tuned": ["lora", 0]}.items():
        pictures[f"{of}_sample"] = node(
            "KSampler", **(links | dict(model=link)), seed=5, steps=3, cfg=2.0, sampler_name="euler",
            scheduler="simple", denoise=1.0)  # fmt: skip
        pictures[of] = probe("Latent", f"{of}_sample")
    seen = host.run(pictures)
    plain, tuned = found(seen, "plain"), found(seen, "tuned")
    assert plain["sha"] != tuned["sha"] and math.isfinite(tuned["largest"])
    assert "lora key not loaded" not in host.log()[began:] and "NOT LOADED" not in host.log()[began:]


def inpainting():
    """Candidates of an inpainting model: where to paint, and what is around it, is in the conditioning."""
    nodes, links = family("SD2 inpainting")
    nodes |= stage() | {
        "picture": node("EmptyImage", width=64, height=64, batch_size=1, color=0x4080C0),
        "mask": node("SolidMask", value=1.0, width=64, height=64),
        "around": node("InpaintModelConditioning", positive=links["positive"], negative=links["negative"],
                       vae=["loader", 2], pixels=["picture", 0], mask=["mask", 0], noise_mask=False),
    }  # fmt: skip
    return nodes, links | dict(zip(PARTS[1:], (["around", slot] for slot in range(3))))


def begins_where_it_was_recorded(host, nodes, links):
    graph = judged(nodes, links) | replays(links, ["euler_ancestral"]) | train_nodes(model=links["model"])
    entry = host.run(graph | {"losses": probe("LossMap", "train", 2)})
    losses = found(entry, "losses")
    assert found(entry, "euler_ancestral again")["apart"] == 0
    assert losses["winner_log-ratio"] == losses["KL_to_reference"] == [0.0] and losses["gradient_norm"][0] > 0


@works("inpainting models (*InpaintModelConditioning*)")
def test_an_inpainting_model_is_trained_on_without_a_mask_on_the_latent(host):
    begins_where_it_was_recorded(host, *inpainting())


@works("reference images of edit models (*ReferenceLatent*)")
def test_a_reference_image_is_trained_with(host):
    nodes, links = family("Flux")
    nodes |= {
        "other": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "seen": node("ReferenceLatent", conditioning=links["positive"], latent=["other", 0]),
    }
    begins_where_it_was_recorded(host, nodes, links | {"positive": ["seen", 0]})
