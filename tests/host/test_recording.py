"""The recording sampler against the host's own sampling."""

import math

import pytest

from tests.host.graphs import (
    Once,  # fmt: skip
    found,
    messages,
    node,
    probe,
    recording,
    sized,
    stock_image,
    watch,
    with_prompts,
)


def recorded(host, **sampling):
    graph = recording(**sampling) | {
        "look": probe("Trajectory", "sampler"),
        "latent": probe("Latent", "sampler", 1),
    }
    entry = host.run(graph)
    return found(entry, "look"), found(entry, "latent")


def stock_ancestral(eta, seed, steps, batch, scheduler="normal", cfg=2.0):
    """The host's own nodes for euler_ancestral; only the noise, one for the whole batch, is the tests'."""
    return {
        "batch": node("EmptyLatentImage", width=32, height=32, batch_size=batch),
        "noise": node("TestSharedNoise", seed=seed),
        "guider": node("CFGGuider", model=["loader", 0], positive=["positive", 0], negative=["negative", 0],
                       cfg=cfg),
        "ancestral": node("SamplerEulerAncestral", eta=eta, s_noise=1.0),
        "sigmas": node("BasicScheduler", model=["loader", 0], scheduler=scheduler, steps=steps, denoise=1.0),
        "stock": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0],
                      sampler=["ancestral", 0], sigmas=["sigmas", 0], latent_image=["batch", 0]),
        "stock_latent": probe("Latent", "stock"),
    }  # fmt: skip


@pytest.mark.parametrize("eta, scheduler", [(1.0, "normal"), (0.5, "karras")])
def test_recording_gives_the_stock_samplers_latents_bit_for_bit(host, eta, scheduler):
    graph = recording(eta=eta, scheduler=scheduler, seed=11, steps=4, candidates=3)
    graph |= stock_ancestral(eta, 11, 4, 3, scheduler) | {"ours": probe("Latent", "sampler", 1)}
    entry = host.run(graph)
    assert found(entry, "ours") == found(entry, "stock_latent")
    assert len(set(found(entry, "ours")["candidates"])) == 3


def test_a_single_stock_ksampler_starts_from_the_same_noise(host):
    """With hardly any noise in its steps a candidate is what the stock KSampler's euler makes of its seed."""
    graph = recording(eta=0.001, seed=5, steps=3)
    graph |= {
        "ours": probe("Trajectory", "sampler"),
        "ours_latent": node("LatentFromBatch", samples=["sampler", 1], batch_index=0, length=1),
    }
    graph |= stock_image() | {
        "difference": node("LatentSubtract", samples1=["ours_latent", 0], samples2=["stock_sample", 0])
    }
    graph["stock_sample"]["inputs"]["sampler_name"] = "euler"
    graph["spread"] = probe("Latent", "difference")
    entry = host.run(graph)
    assert found(entry, "ours")["start_shared"]
    assert found(entry, "spread")["largest"] < found(entry, "stock_latent")["largest"] / 20


def test_candidates_share_the_first_noise_and_part_by_the_steps_noise(host):
    look, latent = recorded(host, seed=3, steps=8, candidates=4)
    assert look["states"] == [9, 4, 4, 4, 4] and look["denoised"] == [8, 4, 4, 4, 4]
    assert look["dtypes"] == ["torch.float32"]
    assert look["start_shared"] and look["ends_apart"] > 1e-3
    assert look["end_is_denoised"], "the last step adds no noise"
    assert len(set(latent["candidates"])) == 4
    assert look["sigmas"] == sorted(look["sigmas"], reverse=True) and look["sigmas"][-1] == 0


@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_steps_leave_the_kernels_mean_by_standard_normal_noise(host, eta):
    look, _ = recorded(host, seed=4, steps=8, candidates=4, eta=eta)
    bound = 5 / math.sqrt(look["noise_count"])
    assert abs(look["noise_mean"]) < bound and abs(look["noise_std"] - 1) < bound
    assert look["noise_apart"] > 1, "candidates draw their own noise"
    assert look["eta"] == eta


