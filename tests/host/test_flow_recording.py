"""Flow models recorded, judged and trained: every sampler, whole and in windows."""

import math

import pytest

from tests.host.graphs import TEXT, found, node, probe, says, stage, train_nodes, unique
from tests.host.support import refused, works

SAMPLERS = ("euler_ancestral", "flow_sde", "flow_cps")
KERNELS = dict(zip(SAMPLERS, ("flow ancestral", "flow sde", "flow cps")))


def flow(shift=3.0):
    """A flow model of SD3's family with random weights, its VAE and a prompt."""
    return stage() | {
        "raw": node("UNETLoader", unet_name="flow.safetensors", weight_dtype="default"),
        "flow": node("ModelSamplingSD3", model=["raw", 0], shift=shift),
        "vae": node("VAELoader", vae_name="flow.safetensors"),
        "positive": node("CLIPTextEncode", clip=["loader", 1], text=TEXT),
        "sixteen": node("EmptySD3LatentImage", width=32, height=32, batch_size=1),
    }


def recording(model=("flow", 0), **sampling):
    given = dict(
        model=list(model), seed=1, steps=6, cfg=2.0, sampler_name="euler_ancestral", scheduler="simple",
        positive=["positive", 0], negative=["negative", 0], latent_image=["sixteen", 0], denoise=1.0,
        candidates=3, eta=1.0)  # fmt: skip
    return flow() | {"sampler": node("D3POKSampler", **(given | sampling))}


def judged(**sampling):
    return recording(**sampling) | {
        "decode": node("VAEDecode", samples=["sampler", 1], vae=["vae", 0]),
        "judge": node("D3POObjectivePreference", trajectory=["sampler", 0], images=["decode", 0],
                      objective="brightness (brighter)", second_objective="none", target_colour="#ff8800",
                      least_difference=0.0),
    }  # fmt: skip


def look(host, **sampling):
    return found(host.run(recording(**sampling) | {"look": probe("Steps", "sampler")}), "look")


def test_recording_gives_the_stock_samplers_latents_bit_for_bit(host):
    graph = recording(seed=11) | {
        "ours": probe("Latent", "sampler", 1),
        "batch": node("EmptySD3LatentImage", width=32, height=32, batch_size=3),
        "noise": node("TestSharedNoise", seed=11),
        "guider": node("CFGGuider", model=["flow", 0], positive=["positive", 0], negative=["negative", 0],
                       cfg=2.0),
        "ancestral": node("SamplerEulerAncestral", eta=1.0, s_noise=1.0),
        "sigmas": node("BasicScheduler", model=["flow", 0], scheduler="simple", steps=6, denoise=1.0),
        "stock": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0],
                      sampler=["ancestral", 0], sigmas=["sigmas", 0], latent_image=["batch", 0]),
        "theirs": probe("Latent", "stock"),
    }  # fmt: skip
    entry = host.run(graph)
    assert found(entry, "ours") == found(entry, "theirs")
    assert len(set(found(entry, "ours")["candidates"])) == 3


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_leave_the_kernels_mean_by_standard_normal_noise(host, sampler, eta):
    seen = look(host, sampler_name=sampler, eta=eta, seed=4)
    mean, std, count = seen["noise"]
    assert count == 5 * 3 * 16 * 4 * 4, "five of six steps are random"
    assert abs(mean) < 5 / math.sqrt(count) and abs(std - 1) < 5 / math.sqrt(2 * count)
    assert seen["start_shared"] and seen["end_is_denoised"]
    assert seen["kernel"]["name"] == KERNELS[sampler] and seen["sigmas"][0] == 1
    if sampler == "flow_sde":
        assert seen["kernel"]["second"] == pytest.approx(seen["sigmas"][1])
        assert seen["kernel"]["a"] == pytest.approx(0.7 * eta)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_of_a_window_its_steps_alone_are_random_and_recorded(host, sampler):
    seen = look(host, sampler_name=sampler, window_steps=2, window_start=2)
    whole = look(host, sampler_name=sampler)
    assert seen["states"] == [3, 3, 16, 4, 4] and seen["first"] == 2
    assert seen["levels"] == whole["sigmas"] and seen["sigmas"] == whole["sigmas"][2:5]
    assert seen["start_shared"], "until then nothing was random"
    mean, std, count = seen["noise"]
    assert count == 2 * 3 * 16 * 4 * 4
    assert abs(mean) < 5 / math.sqrt(count) and abs(std - 1) < 5 / math.sqrt(2 * count)
    assert seen["set_id"] != whole["set_id"]
    assert whole["set_id"] == look(host, sampler_name=sampler, window_steps=0, window_start=0)["set_id"]


def test_outside_of_a_window_steps_follow_the_model_as_eulers_do(host):
    """With hardly any noise in the window the images are the stock euler's."""
    graph = recording(
        seed=5, eta=0.001, window_steps=1, window_start=1, sampler_name="flow_cps"
    ) | {
        "one": node("LatentFromBatch", samples=["sampler", 1], batch_index=0, length=1),
        "stock": node(
            "KSampler", model=["flow", 0], seed=5, steps=6, cfg=2.0, sampler_name="euler",
            scheduler="simple", positive=["positive", 0], negative=["negative", 0],
            latent_image=["sixteen", 0], denoise=1.0),
        "difference": node("LatentSubtract", samples1=["one", 0], samples2=["stock", 0]),
        "apart": probe("Latent", "difference"),
        "theirs": probe("Latent", "stock"),
    }  # fmt: skip
    entry = host.run(graph)
    assert found(entry, "apart")["largest"] < found(entry, "theirs")["largest"] / 200


