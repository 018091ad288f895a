"""What an artist reads when recording or judging cannot work: which input, and what to do."""

import json

import pytest

from tests.host.graphs import judged, node, picked, probe, recording, says, with_prompts
from tests.host.support import refused


def failing(graph, **inputs):
    """The graph with a look at the recording, and with inputs of the sampler changed."""
    graph["sampler"]["inputs"] |= inputs
    return graph | {"look": probe("Trajectory", "sampler")}


# --- the sampler ---


@refused("eta 0", "raise it: without noise a step has no log-probability")
def test_eta_zero_is_refused_before_sampling(host, failure):
    began = len(host.log())
    says(failure(failing(recording(seed=111), eta=0.0)), "D3POKSampler", "eta", "deterministic", "(0, 1]")
    assert "it/s]" not in host.log()[began:].split("Traceback")[0], "it sampled first"


def test_one_candidate_is_refused(failure):
    says(failure(failing(recording(), candidates=1)), "D3POKSampler", "candidates", "min of 2")


@pytest.mark.parametrize("change", [dict(steps=1), dict(denoise=0.0)])
def test_too_few_steps_to_train_on_are_refused(failure, change):
    says(failure(failing(recording(), **change)), "D3POKSampler", "steps", "at least 2 steps")


@refused("a batch of latents, unless one for each candidate", "give it one")
def test_a_batch_of_latents_is_refused_unless_there_is_one_for_each_candidate(host, failure):
    graph = failing(recording(candidates=4))
    graph["empty"]["inputs"]["batch_size"] = 3
    says(failure(graph), "D3POKSampler", "latent_image", "3 latents", "candidates")
    graph["empty"]["inputs"]["batch_size"] = 4
    host.run(graph)


@pytest.mark.parametrize("prompts", ["", " \n \n"])
def test_no_prompts_are_refused(failure, prompts):
    graph = with_prompts(failing(recording()), ["a cat"])
    graph["prompts"]["inputs"]["prompts"] = prompts
    says(failure(graph), "D3POPrompts", "prompts", "at least one prompt")


# --- the judges ---


def test_another_number_of_images_than_candidates_is_refused(failure):
    graph = judged(candidates=3) | {"look": probe("Preferences", "judge")}
    graph["one"] = node("ImageFromBatch", image=["decode", 0], batch_index=0, length=1)
    graph["judge"]["inputs"]["images"] = ["one", 0]
    says(failure(graph), "D3POObjectivePreference", "images", "1 images for 3 candidates")
    graph["judge"] = node("D3POPairPreference", trajectory=["sampler", 0], images=["one", 0], picks="")
    says(failure(graph), "D3POPairPreference", "images", "1 images for 3 candidates")


@pytest.mark.parametrize("colour", ["red", "#12345", "#1234567", "#gg0000"])
def test_a_bad_colour_is_refused(failure, colour):
    graph = judged(objective="colour (closer to the target)") | {"look": probe("Preferences", "judge")}
    graph["judge"]["inputs"]["target_colour"] = colour
    says(failure(graph), "D3POObjectivePreference", "target_colour", colour, "#rrggbb")


def test_a_bad_colour_matters_only_where_it_is_used(host):
    graph = judged() | {"look": probe("Preferences", "judge")}
    graph["judge"]["inputs"]["target_colour"] = "red"
    host.run(graph)


@pytest.mark.parametrize(
    "picks, parts",
    [
        ("the second one", ("not a picks value", "empty it to start again")),
        ("[1, 0]", ("not a picks value",)),
        ('{"sets": [1]}', ("not a picks value",)),
        ('{"version": 99, "sets": {}}', ("version 99", "update the pack")),
    ],
)
def test_picks_that_are_no_picks_are_refused(failure, picks, parts):
    says(failure(picked(picks)), "D3POPairPreference", "picks", *parts)


@pytest.mark.parametrize(
    "judgement, parts",
    [
        ({"pairs": [[0, 2]]}, ("no candidate 2", "numbered 0 to 1")),
        ({"pairs": [[0, 0]]}, ("not a pair of two different candidates",)),
        ({"pairs": [[0, 1], [1, 0]]}, ("each picked over the other",)),
        ({"ranking": [0, 5]}, ("no candidate 5",)),
        ({"scores": [1.0, 2.0, 3.0]}, ("3 scores for 2 candidates",)),
        ({"pairs": "01"}, ()),
        ({"likes": [1]}, ("no field 'likes'",)),
        ([[0, 1]], ("must be an object",)),
    ],
)
def test_picks_that_do_not_fit_their_set_are_refused(host, failure, judgement, parts):
    name = host.run(picked(seed=112))["outputs"]["judge"]["d3po"][0]["set"]
    graph = picked(json.dumps({"sets": {name: judgement}}), seed=112)
    says(failure(graph), "D3POPairPreference", "picks", name, *parts)
