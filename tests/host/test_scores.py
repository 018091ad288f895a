"""Numbers of other nodes as the judge."""

import json

import pytest

from tests.host.graphs import found, judged, node, probe, says, stage, train_nodes

CANDIDATES, SETS = 3, 2
TEXTS = {1: "0.1, 0.9, 0.5, 3, 2, 1", 2: "[5, 5, 6] [1, 1, 9]"}


def scored(scores=TEXTS, candidates=CANDIDATES, **inputs):
    graph = {
        "candidates": node("TestCandidates", seed=7, candidates=candidates, sets=SETS, size=16),
        "judge": node(
            "D3POScorePreference", trajectory=["candidates", 0], images=["candidates", 1],
            scores_1=["text_1", 0], joined_by="no worse in any", judge="rater",
            **{f"{name}_{n}": value for n in range(1, 5) for name, value in
               dict(better="higher is better", least_difference=0.0, weight=1.0).items()}),
        "look": probe("Preferences", "judge"),
    }  # fmt: skip
    for number, text in scores.items():
        graph[f"text_{number}"] = node("PrimitiveString", value=text)
        graph["judge"]["inputs"][f"scores_{number}"] = [f"text_{number}", 0]
    graph["judge"]["inputs"] |= inputs
    return graph


def pairs_of(host, graph):
    return [sorted(map(tuple, one["pairs"])) for one in found(host.run(graph), "look")]


def test_numbers_of_each_candidate_make_its_sets_pairs(host):
    assert pairs_of(host, scored({1: TEXTS[1]})) == [[(1, 0), (1, 2), (2, 0)], [(0, 1), (0, 2), (1, 2)]]
    lower = scored({1: TEXTS[1]}, better_1="lower is better", least_difference_1=0.4)
    assert pairs_of(host, lower) == [[(0, 1)], [(1, 0), (2, 0), (2, 1)]]


@pytest.mark.parametrize(
    "joined_by, expected",
    [
        ("no worse in any", [[(1, 0), (2, 0)], [(0, 1)]]),
        ("first that differs", [[(1, 0), (1, 2), (2, 0)], [(0, 1), (0, 2), (1, 2)]]),
        ("weighted sum", [[(1, 0), (2, 0), (2, 1)], [(0, 1), (2, 0), (2, 1)]]),
    ],
)
def test_several_numbers_are_joined(host, joined_by, expected):
    assert pairs_of(host, scored(joined_by=joined_by, weight_2=3.0)) == expected


@pytest.mark.parametrize("lacking", ["nan", "-inf", "1e39", "9" * 400])
def test_a_candidate_without_a_number_is_compared_with_none_and_the_node_says_so(host, lacking):
    entry = host.run(scored({1: f"0.1, {lacking}, 0.5, 3, 2, 1"}))
    assert [sorted(map(tuple, one["pairs"])) for one in found(entry, "look")][0] == [(2, 0)]
    (text,) = entry["outputs"]["judge"]["text"]
    assert text.count("a score is missing") == 1


@pytest.mark.parametrize("text", ["1, 2, 3, 4, 5", "", "1, 2, 3, 4, 5, good", "1, 2, 3, 4, 5, \ud800"])
def test_numbers_that_do_not_fit_are_told(failure, text):
    says(failure(scored({1: text})), "D3POScorePreference", "scores_1: ", "numbers")


def with_scorer(numbers):
    graph = scored({}, scores_1=["scorer", 0], prompt=["prompts", 0])
    return graph | {
        "scorer": node("TestScorer", numbers=json.dumps(numbers)),
        "prompts": node("D3POPrompts", prompts="a\nb", count=2, seed=0),
    }


def test_a_scorer_judges_by_prompt_and_beside_numbers(host):
    graph = with_scorer({"a": [1, 2, 3], "b": [1, "nan", 0]})
    assert sorted(pairs_of(host, graph)) == [[(0, 2)], [(1, 0), (2, 0), (2, 1)]]
    graph = scored({2: "3 2 1 1 2 3"}, scores_1=["rule", 0], joined_by="first that differs", weight_2=0.0)
    graph["rule"] = node("D3POObjectiveScorer", objective="contrast (weaker)", target_colour="")
    wires = {"trajectory": ["candidates", 0], "images": ["candidates", 1]}
    graph["alone"] = node(
        "D3POObjectivePreference", **wires, objective="contrast (weaker)", second_objective="none",
        target_colour="", least_difference=0.0)  # fmt: skip
    graph["look_alone"] = probe("Preferences", "alone")
    entry = host.run(graph)
    by_scorer, alone = ([one["pairs"] for one in found(entry, name)] for name in ("look", "look_alone"))
    assert by_scorer == alone and len(alone[0]) == 3


def test_a_scorer_of_too_few_numbers_is_named(failure):
    says(failure(with_scorer({"a": [1], "b": [1]})), "D3POScorePreference", "scores_1: ", "of numbers gave 1")


def test_a_scorer_without_a_gradient_is_not_trained_by(failure):
    graph = stage() | {
        "scorer": node("TestScorer", numbers="{}"),
        "train": node(
            "D3PORewardTrainStep", model=["loader", 0], vae=["loader", 2], scorer=["scorer", 0],
            positive=["negative", 0], negative=["negative", 0], latent_image=["empty", 0], seed=0, steps=2,
            cfg=2.0, scheduler="normal", method="ReFL", updates=1, learning_rate=1e-3, leash=0.0, pictures=1,
            last_steps=0, rank=1, targets="attention"),
        "losses": probe("LossMap", "train", 2),
    }  # fmt: skip
    says(failure(graph), "D3PORewardTrainStep", "scorer: of numbers has no gradient to follow")


def test_a_loras_implicit_reward_and_a_rule_train_together(host):
    graph = judged(candidates=3) | {
        **train_nodes("first"),
        "rewards": node("D3POImplicitReward", model=["loader", 0], tuned=["first", 0], vae=["loader", 2],
                        positive=["positive", 0], images=["decode", 0], draws=2, seed=0, beta=5000.0),
        "scores": scored()["judge"],
        "text_2": node("PrimitiveString", value="1 2 3"),
        **train_nodes("second", preferences=("scores", 0)),
        "losses": probe("LossMap", "second", 2),
    }  # fmt: skip
    wires = {"trajectory": "sampler", "images": "decode"}
    graph["scores"]["inputs"] |= {name: [of, 0] for name, of in wires.items()}
    graph["scores"]["inputs"] |= {"scores_1": ["rewards", 2], "joined_by": "weighted sum"}
    losses = found(host.run(graph), "losses")
    assert losses["gradient_norm"][0] > 0