def test_the_same_seed_records_the_same_bits(host):
    first, _ = recorded(host, seed=21)
    other, _ = recorded(host, seed=22)
    again, _ = recorded(host, seed=21)
    assert again["sha"] == first["sha"] != other["sha"]


def test_denoise_below_one_starts_from_the_given_latent(host):
    look, _ = recorded(host, steps=4, denoise=0.5)
    full, _ = recorded(host, steps=4)
    assert look["states"][0] == 5 and look["sigmas"][0] < full["sigmas"][0] / 2


# --- names of sets ---


def renamed(graph):
    """The same graph with other node ids, in another order."""
    ids = {name: str(100 + i) for i, name in enumerate(reversed(graph))}

    def moved(value):
        return [ids[value[0]], value[1]] if isinstance(value, list) else value

    return {
        ids[name]: {
            "class_type": graph[name]["class_type"],
            "inputs": {key: moved(value) for key, value in reversed(graph[name]["inputs"].items())},
        }
        for name in reversed(graph)
    }, ids


def test_a_sets_name_does_not_depend_on_node_ids(host):
    look, _ = recorded(host, seed=31)
    recorded(host, seed=32)  # so that the next does not come from the cache
    graph, ids = renamed(recording(seed=31) | {"look": probe("Trajectory", "sampler")})
    assert found(host.run(graph), ids["look"])["set_id"] == look["set_id"]


@pytest.mark.usefixtures("emoji_model")
def test_a_sets_name_is_the_same_on_every_machine(host):
    """Judgements that people share belong to their set by this name: a change here would orphan them."""
    graph = sized(recording(seed=31), 64) | {"look": probe("Trajectory", "sampler")}
    assert found(host.run(graph), "look")["set_id"] == "c19cd228b31f73a4"


@pytest.mark.parametrize(
    "change", [dict(seed=32), dict(steps=4), dict(cfg=2.5), dict(eta=0.9), dict(candidates=3)]
)
def test_other_sampling_gives_the_set_another_name(host, change):
    look, _ = recorded(host, **(dict(seed=31) | change))
    assert look["set_id"] != recorded(host, seed=31)[0]["set_id"]


def test_another_prompt_gives_the_set_another_name(host):
    look, _ = recorded(host, seed=31)
    graph = recording(seed=31) | {"look": probe("Trajectory", "sampler")}
    graph["positive"]["inputs"]["text"] = "a dog on a red background"
    assert found(host.run(graph), "look")["set_id"] != look["set_id"]


def test_each_prompt_of_a_list_makes_a_set_of_its_own(host):
    graph = with_prompts(recording(), ["a cat on a red background", "a dog on a red background", "a pig"])
    looks = found(host.run(graph | {"look": probe("Trajectory", "sampler")}), "look")
    assert len({look["set_id"] for look in looks}) == len({look["sha"] for look in looks}) == 3
    assert len({look["settings"]["seed"] for look in looks}) == 3


def test_the_same_drawing_seed_draws_the_same_sets(host):
    def sets(seed):
        graph = with_prompts(recording(), ["a cat", "a dog"], seed)
        return [
            look["set_id"]
            for look in found(host.run(graph | {"look": probe("Trajectory", "sampler")}), "look")
        ]

    assert sets(1) == sets(1) != sets(2)


# --- interrupts ---


def test_an_interrupt_stops_a_recording_and_the_next_job_runs(host):
    before, _ = recorded(host, seed=41)
    interrupt = Once(host.interrupt, "sampler")
    entry, seen = watch(host, recording(steps=2000) | {"look": probe("Trajectory", "sampler")}, interrupt)
    assert interrupt.done and messages(entry, "execution_interrupted")
    assert max(m["data"]["value"] for m in seen if m["type"] == "progress") < 2000
    assert recorded(host, seed=42)[0]["sha"] != before["sha"]
    assert recorded(host, seed=41)[0]["sha"] == before["sha"]
