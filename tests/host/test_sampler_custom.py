"""Recording by ComfyUI's custom sampling: its guiders, schedules and noise, and training through the same."""

import math

import pytest

from tests.host.graphs import found, node, probe, recording, says, train_nodes, unique
from tests.host.support import refused, works

SEED = 11
GUIDERS = {
    "basic": dict(class_type="BasicGuider", conditioning=["positive", 0]),
    "cfg": dict(class_type="CFGGuider", positive=["positive", 0], negative=["negative", 0], cfg=2.0),
    "dual": dict(class_type="DualCFGGuider", cond1=["positive", 0], cond2=["middle", 0],
                 negative=["negative", 0], cfg_conds=2.0, cfg_cond2_negative=1.5, style="regular"),
    "nested": dict(class_type="DualCFGGuider", cond1=["positive", 0], cond2=["middle", 0],
                   negative=["negative", 0], cfg_conds=2.0, cfg_cond2_negative=1.5, style="nested"),
    "perp": dict(class_type="PerpNegGuider", positive=["positive", 0], negative=["middle", 0],
                 empty_conditioning=["negative", 0], cfg=2.0, neg_scale=0.7),
}  # fmt: skip


def custom(guider, **sampling):
    """A recording by D3PO Sampler Custom, beside one by D3PO KSampler with the same settings."""
    given = dict(sampler_name="euler_ancestral", candidates=3, eta=1.0)
    return recording(seed=SEED, steps=4, candidates=3) | {
        "middle": node("CLIPTextEncode", clip=["loader", 1], text="a dog"),
        "noise": node("RandomNoise", noise_seed=SEED),
        "guider": node(model=["loader", 0], **GUIDERS[guider]),
        "sigmas": node("BasicScheduler", model=["loader", 0], scheduler="normal", steps=4, denoise=1.0),
        "custom": node("D3POSamplerCustom", noise=["noise", 0], guider=["guider", 0], sigmas=["sigmas", 0],
                       latent_image=["empty", 0], **(given | sampling)),
    }  # fmt: skip


def judged(guider, **sampling):
    return custom(guider, **sampling) | {
        "decode": node("VAEDecode", samples=["custom", 1], vae=["loader", 2]),
        "judge": node("D3POObjectivePreference", trajectory=["custom", 0], images=["decode", 0],
                      objective="brightness (brighter)", second_objective="none", target_colour="#ff8800",
                      least_difference=0.0),
    }  # fmt: skip


def test_with_cfg_it_records_what_d3po_ksampler_does(host):
    entry = host.run(
        custom("cfg")
        | {"ours": probe("Steps", "custom"), "plain": probe("Steps", "sampler")}
        | {"latent": probe("Latent", "custom", 1), "plain_latent": probe("Latent", "sampler", 1)}
    )
    ours, plain = found(entry, "ours"), found(entry, "plain")
    assert ours["sha"] == plain["sha"] and ours["set_id"] != plain["set_id"]
    assert found(entry, "latent") == found(entry, "plain_latent")


@pytest.mark.parametrize("guider", GUIDERS)
def test_it_gives_the_stock_samplers_latents_bit_for_bit(host, guider):
    graph = custom(guider) | {
        "batch": node("EmptyLatentImage", width=32, height=32, batch_size=3),
        "shared": node("TestSharedNoise", seed=SEED),
        "ancestral": node("SamplerEulerAncestral", eta=1.0, s_noise=1.0),
        "stock": node("SamplerCustomAdvanced", noise=["shared", 0], guider=["guider", 0],
                      sampler=["ancestral", 0], sigmas=["sigmas", 0], latent_image=["batch", 0]),
        "theirs": probe("Latent", "stock"), "ours": probe("Latent", "custom", 1),
    }  # fmt: skip
    entry = host.run(graph)
    assert found(entry, "ours") == found(entry, "theirs")
    assert len(set(found(entry, "ours")["candidates"])) == 3


@works("guiders: " + ", ".join(dict.fromkeys(f"*{guider['class_type']}*" for guider in GUIDERS.values())))
@pytest.mark.parametrize("guider", GUIDERS)
def test_training_goes_through_the_same_guider(host, guider):
    """The recording's x0 is the policy's to the bit, and what is learned shows in it."""
    graph = judged(guider) | train_nodes(epochs=4, learning_rate=3e-3)
    losses = found(host.run(graph | {"losses": probe("LossMap", "train", 2)}), "losses")
    first = {name: values[0] for name, values in losses.items()}
    assert first["winner_log-ratio"] == first["loser_log-ratio"] == first["KL_to_reference"] == 0.0
    assert losses["loss"][-1] < losses["loss"][0] == pytest.approx(math.log(2), abs=1e-6)


def test_a_leash_samples_its_pictures_with_the_guider(host):
    graph = judged("dual") | train_nodes(method="Diffusion-DPO", dpo_beta=2000.0, leash=0.5)
    graph |= {"losses": probe("LossMap", "train", 2)}
    (figures,) = host.run(graph)["outputs"]["train"]["figures"]
    assert 0 <= figures["pictures moved"] <= 0.5


