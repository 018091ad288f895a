"""Every method of the train step in the real host learns what it was not shown."""

import math

import pytest

from tests.conftest import EVERY
from tests.host import graphs
from tests.host.graphs import found, judged, node, probe, sized, train_nodes, with_prompts

pytestmark = pytest.mark.usefixtures("emoji_models")

PROMPTS = [
    f"a {thing} on a {colour} background" for thing in ("cat", "house", "fish") for colour in ("red", "blue")
]
LEARNING = dict(
    epochs=2,
    sets_per_update=2,
    learning_rate=3e-3,
    rank=4,
    alpha=4.0,
    targets="all linear and convolutions",
    beta=20.0,
    weighting="standardised",
    clip=0.0,
)
# Without guidance candidates differ more. Pairs that are nearly as bright as each other are left out: how
# much darker a candidate has to be, how often each prompt is held out, and the size of the images
RECORDING = dict(steps=4, candidates=6, cfg=1.0)
PAIRS = (0.03, 2, 48)
FEW_PAIRS = (0.06, 1, 32)  # enough for the one that every run learns
# for the methods that learn from what was preferred alone, and so tell less apart
CLEAR_PAIRS = (0.08, 4, 64)
# PPO's clip of 1e-4 is made for new samples after each update
ONE_OF_A_KIND = [
    ("D3PO", {}, FEW_PAIRS),
    ("Diffusion-DPO", {}, PAIRS),
    ("DDPO", {"ratio_clip": 0.1}, PAIRS),
]
OTHERS = [
    ("Diffusion-DPO", {"learn_from": "noised images, recorded noise"}, PAIRS),
    ("Diffusion-KTO", {}, PAIRS),
    ("IPO", {}, PAIRS),
    ("DPO with label smoothing", {}, PAIRS),
    ("DPO with winner anchor", {}, PAIRS),
    ("Diffusion-SDPO", {}, PAIRS),
    ("beta-DPO", {}, PAIRS),
    ("MaPO", {}, PAIRS),
    ("DPOK", {"ratio_clip": 0.1}, PAIRS),
    ("reward-weighted", {"reward_beta": 50.0}, CLEAR_PAIRS),
    ("DiffusionNFT", {}, PAIRS),
    ("supervised", {}, CLEAR_PAIRS),
]
# that each learns is shown on a small network too, in a fraction of a second; here all take 5 minutes
LEARNING_METHODS = ONE_OF_A_KIND + OTHERS if EVERY else ONE_OF_A_KIND[:1]


def trained(clearly, times, size, **train):
    """Training on recordings judged by brightness, measured on others. Recordings are cached across tests."""
    graph = with_prompts(judged(**RECORDING), PROMPTS, seed=1)
    others = with_prompts(judged(**RECORDING), times * PROMPTS, seed=2)
    renamed = {name: f"{name} held out" for name in ("prompts", "positive", "sampler", "decode", "judge")}
    for name, new_name in renamed.items():
        graph[new_name] = node(
            others[name]["class_type"],
            **{
                key: [renamed.get(value[0], value[0]), value[1]] if isinstance(value, list) else value
                for key, value in others[name]["inputs"].items()
            },
        )
    for judge in ("judge", "judge held out"):
        graph[judge]["inputs"]["least_difference"] = clearly
    return sized(graph, size) | {
        **train_nodes(**LEARNING | train), "losses": probe("LossMap", "train", 2),
        "accuracy": node("D3POImplicitAccuracy", model=["loader", 0], tuned=["train", 0],
                         preferences=["judge held out", 0], draws=2, seed=0)}  # fmt: skip


@pytest.mark.parametrize("name, more, pairs", LEARNING_METHODS, ids=str)
def test_a_methods_implicit_reward_ranks_held_out_pairs_better_than_chance(host, name, more, pairs):
    entry = host.run(trained(*pairs, **{"method": name} | more))
    (figures,) = entry["outputs"]["accuracy"]["figures"]
    assert figures["low"] > 0.5, figures
    losses = found(entry, "losses")["loss"]
    assert all(map(math.isfinite, losses)) and len(losses) == 6


# that D3PO does is shown above
@pytest.mark.parametrize("name, more", [each[:2] for each in ONE_OF_A_KIND[1:] + OTHERS], ids=str)
def test_a_method_trains(host, name, more):
    losses = found(host.run(graphs.trained({"method": name, "epochs": 2} | more)), "losses")
    assert (
        len(losses["loss"]) == 2
        and all(map(math.isfinite, losses["loss"]))
        and min(losses["gradient_norm"]) > 0
    )