@works("a window of the steps (but with *euler_ancestral_cfg_pp*)")
@pytest.mark.parametrize("window", [{}, dict(window_steps=2, window_start=1)], ids=["whole", "window"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_before_the_first_update_policy_and_reference_are_one(host, sampler, window):
    """The reference comes from the recording: training sees to the bit what sampling did."""
    graph = judged(sampler_name=sampler, steps=4, **window)
    graph |= train_nodes(model=("flow", 0), targets="all linear") | {"losses": probe("LossMap", "train", 2)}
    losses = found(host.run(graph), "losses")
    assert losses["winner_log-ratio"] == losses["loser_log-ratio"] == losses["KL_to_reference"] == [0.0]
    assert losses["loss"] == [pytest.approx(math.log(2), abs=1e-6)] and losses["gradient_norm"][0] > 0


@pytest.mark.parametrize("method", ["D3PO", "Diffusion-DPO"])
def test_a_round_trains_a_lora_that_the_stock_loader_takes_whole(host, method):
    run, began = unique("flow"), len(host.log())
    graph = judged(model=("run", 0), sampler_name="flow_cps", window_steps=2, steps=5, cfg=1.0) | {
        "run": node("D3POLoadRun", model=["flow", 0], run=run),
        **train_nodes(model=("flow", 0), lora=["run", 1], method=method, epochs=8, learning_rate=3e-3,
                      targets="all linear", beta=100.0, dpo_beta=200.0),
        "save": node("D3POSaveRun", lora=["train", 1], run=run),
        "losses": probe("LossMap", "train", 2),
        "stock": node("LoraLoaderModelOnly", model=["flow", 0], lora_name=f"d3po/{run}.safetensors",
                      strength_model=1.0),
    }  # fmt: skip
    stock = graph.pop("stock")
    losses = found(host.run(graph), "losses")
    assert losses["margin"][-1] > losses["margin"][0] == 0 and losses["loss"][-1] < losses["loss"][0] - 0.02
    sampled = {
        name: node("KSampler", model=[of, 0], seed=5, steps=4, cfg=1.0, sampler_name="euler",
                   scheduler="simple", positive=["positive", 0], negative=["negative", 0],
                   latent_image=["sixteen", 0], denoise=1.0)
        for name, of in (("plain", "flow"), ("tuned", "stock"))
    }  # fmt: skip
    looks = {f"look_{name}": probe("Latent", name) for name in sampled}
    entry = host.run(flow() | {"stock": stock} | sampled | looks)
    assert found(entry, "look_plain")["sha"] != found(entry, "look_tuned")["sha"]
    assert "lora key not loaded" not in host.log()[began:] and "NOT LOADED" not in host.log()[began:]


def test_a_window_from_a_dataset_trains_as_it_does_at_once(host):
    """Its final latents and its place in the schedule are on disk too."""
    name, window = unique("window"), dict(window_steps=2, window_start=1, seed=9)
    settings = dict(model=("flow", 0), targets="all linear", method="Diffusion-DPO", dpo_beta=200.0)
    graph = judged(**window) | train_nodes(**settings) | {"losses": probe("LossMap", "train", 2)}
    graph["keep"] = node("D3POSaveToDataset", trajectory=["sampler", 0], images=["decode", 0], dataset=name,
                         annotator="me")  # fmt: skip
    graph["judge"]["inputs"] |= {"dataset": ["keep", 2]}
    at_once = found(host.run(graph), "losses")
    later = flow() | {
        "judged": node("D3POLoadPreferences", dataset=name, split="all", held_out=0.1, annotators="",
                       joining="all", limit=0, since="", until=""),
        **train_nodes(preferences=("judged", 0), **settings),
        "losses": probe("LossMap", "train", 2),
    }  # fmt: skip
    assert found(host.run(later), "losses")["gradient_norm"] == at_once["gradient_norm"]


# --- what is refused ---


@refused(
    "*flow_sde*, *flow_cps* for epsilon and v models, *ddpm* for flow models", "choose *euler_ancestral*"
)
@pytest.mark.parametrize("sampler", SAMPLERS[1:])
def test_flow_samplers_are_refused_for_other_models(failure, sampler):
    graph = recording(model=("loader", 0), sampler_name=sampler) | {"look": probe("Steps", "sampler")}
    graph["sampler"]["inputs"]["latent_image"] = ["empty", 0]
    says(failure(graph), "D3POKSampler", "sampler_name", "flow models", "epsilon", "euler_ancestral")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_without_noise_is_refused(failure, sampler):
    graph = recording(sampler_name=sampler, eta=0.0) | {"look": probe("Steps", "sampler")}
    says(failure(graph), "D3POKSampler", "eta", "deterministic")


@pytest.mark.parametrize("window", [(3, 3), (6, 1), (0, 6)])
def test_a_window_beyond_the_random_steps_is_refused(failure, window):
    start, steps = window
    graph = recording(window_start=start, window_steps=steps) | {"look": probe("Steps", "sampler")}
    says(failure(graph), "D3POKSampler", "window_start", "first 5 can add noise")


@refused("flow models that turn images into images, or scale their noise", "choose another model")
@pytest.mark.parametrize("kind", ["images", "scaled noise"])
def test_a_model_that_begins_with_other_than_plain_noise_is_refused(failure, kind):
    graph = recording(model=("as", 0)) | {"look": probe("Steps", "sampler")}
    graph["as"] = (
        node("ModelSamplingDiscrete", model=["raw", 0], sampling="img_to_img_flow", zsnr=False)
        if kind == "images"
        else node("ModelNoiseScale", model=["flow", 0], noise_scale=2.0)
    )
    says(failure(graph), "D3POKSampler", "model", "does not begin with plain noise")
