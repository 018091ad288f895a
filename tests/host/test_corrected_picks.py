"""Answers that are changed after a run was trained on them.

The picker says so, and going back trains that round again."""

import json

import pytest

from tests.host.graphs import cached_nodes, found, loop, node, picked, probe, same_tensors, unique
from tests.host.test_runs import record_of

OLD, NEW = {"pairs": [[0, 1]]}, {"pairs": [[1, 0]]}


def picking(run, picks, checkpoint="latest"):
    """The loop with a person's picks, {set name: judgement}."""
    graph = loop(run, dict(learning_rate=1e-2), seed=701)
    graph["judge"] = picked(json.dumps({"sets": picks}))["judge"]
    graph["run"]["inputs"]["checkpoint"] = checkpoint
    graph["save"]["inputs"]["run"] = ""
    return graph


def shown(host, run, picks, **options):
    """(name of the set that is shown, what the picker says)"""
    outputs = host.run(picking(run, picks, **options))["outputs"]["judge"]
    assert outputs.get("text", []) == outputs.get("warnings", [])
    return outputs["d3po"][0]["set"], outputs.get("text", [])


@pytest.fixture(scope="module")
def evening(host):
    """A run of two rounds: (its name, the names of their sets, and of the set that waits for picks now)."""
    run, picks, sets = unique("evening"), {}, []
    for _ in range(2):
        name, told = shown(host, run, picks)
        assert told == []
        picks[name] = OLD
        sets.append(name)
        assert shown(host, run, picks) == (name, [])
    waiting, told = shown(host, run, picks)
    assert told == [] and waiting not in picks
    return run, *sets, waiting


def test_an_answer_that_was_changed_after_training_is_told(host, evening):
    run, first, second, waiting = evening
    picks = {first: NEW, second: OLD}
    name, (told,) = shown(host, run, picks)
    assert name == waiting
    for part in (
        f"Set {first} was trained on in round 1 of the run '{run}' with other answers",
        "checkpoint to 0, ",
        "press Run",
        "What was trained after that round is left behind",
    ):
        assert part in told
    entry = host.run(picking(run, picks))
    assert "judge" in cached_nodes(entry) and entry["outputs"]["judge"]["text"] == [told], (
        "said as long as it is so"
    )
    (told,) = shown(host, run, {first: OLD, second: NEW})[1]
    assert f"Set {second} was trained on in round 2" in told and "checkpoint to 1, " in told
    assert len(shown(host, run, {first: NEW, second: NEW, "elsewhere": NEW})[1]) == 2


@pytest.mark.parametrize(
    "changed", [OLD, OLD | {"log": {"pairs": []}}, OLD | {"ties": []}, NEW | {"open": True}]
)
def test_what_says_the_same_or_is_not_finished_is_not_told(host, evening, changed):
    run, first, second, _ = evening
    assert shown(host, run, {first: changed, second: OLD})[1] == []


def test_a_run_whose_name_comes_over_a_wire_is_looked_at_too(host, evening):
    run, first, second, _ = evening
    graph = picking(run, {first: NEW, second: OLD}) | {"name": node("PrimitiveString", value=run)}
    graph["run"]["inputs"]["run"] = ["name", 0]
    (told,) = host.run(graph)["outputs"]["judge"]["text"]
    assert f"Set {first} was trained on" in told


def test_going_back_trains_the_round_again_with_the_answers_as_they_are_now(host, run_file, lora_file):
    run, fresh = unique("corrected"), unique("fresh")
    name, _ = shown(host, run, {})
    shown(host, run, {name: OLD})
    old = run_file(run).read_bytes()
    _, (told,) = shown(host, run, {name: NEW})
    assert "checkpoint to 0, " in told
    assert shown(host, run, {name: NEW}, checkpoint="0") == (name, []), "the same candidates come again"
    assert shown(host, fresh, {name: NEW}) == (name, [])
    assert same_tensors(run_file(run), run_file(fresh)) and same_tensors(lora_file(run), lora_file(fresh))
    assert run_file(run).read_bytes() != old
    record = record_of(run_file(run))
    assert record["step"] == 1 and record["rounds"] == record_of(run_file(fresh))["rounds"]
    assert shown(host, run, {name: NEW})[1] == [], "nothing is left to say"
    graph = picking(run, {name: OLD}) | {"look": probe("Trajectory", "sampler")}
    assert found(host.run(graph), "look")["settings"]["lora"], "latest is the new LoRA"


def test_a_state_that_is_not_kept_any_more_is_not_named(host):
    run, picks = unique("pruned"), {}
    for _ in range(3):
        name, _ = shown(host, run, picks)
        picks[name] = OLD
        graph = picking(run, picks)
        graph["save"]["inputs"]["keep"] = 1
        host.run(graph)
    sets = list(picks)
    (told,) = shown(host, run, picks | {sets[1]: NEW})[1]
    assert "round 2" in told and "checkpoint to 0, the last state before it that is kept" in told
