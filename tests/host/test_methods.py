"""Every method of the train step in the real host: it learns what it was not shown, and its settings arrive."""

import math
import re

import pytest

from tests.host.graphs import found, judged, node, probe, train_node, unique, with_prompts

PROMPTS = [f"a {thing} on a {colour} background" for thing in ("cat", "house", "fish") for colour in ("red", "blue")]
LEARNING = dict(epochs=2, sets_per_update=2, learning_rate=3e-3, rank=4, alpha=4.0, targets="all linear and convolutions",
                guidance="off (faster)", beta=200.0, weighting="standardised", clip=0.0)
# PPO's clip of 1e-4 is made for new samples after each update
METHODS = [
    ("D3PO", {}), ("Diffusion-DPO", {}), ("Diffusion-DPO", {"method.learn_from": "noised images, recorded noise"}),
    ("IPO", {}), ("IPO", {"method.learn_from": "noised images", "method.caption_dropout": 0.2}),
    ("DPO with label smoothing", {}), ("DPO with winner anchor", {}), ("Diffusion-SDPO", {}), ("beta-DPO", {}), ("MaPO", {}),
    ("Diffusion-KTO", {}), ("DDPO", {"method.ratio_clip": 0.1}), ("DPOK", {"method.ratio_clip": 0.1}),
    ("reward-weighted", {"method.reward_beta": 100.0}), ("supervised", {})]


@pytest.fixture(scope="module")
def dataset(host, source):
    """Plain colours in a dataset, the brighter one of each pair preferred."""
    name = unique("colours")
    host.run({"import": node("D3POImportPreferences", source=source, dataset=name, annotator="import", problems="stop"),
              "look": node("PreviewAny", source=["import", 2])})
    return name


def trained(dataset, **train):
    """Training on recordings that are judged by brightness, measured on pairs of plain colours."""
    graph = with_prompts(judged(steps=4, candidates=4), PROMPTS)
    return graph | {
        "train": train_node(**LEARNING | train), "losses": probe("LossMap", "train", 2),
        "sets": node("D3POLoadSets", dataset=dataset, annotator="nobody", sets="all", limit=100, since="", until=""),
        "pairs": node("D3POEncodePairs", model=["loader", 0], clip=["loader", 1], vae=["loader", 2], dataset=["sets", 0],
                      split="all", held_out=0.0, annotators="", joining="all", limit=8),
        "accuracy": node("D3POImplicitAccuracy", model=["loader", 0], tuned=["train", 0], preferences=["pairs", 0],
                         draws=4, seed=0)}  # fmt: skip


@pytest.mark.parametrize("name, more", METHODS, ids=str)
def test_a_methods_implicit_reward_ranks_pairs_it_never_saw_better_than_chance(host, dataset, name, more):
    entry = host.run(trained(dataset, **{"method": name} | more))
    told = entry["outputs"]["accuracy"]["text"][0]
    low = float(re.search(r"95% interval ([\d.]+) to", told)[1])
    assert low > 0.5, told
    losses = found(entry, "losses")["loss"]
    assert all(map(math.isfinite, losses)) and len(losses) == 6
