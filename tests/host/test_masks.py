"""Candidates that differ inside a mask alone: recorded as ComfyUI inpaints, judged, and learned from."""

import math

import pytest

from tests.host.graphs import found, judged, node, probe, recording, says, train_nodes, unique
from tests.host.support import refused, works

SEED = 11
ZERO = {"winner_log-ratio": [0.0], "loser_log-ratio": [0.0], "KL_to_reference": [0.0]}


def inpainting(graph, width=32, height=32, inside=16, soft=False):
    """The graph with an image to inpaint, `masked`: so many columns on the left are inside the mask."""
    size = dict(width=width, height=height)
    graph |= {
        "picture": node("EmptyImage", **size, batch_size=1, color=0x4080C0),
        "encoded": node("VAEEncode", pixels=["picture", 0], vae=["loader", 2]),
        "outside": node("SolidMask", value=0.3 if soft else 0.0, **size),
        "inside": node("SolidMask", value=0.9 if soft else 1.0, width=inside, height=height),
        "mask": node("MaskComposite", destination=["outside", 0], source=["inside", 0], x=0, y=0,
                     operation="add"),
        "masked": node("SetLatentNoiseMask", samples=["encoded", 0], mask=["mask", 0]),
    }  # fmt: skip
    for name in {"sampler", "custom"} & graph.keys():
        graph[name]["inputs"]["latent_image"] = ["masked", 0]
    return graph


def alike_at_first(entry):
    """Whether, before the first update, the policy is the reference, and both are what was recorded."""
    losses = found(entry, "losses")
    return {name: losses[name][:1] for name in ZERO} == ZERO and not entry["outputs"]["train"]["warnings"]


def stock(model="loader", scheduler="normal", denoise=1.0, eta=1.0, steps=4):
    """ComfyUI's own inpainting of three images; only the noise, one for all of them, is the tests'."""
    return {
        "batch": node("RepeatLatentBatch", samples=["masked", 0], amount=3),
        "shared": node("TestSharedNoise", seed=SEED),
        "guider": node("CFGGuider", model=[model, 0], positive=["positive", 0], negative=["negative", 0],
                       cfg=2.0),
        "ancestral": node("SamplerEulerAncestral", eta=eta, s_noise=1.0),
        "sigmas": node("BasicScheduler", model=[model, 0], scheduler=scheduler, steps=steps,
                       denoise=denoise),
        "stock": node("SamplerCustomAdvanced", noise=["shared", 0], guider=["guider", 0],
                      sampler=["ancestral", 0], sigmas=["sigmas", 0], latent_image=["batch", 0]),
        "theirs": probe("Latent", "stock"),
        "ours": probe("Latent", "sampler", 1),
    }  # fmt: skip


@works("a mask on the latent (*Set Latent Noise Mask*)", "works: training learns inside of it")
@pytest.mark.parametrize("eta, scheduler, denoise", [(1.0, "normal", 1.0), (0.5, "karras", 0.6)])
def test_recording_gives_the_stock_samplers_latents_bit_for_bit(host, eta, scheduler, denoise):
    given = dict(eta=eta, scheduler=scheduler, denoise=denoise, steps=4)
    graph = inpainting(recording(seed=SEED, candidates=3, **given)) | stock(**given) | {
        "look": probe("Masked", "sampler"),
        "noise": node("RandomNoise", noise_seed=SEED),
        "custom": node("D3POSamplerCustom", noise=["noise", 0], guider=["guider", 0], sigmas=["sigmas", 0],
                       latent_image=["masked", 0], sampler_name="euler_ancestral", candidates=3, eta=eta),
        "custom_look": probe("Masked", "custom"),
    }  # fmt: skip
    entry = host.run(graph)
    assert found(entry, "ours") == found(entry, "theirs")
    look = found(entry, "look")
    assert look["mask"] == [[1, 4, 4, 4], 0.5] and look["same_outside"] and look["apart_inside"] > 1e-3
    assert found(entry, "custom_look") == look


