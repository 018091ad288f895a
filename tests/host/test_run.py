"""python dev.py run: workflows without a page."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from d3po_core.runs.store import load_record
from tests.host.graphs import judged, loop, train_nodes, unique
from tests.host.test_workflows import FILES, OBJECTIVE, PICKER
from tools import run
from tools.host import ROOT
from tools.workflow import control_values, load, to_api

SMALL = (
    "D3POKSampler.steps=3", "D3POKSampler.candidates=2", "EmptyLatentImage.width=32",
    "EmptyLatentImage.height=32", "D3POTrainStep.epochs=1", "D3POTrainStep.rank=2", "KSampler.steps=2",
)  # fmt: skip


def chosen(changes, prompt):
    """Those of the changes that concern a node of a prompt, as options."""
    types = {node["class_type"] for node in prompt.values()}
    return [part for change in changes if change.split(".")[0] in types for part in ("--set", change)]


@pytest.mark.parametrize("name", sorted(FILES))
def test_of_every_example_it_is_known_what_is_missing(command, name):
    code, said, _ = command(FILES[name], "--dry-run")
    assert code == 0 and "nothing is missing" in said


def test_rounds_follow_one_another_as_the_workflow_says(host, command, object_info):
    name = unique("headless")
    workflow = load(FILES[OBJECTIVE])
    changes = (*SMALL, "D3POPrompts.count=2", f"D3POLoadRun.run={name}", f"D3POSaveRun.run={name}")
    options = chosen(changes, to_api(workflow, object_info))
    code, said, _ = command(FILES[OBJECTIVE], "--rounds", 2, *options)
    assert code == 0, said
    assert "round 2 of 2" in said and f"{name}: 2 steps" in said and "  D3PO LoRA Train Step\n" in said
    record = load_record(host.base / "output" / "d3po" / "runs" / name)
    seeds = [{judged_set["set"] for judged_set in round_["sets"]} for round_ in record["rounds"]]
    assert record["step"] == 2 and not seeds[0] & seeds[1], "the second round has other candidates"


def test_where_picks_are_missing_it_waits_for_them(command, object_info):
    options = chosen(SMALL, to_api(load(FILES[PICKER]), object_info))
    code, said, _ = command(FILES[PICKER], *options, "--set", f"D3POLoadRun.run={unique()}")
    assert code == run.WAITS and "judge them on the page" in said


def test_what_cannot_be_run_is_told_in_a_line(command, tmp_path):
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "other.json").write_text('{"a": 1}')
    prompt = {"1": {"class_type": "NoSuchNode", "inputs": {}}}
    (tmp_path / "unknown.json").write_text(json.dumps(prompt))
    prompt = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "gone.safetensors"}}}
    (tmp_path / "gone.json").write_text(json.dumps(prompt))
    example = FILES[OBJECTIVE]
    for arguments, words in {
        (tmp_path / "none.json",): "cannot be read",
        (tmp_path / "no.json",): "is no JSON",
        (tmp_path / "other.json",): "is no workflow",
        (tmp_path / "unknown.json",): "has no node NoSuchNode",
        (tmp_path / "gone.json", "--dry-run"): "ckpt_name: there is no 'gone.safetensors' here",
        (example, "--rounds", 0): "--rounds",
        (example, "--set", "D3POTrainStep"): "write NODE.INPUT=VALUE",
        (example, "--set", "Nobody.epochs=1"): "there is no node Nobody",
        (example, "--set", "D3POTrainStep.nothing=1"): "has no input nothing",
        (example, "--set", "D3POTrainStep.rank=many"): "that is no number",
    }.items():
        code, _, complained = command(*arguments)
        assert code == run.WRONG and words in complained and "Traceback" not in complained


def test_a_round_that_fails_ends_with_1_and_the_nodes_words(command, tmp_path):
    (tmp_path / "fails.json").write_text(json.dumps(judged(steps=1) | train_nodes()))
    code, _, complained = command(tmp_path / "fails.json")
    assert code == run.FAILED and "D3POKSampler" in complained and "use at least 2 steps" in complained


def test_once_training_has_ended_by_itself_no_round_follows(host, command, tmp_path):
    name = unique("enough")
    (tmp_path / "far.json").write_text(json.dumps(loop(name, dict(epochs=8, stop_kl=1e-9), seed=4)))
    for rounds, why in ((3, "stopped after update 5: KL"), (2, "KL to reference is")):
        code, said, _ = command(tmp_path / "far.json", "--rounds", rounds, "--until-stop")
        assert code == 0 and f"No further round: {why}" in said and "round 2" not in said
    record = load_record(host.base / "output" / "d3po" / "runs" / name)
    assert [len(round_["sets"]) for round_ in record["rounds"]] == [1, 1] and record["step"] == 5


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_sigterm_keeps_what_was_learned_and_ends_with_0(host, tmp_path):
    name = unique("stopped")
    (tmp_path / "long.json").write_text(json.dumps(loop(name, dict(epochs=400), seed=4)))
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.run", tmp_path / "long.json", "--url", host.url],
        cwd=ROOT, stdout=subprocess.PIPE, text=True)  # fmt: skip
    progress = host.base / "output" / "d3po" / "runs" / name / "progress.safetensors"
    deadline = time.monotonic() + 120
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and time.monotonic() - began < 10, said
    assert "Run it again to go on" in said and progress.exists()


def test_widgets_move_on_as_a_page_moves_them(object_info):
    assert [run.moved_on(5, how) for how in ("fixed", "increment", "decrement")] == [5, 6, 4]
    assert run.moved_on(0, "decrement") == 0 and run.moved_on(2**64 - 1, "increment") == 2**64 - 1
    drawn = {run.moved_on(5, "randomize", random.Random(seed)) for seed in range(20)}
    assert len(drawn) == 20 and all(0 <= value < 2**53 for value in drawn)
    controls = control_values(load(FILES[OBJECTIVE]), object_info)
    assert {how for inputs in controls.values() for how in inputs.values()} <= {
        "fixed", "increment", "decrement", "randomize"}  # fmt: skip
    assert any("seed" in inputs for inputs in controls.values())
