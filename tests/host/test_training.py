"""The train step: its first update, its repeatability, its runs."""

import json
import math

import numpy as np
import pytest
from safetensors import safe_open

from tests.host.graphs import (
    cached_nodes,  # fmt: skip
    found,
    judged,
    loop,
    node,
    probe,
    same_tensors,
    stage,
    stock_image,
    train_nodes,
    trained,
    unique,
)

PROMPTS = ["a cat on a red background", "a dog on a blue background"]
LN2 = float(np.float32(math.log(2)))


def step_of(file):
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["d3po"])["step"]


def seeded(graph, seed):
    graph["prompts"]["inputs"]["seed"] = seed
    return graph


# --- the first update ---


@pytest.mark.parametrize("weighting, beta, clip", [("paper", 0.1, 0.1), ("standardised", 200.0, 0.0)])
def test_before_the_first_update_policy_and_reference_are_one(host, weighting, beta, clip):
    """steps=3 trains on two steps, whose mean of two equal losses is exact."""
    graph = trained(dict(weighting=weighting, beta=beta, clip=clip), seed=61, steps=3)
    losses = found(host.run(graph), "losses")
    assert losses["winner_log-ratio"] == losses["loser_log-ratio"] == losses["KL_to_reference"] == [0.0]
    assert losses["loss"] == [LN2]
    assert losses["gradient_norm"][0] > 0


def test_the_reference_is_taken_from_the_recording(host):
    """A recording whose x0 was changed shows in the log-ratio."""
    graph = trained(trajectory=("spoil", 0), seed=62)
    graph["spoil"] = node("TestSpoilTrajectory", trajectory=["sampler", 0], how="denoised")
    losses = found(host.run(graph), "losses")
    assert losses["winner_log-ratio"] != [0.0] or losses["loser_log-ratio"] != [0.0]
    assert losses["KL_to_reference"][0] > 0


def test_without_guidance_the_reference_is_computed_anew(host):
    """Then the recording's x0, with guidance, is no reference: a change of it does not show."""
    graph = trained(dict(guidance="off (faster)"), trajectory=("spoil", 0), seed=62)
    graph["spoil"] = node("TestSpoilTrajectory", trajectory=["sampler", 0], how="denoised")
    losses = found(host.run(graph), "losses")
    assert losses["winner_log-ratio"] == losses["loser_log-ratio"] == [0.0]


def test_a_recording_by_the_runs_lora_gets_the_base_as_reference(host):
    run = unique("reference")
    host.run(loop(run, dict(learning_rate=1e-2), seed=63))
    second = host.run(loop(run, dict(learning_rate=1e-2), seed=64) | {"losses": probe("LossMap", "train", 2)})
    assert found(second, "losses")["KL_to_reference"][-1] > 0
    again = loop(run, dict(learning_rate=1e-2, reference="round start"), seed=65)
    third = found(host.run(again | {"losses": probe("LossMap", "train", 2)}), "losses")
    # merged into the weights for sampling, and beside them for training, a LoRA differs by rounding
    assert abs(third["winner_log-ratio"][-1]) < 1e-5 and third["loss"][-1] == pytest.approx(LN2, abs=1e-3)
    assert third["KL_to_reference"][-1] < 1e-3 * found(second, "losses")["KL_to_reference"][-1]


def test_training_makes_the_preferred_candidate_likelier(host):
    losses = found(host.run(trained(dict(epochs=6, learning_rate=1e-2), seed=66)), "losses")
    assert losses["loss"][-1] < losses["loss"][0]
    assert losses["margin"][-1] > 0 and losses["implicit_accuracy"][-1] == 1.0
    assert len(losses["loss"]) == 6


