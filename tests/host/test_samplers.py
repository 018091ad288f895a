"""Every sampler of the host: recorded as the host samples and trained on as it was recorded, or refused for a
reason that holds."""

import math

import pytest

from tests.host import test_families as families
from tests.host import test_flow_recording as flow
from tests.host.graphs import found, node, probe, recording, says, stage, train_nodes
from tests.host.support import refused

RECORDED = ("euler_ancestral", "flow_sde", "flow_cps", "ddpm", "lcm", "euler_ancestral_cfg_pp")
CFG_PP = "euler_ancestral_cfg_pp"
# what a step does -> words of the reason
REASONS = {
    "deterministic": "is deterministic",
    "two states": "asks the model at two states in every step",
    "noise between": "draws noise inside a step",
    "earlier steps": "also follows what the model predicted at earlier steps",
}
# family of models -> the host's further samplers that are recorded there, and the kernels of their steps
KERNELS = {
    "SDXL": {"ddpm": "ancestral", "lcm": "consistency", CFG_PP: "ancestral"},
    "Lumina 2": {"lcm": "flow cps", CFG_PP: "flow ddim"},
}
EACH = [(name, sampler) for name, samplers in KERNELS.items() for sampler in samplers]


@pytest.fixture(scope="module")
def looked(host):
    graph = stage() | {"look": probe("Samplers", "loader")}
    return found(host.run(graph), "look")


@refused(
    "every other sampler of *KSampler*", "choose one of the table above, or learn from finished pictures"
)
def test_every_other_sampler_of_the_host_is_refused_for_what_its_steps_do(object_info, failure, looked):
    names = object_info["KSampler"]["input"]["required"]["sampler_name"][0]
    for name in names:
        (way,) = set(looked["ways"][name])
        assert (way == "one Gaussian") == (name in RECORDED), (name, way)
        if way != "one Gaussian":
            graph = recording(sampler_name=name) | {"look": probe("Steps", "sampler")}
            says(failure(graph), "D3POKSampler", f"sampler_name: {name} {REASONS[way]}", *RECORDED)
    assert len(names) > 40 and set(REASONS) < {way for ways in looked["ways"].values() for way in ways}


def test_a_sampler_that_nobody_knows_is_refused_as_such(failure):
    graph = recording(sampler_name="from_another_pack") | {"look": probe("Steps", "sampler")}
    says(failure(graph), "D3POKSampler", "from_another_pack is not known", "Choose euler_ancestral")


def test_the_hosts_steps_have_the_kernels_means_and_deviations(looked):
    assert len(looked["off"]) == 11
    for name, (mean, std) in looked["off"].items():
        assert mean < 1e-4 and std < 1e-4, (name, mean, std)


@pytest.mark.parametrize("name, sampler", EACH)
def test_it_records_what_the_stock_sampler_samples_and_training_begins_there(host, name, sampler):
    """The latents are the host's bit for bit, for one noise that all candidates begin with. Training's
    denoiser gives each recorded x0, and with it the steps' means."""
    nodes, links = families.family(name)
    graph = families.judged(nodes, links, sampler_name=sampler, seed=11, steps=4, cfg=1.5)
    model = links["model"]
    graph |= {
        "ours": probe("Latent", "sampler", 1),
        "batch": node("RepeatLatentBatch", samples=links["latent_image"], amount=2),
        "noise": node("TestSharedNoise", seed=11),
        "guider": node("CFGGuider", model=model, positive=links["positive"], negative=links["negative"],
                       cfg=1.5),
        "select": node("KSamplerSelect", sampler_name=sampler),
        "sigmas": node("BasicScheduler", model=model, scheduler="simple", steps=4, denoise=1.0),
        "stock": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0],
                      sampler=["select", 0], sigmas=["sigmas", 0], latent_image=["batch", 0]),
        "theirs": probe("Latent", "stock"),
        "replay": node("TestProbeReplay", value=["sampler", 0], model=model),
        **train_nodes(model=model, epochs=2, learning_rate=3e-3),
        "losses": probe("LossMap", "train", 2),
    }  # fmt: skip
    entry = host.run(graph)
    assert found(entry, "ours") == found(entry, "theirs")
    assert len(set(found(entry, "ours")["candidates"])) == 2
    replay, losses = found(entry, "replay"), found(entry, "losses")
    assert replay["kernel"] == KERNELS[name][sampler] and replay["apart"] == 0 and replay["last"] < 1e-5
    mean, std, count = replay["noise"]
    assert abs(mean) < 5 / math.sqrt(count) and abs(std - 1) < 5 / math.sqrt(2 * count)
    first = {name: values[0] for name, values in losses.items()}
    assert first["winner_log-ratio"] == first["loser_log-ratio"] == first["KL_to_reference"] == 0.0
    assert losses["loss"][-1] < losses["loss"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert entry["outputs"]["train"]["warnings"] == []


@pytest.mark.parametrize("sampler", ["ddpm", "lcm"])
def test_a_window_of_its_steps_is_recorded_and_gone_through_again(host, sampler):
    nodes, links = families.family("SDXL")
    window = dict(steps=5, candidates=8, window_steps=2, window_start=1)
    graph = nodes | {
        "sampler": families.sampler(links, sampler_name=sampler, **window),
        "again": node("TestProbeReplay", value=["sampler", 0], model=links["model"]),
    }
    again = found(host.run(graph), "again")
    mean, std, count = again["noise"]
    assert count == 2 * 8 * 4 * 8 * 8 and again["apart"] == 0
    assert abs(mean) < 5 / math.sqrt(count) and abs(std - 1) < 5 / math.sqrt(2 * count)


# --- what is refused ---


@refused("*ddpm* and *lcm* with another eta than 1", "set it to 1")
@pytest.mark.parametrize("name", ["ddpm", "lcm"])
def test_a_sampler_without_eta_has_none(failure, name):
    graph = recording(sampler_name=name, eta=0.5) | {"look": probe("Steps", "sampler")}
    says(failure(graph), "D3POKSampler", "eta: ", name, "must be 1", "0.5", "euler_ancestral")


def test_ddpm_is_refused_for_flow_models(failure):
    graph = flow.recording(sampler_name="ddpm") | {"look": probe("Steps", "sampler")}
    says(failure(graph), "D3POKSampler", "sampler_name: ddpm", "epsilon and v models", "euler_ancestral")


@refused("*euler_ancestral_cfg_pp* in a window", "record all steps")
def test_cfg_plus_plus_is_refused_in_a_window(failure):
    graph = recording(sampler_name=CFG_PP, window_steps=1) | {"look": probe("Steps", "sampler")}
    says(failure(graph), "D3POKSampler", "window_steps: ", CFG_PP, "set it to 0")