@works("images to start from (denoise below 1, *Split Sigmas*), custom schedules and noise")
def test_custom_schedules_and_images_to_start_from_are_trained_on(host):
    graph = judged("cfg") | train_nodes() | {
        "picture": node("EmptyImage", width=32, height=32, batch_size=1, color=0x4080C0),
        "encoded": node("VAEEncode", pixels=["picture", 0], vae=["loader", 2]),
        "split": node("SplitSigmas", sigmas=["sigmas", 0], step=1),
        "look": probe("Steps", "custom"), "losses": probe("LossMap", "train", 2),
    }  # fmt: skip
    graph["custom"]["inputs"] |= {"sigmas": ["split", 1], "latent_image": ["encoded", 0]}
    entry = host.run(graph)
    look, losses = found(entry, "look"), found(entry, "losses")
    assert losses["winner_log-ratio"] == losses["KL_to_reference"] == [0.0] and losses["gradient_norm"][0] > 0
    assert look["states"][0] == 4 and look["start_shared"] and look["end_is_denoised"]
    windowed = custom("basic", window_steps=1, window_start=1) | {"look": probe("Steps", "custom")}
    assert found(host.run(windowed), "look")["states"][0] == 2


@pytest.mark.parametrize("guider, sampler", [("basic", "lcm"), ("cfg", "euler_ancestral_cfg_pp")])
def test_plain_guiders_go_through_a_dataset(host, guider, sampler):
    name = unique("custom")
    graph = judged(guider, sampler_name=sampler) | train_nodes() | {"losses": probe("LossMap", "train", 2)}
    graph["keep"] = node("D3POSaveToDataset", trajectory=["custom", 0], images=["decode", 0], dataset=name,
                         annotator="me")  # fmt: skip
    graph["judge"]["inputs"] |= {"dataset": ["keep", 2]}
    at_once = found(host.run(graph), "losses")
    later = {name: graph[name] for name in ("loader",)} | {
        "judged": node("D3POLoadPreferences", dataset=name, split="all", held_out=0.1, annotators="",
                       joining="all", limit=0, since="", until=""),
        **train_nodes(preferences=("judged", 0)),
        "losses": probe("LossMap", "train", 2),
    }  # fmt: skip
    assert found(host.run(later), "losses")["gradient_norm"] == at_once["gradient_norm"]


# --- what is refused ---


@refused(
    "recordings with guiders other than *BasicGuider* and *CFGGuider* in a dataset", "train on them at once"
)
def test_other_guiders_cannot_be_kept_in_a_dataset(failure):
    graph = judged("dual")
    graph["keep"] = node("D3POSaveToDataset", trajectory=["custom", 0], images=["decode", 0],
                         dataset=unique("dual"), annotator="me")  # fmt: skip
    says(failure(graph), "D3POSaveToDataset", "trajectory", "Guider_DualCFG", "CFG Guider")


@refused("guiders that sample in their own way (*Dual Model Guider*)", "use one of those above")
def test_a_guider_with_a_second_model_is_refused(failure):
    graph = custom("cfg") | {"look": probe("Steps", "custom")}
    graph["guider"] = node(
        "DualModelGuider", model=["loader", 0], model_negative=["loader", 0], positive=["positive", 0],
        negative=["negative", 0], cfg=2.0)  # fmt: skip
    says(failure(graph), "D3POSamplerCustom", "guider", "Guider_DualModel", "own way", "Dual CFG Guider")


@refused("sigmas that rise, or do not end at 0", "of *Split Sigmas* take the low part")
@pytest.mark.parametrize("wrong", ["not to 0", "rising", "one step"])
def test_noise_levels_that_do_not_fall_to_0_are_refused(failure, wrong):
    graph = custom("cfg") | {"look": probe("Steps", "custom")}
    if wrong == "not to 0":
        graph["wrong"] = node("SplitSigmas", sigmas=["sigmas", 0], step=3)
    elif wrong == "rising":
        graph["wrong"] = node("FlipSigmas", sigmas=["sigmas", 0])
    else:
        graph["wrong"] = node("BasicScheduler", model=["loader", 0], scheduler="normal", steps=1, denoise=1.0)
    graph["custom"]["inputs"]["sigmas"] = ["wrong", 0]
    says(failure(graph), "D3POSamplerCustom", "sigmas", "fall from step to step", "end at 0")


@refused("*euler_ancestral_cfg_pp* without a *CFGGuider* of two prompts", "use one, or *euler_ancestral*")
@pytest.mark.parametrize("guider", ["basic", "dual"])
def test_cfg_plus_plus_wants_a_guider_with_two_prompts(failure, guider):
    graph = custom(guider, sampler_name="euler_ancestral_cfg_pp") | {"look": probe("Steps", "custom")}
    says(failure(graph), "D3POSamplerCustom", "sampler_name", "negative prompt alone", "CFG Guider")