def test_a_flow_model_inpaints_bit_for_bit_and_trains_in_windows(host):
    def flow(of):
        of["encoded"]["inputs"]["vae"] = ["vae", 0]
        return of | {
            "raw": node("UNETLoader", unet_name="flow.safetensors", weight_dtype="default"),
            "flow": node("ModelSamplingSD3", model=["raw", 0], shift=3.0),
            "vae": node("VAELoader", vae_name="flow.safetensors"),
        }  # fmt: skip

    given = dict(model=("flow", 0), seed=SEED, scheduler="simple", steps=4, candidates=3)
    theirs = stock("flow", "simple")
    entry = host.run(flow(inpainting(recording(**given))) | theirs | {"look": probe("Masked", "sampler")})
    assert found(entry, "ours") == found(entry, "theirs") and found(entry, "look")["same_outside"]
    window = dict(sampler_name="flow_cps", window_steps=2, window_start=1)
    graph = flow(inpainting(judged(**(given | window))))
    graph["decode"]["inputs"]["vae"] = ["vae", 0]
    graph |= train_nodes(model=("flow", 0), targets="all linear") | {"losses": probe("LossMap", "train", 2)}
    entry = host.run(graph)
    assert alike_at_first(entry) and found(entry, "losses")["gradient_norm"][0] > 0


@works("soft masks with *Differential Diffusion*")
def test_soft_masks_with_differential_diffusion_are_recorded_and_trained(host):
    """At every step another part of the image is put back."""
    graph = inpainting(judged(seed=SEED, steps=4, candidates=3), soft=True)
    graph["different"] = node("DifferentialDiffusion", model=["loader", 0], strength=1.0)
    graph["sampler"]["inputs"]["model"] = ["different", 0]
    graph |= train_nodes(model=("different", 0)) | stock("different")
    graph |= {"losses": probe("LossMap", "train", 2), "look": probe("Masked", "sampler")}
    entry = host.run(graph)
    assert found(entry, "ours") == found(entry, "theirs")
    assert found(entry, "look")["mask"][1] == pytest.approx(0.65, abs=0.06), "0.3 and 0.3 + 0.9, cut off at 1"
    assert alike_at_first(entry) and found(entry, "losses")["gradient_norm"][0] > 0


def test_decoded_candidates_are_the_same_away_from_the_mask(host):
    """As far as the VAE's decoder does not reach, which is 136 pixels."""
    graph = inpainting(judged(seed=3, steps=2), 256, 32, 64) | {"look": probe("Pictures", "decode")}
    look = found(host.run(graph), "look")
    assert look["width"] == 256 and 64 <= look["same_from"] <= 64 + 136


# --- training ---


def test_d3po_trains_inside_the_mask(host):
    """The recording's x0 is the policy's to the bit: training goes through the same inpainting."""
    graph = inpainting(judged(seed=5, denoise=0.8))
    graph |= train_nodes(epochs=4, learning_rate=3e-3)
    graph |= {"losses": probe("LossMap", "train", 2)}
    entry = host.run(graph)
    losses = found(entry, "losses")
    assert alike_at_first(entry)
    assert losses["loss"][-1] < losses["loss"][0] == pytest.approx(math.log(2), abs=1e-6)


def test_a_mask_of_everything_trains_as_none_does(host):
    def norm(graph):
        graph |= train_nodes() | {"losses": probe("LossMap", "train", 2)}
        return found(host.run(graph), "losses")["gradient_norm"]

    whole = inpainting(judged(seed=5))
    whole["sampler"]["inputs"]["latent_image"] = ["encoded", 0]
    assert norm(inpainting(judged(seed=5), inside=32)) == norm(whole)


def kept(name, graph):
    """The graph, whose candidates and judgement go into a dataset."""
    graph["keep"] = node("D3POSaveToDataset", trajectory=["sampler", 0], images=["decode", 0], dataset=name,
                         annotator="me")  # fmt: skip
    graph["judge"]["inputs"] |= {"dataset": ["keep", 2]}
    return graph