@pytest.mark.usefixtures("emoji_model")
def test_candidates_that_go_through_one_by_one_train_alike(host):
    whole = found(host.run(trained(dict(epochs=3), seed=67, candidates=3)), "losses")
    single = found(host.run(trained(dict(epochs=3, candidates_per_pass=1), seed=67, candidates=3)), "losses")
    for name in ("loss", "margin", "gradient_norm"):
        assert single[name] == pytest.approx(whole[name], rel=1e-2, abs=1e-5)


@pytest.mark.usefixtures("emoji_model")
def test_a_model_in_fp8_trains_with_checkpointing_or_without(host):
    graph = judged(model=("eight", 0), seed=68) | {
        "eight": node("UNETLoader", unet_name="other.safetensors", weight_dtype="fp8_e4m3fn")
    }
    for name, checkpointing in (("kept", "off"), ("again", "on")):
        graph |= train_nodes(
            name, model=("eight", 0), epochs=3, learning_rate=1e-2, checkpointing=checkpointing
        )
        graph[f"{name} losses"] = probe("LossMap", name, 2)
    entry = host.run(graph)
    kept = found(entry, "kept losses")
    assert kept["winner_log-ratio"][0] == 0 and kept["margin"][-1] > 0 < kept["gradient_norm"][0]
    assert found(entry, "again losses") == kept


# --- repeatability ---


def test_the_same_queue_on_a_fresh_run_trains_the_same_bits(host, run_file, lora_file):
    one, other, third = unique(), unique(), unique()
    for run, seed, rounds in ((one, 7, 2), (other, 7, 2), (third, 8, 1)):
        for drawn in range(rounds):
            host.run(seeded(loop(run, dict(seed=seed), prompts=PROMPTS), drawn))
    assert same_tensors(run_file(one), run_file(other)) and same_tensors(lora_file(one), lora_file(other))
    assert not same_tensors(lora_file(one), lora_file(third))


def test_two_rounds_on_the_same_candidates_are_one_round_of_two_epochs(host, run_file, lora_file):
    """So the optimizer, its step and the order of training are part of the run."""
    one, two = unique("one"), unique("two")
    for run, epochs in ((one, 2), (two, 1), (two, 1)):
        graph = loop(run, dict(epochs=epochs, step_fraction=0.5, learning_rate=1e-2), seed=74, steps=5)
        graph["sampler"]["inputs"]["model"] = ["loader", 0]
        host.run(graph)
    assert same_tensors(run_file(one), run_file(two)) and same_tensors(lora_file(one), lora_file(two))


def test_two_runs_beside_each_other_do_not_mix(host, run_file):
    one, other, alone = unique(), unique(), unique()
    for run in (one, other, one, alone, alone):
        host.run(loop(run, seed=72))
    assert same_tensors(run_file(one), run_file(alone))
    assert (step_of(run_file(one)), step_of(run_file(other))) == (2, 1)


def test_a_runs_name_may_come_over_a_wire(host, run_file):
    run = unique("wired")
    graph = loop(run, seed=73) | {"name": node("PrimitiveString", value=run)}
    graph["run"]["inputs"]["run"] = graph["save"]["inputs"]["run"] = ["name", 0]
    began = len(host.log())
    host.run(graph)
    host.run(graph)
    assert step_of(run_file(run)) == 2, "what the first queue saved was loaded by the second"
    del graph["save"]
    graph["losses"] = probe("LossMap", "train", 2)
    host.run(graph)
    assert {"run", "sampler"} <= cached_nodes(host.run(graph | {"losses": probe("LossMap", "train", 2)}))
    assert "WARNING" not in host.log()[began:]


def test_an_untrained_run_hands_on_the_model_as_it_is(host, base):
    run = unique("untrained")
    graph = stage() | {"run": node("D3POLoadRun", model=["loader", 0], run=run)}
    graph |= stock_image(["run", 0], "run_stock") | stock_image()
    entry = host.run(graph)
    assert found(entry, "run_stock_latent") == found(entry, "stock_latent")
    assert not (base / "output" / "d3po" / "runs" / run).exists()
