"""API prompts from before D3PO Train Settings, whose train steps hold every setting."""

import json

import pytest

from d3po_core.runs.store import load_run
from tests.host.graphs import TRAINING, found, judged, loop, node, probe, same_tensors, says, trained, unique
from tests.host.test_workflows import THUMBS, one, tiny
from tools.host import ROOT
from tools.workflow import load

OLDER = ROOT / "tests" / "older_workflows"


def older_node(**training):
    return node("D3POTrainStep", model=["loader", 0], preferences=["judge", 0], **TRAINING | training)


def test_older_templates_train_one_lora_whether_their_settings_are_a_node_or_not(
    host, object_info, lora_file
):
    old, new = (unique(name) for name in ("old", "new"))
    later = tiny(OLDER / f"{THUMBS}_with_settings.json", object_info, new, alpha=2.0)
    prompts = {old: load(OLDER / f"{THUMBS}.api.json"), new: later}
    changes = {
        "D3POKSampler": {"steps": 3, "candidates": 2},
        "EmptyLatentImage": {"width": 32, "height": 32},
        "D3POTrainStep": {"epochs": 1, "rank": 2, "alpha": 2.0},
        "D3POLoadRun": {"run": old},
        "D3POSaveRun": {"run": old},
    }
    for name, values in changes.items():
        prompts[old][one(prompts[old], name)]["inputs"] |= values
    for prompt in prompts.values():
        picker = prompt[one(prompt, "D3POPairPreference")]["inputs"]
        (told,) = host.run(prompt)["outputs"][one(prompt, "D3POPairPreference")]["d3po"]
        picker["picks"] = json.dumps({"sets": {told["set"]: {"good": [0], "bad": [1]}}})
        host.run(prompt)
    assert same_tensors(lora_file(old), lora_file(new))
    before, now = (load_run(host.base / "output" / "d3po" / "runs" / run)[1] for run in prompts)
    assert before["settings"] == now["settings"] and before["rounds"][0]["key"] == now["rounds"][0]["key"]


@pytest.mark.parametrize(
    "older, newer",
    [
        ({}, {}),
        ({"beta": 150, "seed": 5.0}, {"beta": 150.0, "seed": 5}),
        ({"method": "DDPO", "method.ratio_clip": 0.1}, {"method": "DDPO", "ratio_clip": 0.1}),
        ({"method": "MaPO", "method.learn_from": "noised images"}, {"method": "MaPO"}),
        ({"method": "IPO"}, {"method": "IPO", "caption_dropout": 0.2}),
        ({"beta": ["number", 0]}, {"beta": 30.0}),
    ],
    ids=str,
)
def test_its_settings_are_taken_from_the_train_step(host, older, newer):
    new, old = trained(newer, seed=95), trained(seed=95)
    old |= {"number": node("PrimitiveFloat", value=30.0), "train": older_node(**older)}
    del old["train settings"]
    old, new = (host.run(graph) for graph in (old, new))
    assert found(old, "losses") == found(new, "losses")


def test_a_run_that_was_begun_by_an_older_prompt_goes_on(host, run_file):
    run = unique("older")
    graph = loop(run, seed=96)
    graph["train"] = older_node(lora=["run", 1])
    del graph["train settings"]
    host.run(graph)
    entry = host.run(loop(run, seed=97))
    assert entry["outputs"]["save"]["text"] == [f"{run}: 2 steps"] and run_file(run).exists()


def test_a_value_that_the_page_would_not_have_taken_is_refused(failure):
    graph = judged(seed=95) | {"train": older_node(clip=5), "losses": probe("LossMap", "train", 2)}
    says(failure(graph), "D3POTrainStep", "clip is 5, but must lie from 0 to 0.99")
