"""Every method of the train step in the real host: it learns what it was not shown, and its settings arrive."""

import math
import re

import pytest

from tests.host.graphs import CHECKPOINT, found, judged, node, probe, stage, train_node, unique, with_prompts
from tools.host import WorkflowError

PROMPTS = [f"a {thing} on a {colour} background" for thing in ("cat", "dog", "house", "heart", "fish")
           for colour in ("red", "blue")]
LEARNING = dict(epochs=4, sets_per_update=2, learning_rate=2e-3, rank=4, alpha=4.0, targets="attention and feed-forward",
                guidance="off (faster)", beta=200.0, weighting="standardised", clip=0.0)
# PPO's clip of 1e-4 is made for new samples after each update
METHODS = {
    "D3PO": {}, "Diffusion-DPO": {}, "IPO": {}, "DPO with label smoothing": {}, "DPO with winner anchor": {},
    "Diffusion-SDPO": {}, "beta-DPO": {}, "MaPO": {}, "Diffusion-KTO": {}, "DDPO": {"method.ratio_clip": 0.1},
    "DPOK": {"method.ratio_clip": 0.1}, "reward-weighted": {"method.reward_beta": 100.0}, "supervised": {},
}
NOISED = {"method.learn_from": "noised images", "method.caption_dropout": 0.2}
RECORDED_NOISE = {"method.learn_from": "noised images, recorded noise"}


def both(**train):
    """Recorded sets to train on and others to measure on, by brightness; nodes are cached from test to test."""
    graph = with_prompts(judged(steps=4, candidates=4), PROMPTS, seed=1)
    other = with_prompts(judged(steps=4, candidates=4), PROMPTS, seed=2)
    renamed = {name: name + " held out" for name in other if other[name] != graph.get(name)} | {
        name: name + " held out" for name in ("positive", "sampler", "decode", "judge")}
    for name, each in other.items():
        if name in renamed:
            graph[renamed[name]] = node(each["class_type"], **{
                key: [renamed.get(value[0], value[0]), value[1]] if isinstance(value, list) else value
                for key, value in each["inputs"].items()})
    graph["train"] = train_node(**LEARNING | train)
    graph["losses"] = probe("LossMap", "train", 2)
    graph["accuracy"] = node("D3POImplicitAccuracy", model=["loader", 0], tuned=["train", 0],
                             preferences=["judge held out", 0], draws=16, seed=0)
    return graph


def interval(entry):
    """(accuracy, lower end of its 95% interval) from the report."""
    text = entry["outputs"]["accuracy"]["text"][0]
    return tuple(map(float, re.search(r"([\d.]+) \(95% interval ([\d.]+) to", text).groups()))


@pytest.mark.parametrize("name, more", [*METHODS.items(), ("Diffusion-DPO", RECORDED_NOISE), ("IPO", NOISED)], ids=str)
def test_a_methods_implicit_reward_ranks_held_out_pairs_better_than_chance(host, name, more):
    entry = host.run(both(**{"method": name} | more))
    share, low = interval(entry)
    assert low > 0.5, entry["outputs"]["accuracy"]["text"][0]
    losses = found(entry, "losses")
    assert all(math.isfinite(value) for value in losses["loss"]) and len(losses["loss"]) == 20
