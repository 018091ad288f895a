"""What was learned from picks as a scorer, for a search without training."""

import re

import numpy as np
import pytest
import scipy.stats
import torch

from d3po_core.candidates.objectives import brightness
from tests.host.graphs import found, judged, node, probe, says, train_nodes, with_prompts
from tests.host.test_search import PROMPTS, SAMPLING, WIRES, looked_at

NAMES = [f"{name} on a {colour} background" for name in ("a cat", "a fox") for colour in ("red", "blue")]


def best_of(scorer, candidates):
    """All of so many pictures, best first."""
    return node(
        "D3POBestOfN", **WIRES, **SAMPLING, vae=["loader", 2], scorer=list(scorer), sampler_name="euler",
        seed=40, candidates=candidates, keep=candidates, per_pass=8)  # fmt: skip


def tasted(graph):
    """The graph with a taste of its judge's, and pictures of one prompt by it."""
    wires = {name: WIRES[name] for name in ("model", "positive")}
    graph["cat"] = node("CLIPTextEncode", clip=["loader", 1], text=NAMES[0])
    graph["taste"] = node("D3POTasteScorer", vae=["loader", 2], preferences=["judge", 0], **wires)
    graph |= {"best": best_of(("taste", 0), 16), "fewer": best_of(("taste", 0), 2)}
    for name in ("taste", "best", "fewer"):
        graph[name]["inputs"]["positive"] = ["cat", 0]
    return graph


def test_a_taste_finds_what_was_picked_for_and_scores_alike_whatever_it_judges_beside(host):
    graph = tasted(with_prompts(judged(candidates=5), NAMES))
    graph = looked_at(graph, ["images", "latent", "seeds", "scores"], "best")
    graph |= {"few_seeds": probe("Value", "fewer", 2), "few_scores": probe("Value", "fewer", 3)}
    entry = host.run(graph)
    images, seeds, scores = (found(entry, name) for name in ("images", "seeds", "scores"))
    assert scipy.stats.spearmanr(brightness(torch.tensor(images)), scores)[0] > 0.5
    beside = dict(zip(seeds, scores))
    few = dict(zip(found(entry, "few_seeds"), found(entry, "few_scores")))
    assert few == {seed: pytest.approx(beside[seed], abs=1e-3) for seed in (40, 41)}
    (text,), (figures,) = (entry["outputs"]["taste"][name] for name in ("text", "figures"))
    told = re.search(r"in (\d+)% of cases", text)
    assert "20 judged candidates in 4 sets" in text and int(told[1]) > 65
    assert figures == {"accuracy": pytest.approx(int(told[1]) / 100, abs=0.006)}
    assert not entry["outputs"]["taste"]["warnings"]


def test_a_taste_that_may_be_chance_warns_and_scores_and_none_is_an_error(host, failure):
    graph = tasted(judged(candidates=3))
    entry = host.run(looked_at(graph, ["images"], "best"))
    (warned,) = entry["outputs"]["taste"]["warnings"]
    assert "not beyond chance" in warned and warned in entry["outputs"]["taste"]["text"][0]
    assert len(found(entry, "images")) == 16
    graph["judge"]["inputs"]["second_objective"] = "darkness (darker)"  # nothing is better in both
    says(failure(graph), "D3POTasteScorer", "preferences: there is no preference")


@pytest.mark.usefixtures("emoji_model")
def test_a_loras_implicit_reward_scores_as_the_node_that_ranks_by_it(host, failure):
    graph = judged(candidates=2) | train_nodes("tuned") | {"best": best_of(("scorer", 0), 3)}
    wires = dict(model=["loader", 0], tuned=["tuned", 0], vae=["loader", 2], positive=["positive", 0])
    graph["scorer"] = node("D3POImplicitScorer", **wires, draws=2, seed=5)
    graph["reward"] = node(
        "D3POImplicitReward", **wires, images=["best", 0], draws=2, seed=5, beta=5000.0)  # fmt: skip
    graph = looked_at(graph, ["images", "latent", "seeds", "scores"], "best")
    entry = host.run(graph | {"rewards": probe("Value", "reward", 2)})
    scores = found(entry, "scores")
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    np.testing.assert_allclose(found(entry, "rewards"), scores, rtol=0, atol=5e-4)
    rule = node("D3POObjectiveScorer", objective="brightness (brighter)", target_colour="")
    train = node(
        "D3PORewardTrainStep", model=["loader", 0], vae=["loader", 2], **PROMPTS, scorer=["rule", 0],
        second_scorer=["scorer", 0], latent_image=["empty", 0], seed=0, steps=2, cfg=1.0, scheduler="normal",
        method="ReFL", updates=1, learning_rate=1e-3, leash=0.0, pictures=1, last_steps=0, rank=1,
        targets="attention")  # fmt: skip
    watched = graph | {"rule": rule, "train": train, "losses": probe("LossMap", "train", 2)}
    says(failure(watched), "D3PORewardTrainStep", "second_scorer: implicit reward: it looks with the model")