def test_through_a_dataset_masked_candidates_are_the_same_to_the_bit(host):
    name = unique("masked")
    graph = kept(name, inpainting(judged(seed=9))) | train_nodes() | {
        "losses": probe("LossMap", "train", 2), "look": probe("Masked", "sampler")}  # fmt: skip
    entry = host.run(graph)
    later = {
        "loader": graph["loader"],
        "sets": node("D3POLoadSets", dataset=name, annotator="you", sets="all", limit=9, since="", until=""),
        "look": probe("Masked", "sets", 1),
        "judged": node("D3POLoadPreferences", dataset=name, split="all", held_out=0.1, annotators="",
                       joining="all", limit=0, since="", until=""),
        **train_nodes(preferences=("judged", 0)),
        "losses": probe("LossMap", "train", 2),
    }  # fmt: skip
    again = host.run(later)
    assert found(again, "look") == found(entry, "look")
    assert found(again, "losses") == found(entry, "losses") and alike_at_first(again)


def test_as_recommended_diffusion_dpo_trains_inside_the_mask_on_a_leash(host):
    """Its figures are of the part inside the mask; how far pictures move is of the whole of them."""

    graph = inpainting(judged(seed=5)) | {
        "train": node("D3POTrainStep", model=["loader", 0], preferences=["judge", 0], method="Diffusion-DPO",
                      strength="recommended", epochs=2, rank=2, targets="all linear"),
        "losses": probe("LossMap", "train", 2),
    }  # fmt: skip
    entry = host.run(graph)
    masked, figures = found(entry, "losses"), entry["outputs"]["train"]["figures"][0]
    assert masked["loss"][0] == pytest.approx(math.log(2), abs=1e-6) and masked["margin"][-1] > 0
    assert figures["pictures moved"] >= 0


def test_a_taste_and_an_implicit_reward_judge_masked_candidates(host):
    graph = inpainting(judged(seed=5, candidates=4))
    more = recording(seed=6)["sampler"]
    more["inputs"]["latent_image"] = ["masked", 0]
    graph |= {
        "more": more,
        "pictures": node("VAEDecode", samples=["more", 1], vae=["loader", 2]),
        "taste": node("D3POTastePreference", model=["loader", 0], preferences=["judge", 0],
                      trajectory=["more", 0]),
        "other": node("TestLora", model=["loader", 0], strength=0.5),
        "reward": node("D3POImplicitPreference", trajectory=["more", 0], images=["pictures", 0],
                       model=["loader", 0], tuned=["other", 0], draws=2, seed=0, least_difference=0.0),
        "told": node("PreviewAny", source=["taste", 2]),
        "look": probe("Preferences", "reward"),
    }  # fmt: skip
    entry = host.run(graph)
    assert "learned from 4 judged candidates" in entry["outputs"]["told"]["text"][0]
    assert len(set(found(entry, "look")["scores"])) == 2


# --- models for inpainting ---


@pytest.mark.parametrize("conditioned", [True, False], ids=["conditioned", "mask alone"])
def test_a_model_for_inpainting_sees_the_image_around_the_mask_in_training_too(host, conditioned):
    graph = inpainting(judged(seed=SEED, steps=4, candidates=3, model=("special", 0)), 64, 64, 32) | {
        "special": node("TestInpainting"),
    }
    sides = ["special", 1], ["special", 2]
    if conditioned:
        around = dict(positive=sides[0], negative=sides[1], pixels=["picture", 0], mask=["mask", 0])
        graph["around"] = node("InpaintModelConditioning", vae=["loader", 2], noise_mask=True, **around)
        sides = ["around", 0], ["around", 1]
        graph["masked"] = node("LatentFromBatch", samples=["around", 2], batch_index=0, length=1)
    theirs = stock("special")
    for of in ("sampler", "guider"):
        (graph | theirs)[of]["inputs"] |= dict(positive=sides[0], negative=sides[1])
    graph |= theirs | train_nodes(model=("special", 0)) | {"losses": probe("LossMap", "train", 2)}
    graph |= train_nodes("dpo", model=("special", 0), method="Diffusion-DPO", dpo_beta=200.0, epochs=3)
    graph |= {"dpo_losses": probe("LossMap", "dpo", 2)}
    entry = host.run(graph)
    assert found(entry, "ours") == found(entry, "theirs")
    assert alike_at_first(entry) and found(entry, "losses")["gradient_norm"][0] > 0
    dpo = found(entry, "dpo_losses")
    assert dpo["loss"][0] == pytest.approx(math.log(2), abs=1e-6) and dpo["margin"][-1] > 0


