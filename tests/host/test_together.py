"""Several ComfyUIs that run one workflow: torchrun, two of them, on one processor each."""

import json
import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
import torch

from d3po_core.candidates.prompts import drawn
from d3po_core.dataset.store import Dataset
from d3po_core.runs.store import load_record, load_run
from tests.conftest import HERE
from tests.host.graphs import judged, loop, node, unique, until
from tools.host import ROOT, link, make_base

PROMPTS = ["a cat on a red background", "a dog on a blue background", "a fox on a green background"]
TRAINING = dict(method="D3PO", epochs=8, sets_per_update=2, dropout=0.1, learning_rate=3e-4)
UPDATES = 16  # of a round


def hosts_under(process):
    """The ComfyUIs that a process has started, by rank."""
    of = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with_ranks = child.environ() if "launch_host" in " ".join(child.cmdline()) else {}
        if "RANK" in with_ranks:
            of[int(with_ranks["RANK"])] = child
    return of


def keep(dataset):
    wires = dict(trajectory=["sampler", 0], images=["decode", 0])
    return node("D3POSaveToDataset", **wires, dataset=dataset, annotator="me")


@pytest.fixture(scope="module")
def old(host):
    """A dataset of a judged set, which all will load."""
    name = unique("old")
    graph = judged(candidates=4, seed=9) | {"keep": keep(name)}
    graph["judge"]["inputs"]["dataset"] = ["keep", 2]
    host.run(graph)
    return host.base / "output" / "d3po" / "datasets" / name


@pytest.fixture(scope="module")
def graph(old):
    """A round: three prompts, which two cannot share evenly, are recorded, kept, judged and trained on."""
    wires = {"held_out": ["held", 0], "vae": ["loader", 2]}
    made = loop("run", TRAINING | wires, PROMPTS, candidates=3)
    made["keep"] = keep("kept")
    made["held"] = node("D3POLoadPreferences", dataset=old.name, split="all", held_out=0.1, annotators="",
                        joining="all", limit=0, since="", until="")  # fmt: skip
    return made


@pytest.fixture(scope="module")
def both(graph, old, tmp_path_factory):
    """(base folder, what was said) of two rounds of two processes, the second of which is killed in training
    its second round."""
    base = make_base(tmp_path_factory.mktemp("together"))
    link(HERE / "host" / "probe", base / "custom_nodes" / "d3po-test-probe")
    shutil.copytree(old, base / "output" / "d3po" / "datasets" / old.name)
    (base / "round.json").write_text(json.dumps(graph))
    command = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tools.run")
    process = subprocess.Popen(
        [sys.executable, "-m", *command, base / "round.json", "--base", base, "--rounds", "2"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    run = base / "output" / "d3po" / "runs" / "run"
    try:
        until((run / "run.safetensors").exists, 240)
        until(lambda: not (run / "progress.safetensors").exists())
        until((run / "progress.safetensors").exists, 60)
        hosts_under(process)[1].send_signal(signal.SIGKILL)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    return base, process.returncode, said


@pytest.fixture(scope="module")
def alone(graph, host):
    """The run's folder after two rounds in one process."""
    name = unique("alone")
    for round_ in range(2):
        host.run(named(graph, name))
    return host.base / "output" / "d3po" / "runs" / name


def named(graph, name):
    """The graph on a run and a dataset of this name."""
    changed = json.loads(json.dumps(graph))
    changed["run"]["inputs"]["run"] = changed["save"]["inputs"]["run"] = name
    changed["keep"]["inputs"]["dataset"] = name
    return changed


def lora(state):
    tensors, _ = state
    return torch.cat([value.flatten() for name, value in sorted(tensors.items()) if "lora_up" in name])


def test_two_learn_what_one_learns(both, alone):
    base, _, said = both
    ours, theirs = load_run(base / "output" / "d3po" / "runs" / "run"), load_run(alone, str(UPDATES))
    (_, record), (_, expected) = ours, theirs
    assert record["step"] == UPDATES, said
    assert [[known["set"] for known in round_["sets"]] for round_ in record["rounds"]] == [
        [known["set"] for known in round_["sets"]] for round_ in expected["rounds"]
    ]
    assert record["rounds"][0]["key"] == expected["rounds"][0]["key"]
    assert record["history"][-1]["held-out pairs"] == 6, "a set that all have counts once"
    assert (lora(ours) - lora(theirs)).norm() < 1e-3 * lora(theirs).norm() != 0
    for update, other in zip(record["history"], expected["history"]):
        assert update == pytest.approx(other, rel=1e-2, abs=1e-4)
    assert said.count("round 1 of 2") == 1, "one of them speaks"
    assert "Warning" not in said


def test_what_both_recorded_is_in_one_dataset_in_the_order_of_the_prompts(both):
    with Dataset(both[0] / "output" / "d3po" / "datasets" / "kept", create=False) as kept:
        rows = kept.sets()
        assert [row.prompt for row in rows][:3] == drawn("\n".join(PROMPTS), len(PROMPTS), 1)[0]
        assert all(row.has_images and row.has_trajectory for row in rows)


def test_one_that_dies_ends_all_and_one_alone_goes_on(both, alone, graph, host):
    base, code, said = both
    assert code != 0 and "(process 1 of 2): ComfyUI is not running" in said, said
    name = unique("alone-again")
    shutil.copytree(base / "output" / "d3po" / "runs" / "run", alone.parent / name)
    entry = host.run(named(graph, name))
    told = "".join(text for output in entry["outputs"].values() for text in output.get("text", []))
    assert "Went on after update" in told, told
    record = load_record(alone.parent / name)
    assert record["step"] == 2 * UPDATES
    ours, theirs = load_run(alone.parent / name), load_run(alone)
    assert (lora(ours) - lora(theirs)).norm() < 1e-2 * lora(theirs).norm()