# --- finished pictures ---


def encoded(source, dataset, model="loader", **mask):
    return inpainting(recording(), 64, 64, 32) | {
        "import": node("D3POImportPreferences", source=source, dataset=dataset, annotator="import",
                       problems="stop"),
        "encode": node("D3POEncodePairs", model=[model, 0], clip=["loader", 1], vae=["loader", 2],
                       dataset=["import", 0], split="all", held_out=0.3, annotators="", joining="all",
                       limit=1, **mask),
        **train_nodes(preferences=("encode", 0), model=(model, 0), draws_per_set=1),
        "all": node("SolidMask", value=1.0, width=64, height=64),
        "losses": probe("LossMap", "train", 2),
    }  # fmt: skip


def test_finished_pictures_are_learned_from_inside_a_mask(host, source):
    dataset = unique("dataset")

    def figures(**mask):
        losses = found(host.run(encoded(source, dataset, **mask)), "losses")
        return losses["loss"], losses["gradient_norm"]

    whole, left = figures(), figures(mask=["mask", 0])
    assert figures(mask=["all", 0]) == whole
    assert left[0] == [pytest.approx(math.log(2), abs=1e-4)] and left[1] != whole[1]


def test_a_mask_over_finished_pictures_is_refused_for_a_model_for_inpainting(failure, source):
    graph = encoded(source, unique("dataset"), "special", mask=["mask", 0])
    graph["special"] = node("TestInpainting")
    says(failure(graph), "D3POEncodePairs", "mask", "inpainting model", "D3PO KSampler")


def test_a_mask_that_was_scaled_beyond_its_range_is_taken_as_one(host):
    graph = inpainting(recording(steps=2)) | {
        "picture of it": node("MaskToImage", mask=["mask", 0]),
        "scaled": node("ImageScale", image=["picture of it", 0], upscale_method="bicubic", width=24,
                       height=24, crop="disabled"),
        "swung": node("ImageToMask", image=["scaled", 0], channel="red"),
        "look": probe("Masked", "sampler"),
    }  # fmt: skip
    graph["masked"]["inputs"]["mask"] = ["swung", 0]
    look = found(host.run(graph), "look")
    assert look["mask"][1] == pytest.approx(0.5, abs=0.1) and look["apart_inside"] > 0


# --- what is refused ---


def wrong(**changed):
    graph = inpainting(recording()) | {"look": probe("Masked", "sampler")}
    for name, inputs in changed.items():
        graph[name]["inputs"] |= inputs
    return graph


def test_an_empty_mask_is_refused(failure):
    graph = wrong(inside=dict(value=0.0))
    says(failure(graph), "D3POKSampler", "latent_image", "nothing is inside the mask", "larger mask")
    tiny = wrong(inside=dict(width=1, height=1))
    says(failure(tiny), "D3POKSampler", "latent_image", "nothing is left of it in the latent")


@refused("several masks, or several latents with a mask", "give one")
def test_several_masks_are_refused(failure):
    graph = wrong(masked=dict(mask=["two", 0]))
    graph["pair"] = node("EmptyImage", width=32, height=32, batch_size=2, color=0xFFFFFF)
    graph["two"] = node("ImageToMask", image=["pair", 0], channel="red")
    says(failure(graph), "D3POKSampler", "latent_image", "2 masks", "one mask")


def test_several_latents_with_a_mask_are_refused(failure):
    says(failure(wrong(picture=dict(batch_size=2))), "D3POKSampler", "latent_image", "2 latents", "one")


@refused("a mask with *euler_ancestral_cfg_pp*", "choose *euler_ancestral*")
def test_a_mask_is_refused_where_steps_go_along_another_noise(failure):
    graph = wrong(sampler=dict(sampler_name="euler_ancestral_cfg_pp"))
    says(failure(graph), "D3POKSampler", "latent_image", "mask", "choose euler_ancestral")
