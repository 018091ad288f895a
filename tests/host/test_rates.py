"""How often each side's pictures show what a scorer sees."""

import json

import pytest

from d3po_core.training.rates import PairedRates
from tests.host.graphs import node, says
from tests.host.test_comparing import compared, pixels, two_sides

SETS = 6


def rate(scores, threshold, counts="above the threshold", **inputs):
    return node(
        "D3PORate", images_a=["a", 1], images_b=["b", 0], scores_a=[scores, 0], what="red", counts=counts,
        threshold=threshold, name_a="base", name_b="LoRA", **inputs)  # fmt: skip


def numbers(first, second):
    return {
        "first": node("PrimitiveString", value=first),
        "second": node("PrimitiveString", value=second),
    }


def of_numbers(answers):
    return {
        "scorer": node("TestScorer", numbers=json.dumps(answers)),
        "prompts": node("D3POPrompts", prompts="a\nb\nc\nd\ne\nf", count=SETS, seed=0),
    }


def test_a_scorer_or_numbers_count_what_each_side_shows(host):
    graph = compared(sets=SETS) | {
        "bright": node("D3POObjectiveScorer", objective="brightness (brighter)", target_colour=""),
        "by_scorer": rate("bright", 0.5),
    }
    outputs = host.run(graph)["outputs"]
    shown = outputs["compare"]["compared"]
    bright = [[pixels(host, picture).mean() > 127.5 for picture in pair] for pair in shown]
    counts = [sum(side) for side in zip(*bright)]
    (text,) = outputs["by_scorer"]["text"]
    assert f"red (above 0.5): {counts[0]} of 6 with base" in text and f"{counts[1]} of 6 with LoRA" in text

    answers = {"a": [1], "b": [1], "c": [0], "d": [1], "e": [0]}  # it fails on the last
    graph = two_sides(sets=SETS) | numbers("1 2 3 nan 5 6", "3 0 3 4 1 1e99") | of_numbers(answers)
    graph["by_numbers"] = rate("first", 2.5, "below the threshold", scores_b=["second", 0])
    graph["by_prompt"] = rate("scorer", 0.5, prompt=["prompts", 0])
    for slot, name in enumerate(("rate_a", "rate_b", "difference", "low", "high")):
        graph[name] = node("PreviewAny", source=["by_numbers", slot])
    outputs = host.run(graph)["outputs"]
    expected = PairedRates(both=1, only_first=1, only_second=1, neither=1)
    found = [float(outputs[name]["text"][0]) for name in ("rate_a", "rate_b", "difference", "low", "high")]
    assert found == pytest.approx([0.5, 0.5, *expected.difference])
    (text,) = outputs["by_numbers"]["text"]
    assert text.startswith("red (below 2.5): 2 of 4 with base (50%, 95% interval 15% to 85%), 2 of 4 with L")
    assert "1 lost it, 1 gained it" in text and "Not beyond chance" in text
    assert "scores of base: 1 to 5, half of them below 2.5" in text and "2 of 6 pairs are left out" in text
    (text,) = outputs["by_prompt"]["text"]
    assert "3 of 5 with base" in text and "1 of 6 pairs are left out: a score is missing" in text


def test_what_no_rate_can_be_of_is_told(failure):
    graph = two_sides(sets=SETS) | numbers("1 2 3 4 5 6", "1 2") | {"rate": rate("first", 2.5)}
    says(failure(graph), "D3PORate", "scores_b: scores_a are numbers of the first side alone")
    graph["rate"]["inputs"]["scores_b"] = ["second", 0]
    says(failure(graph), "D3PORate", "scores_b: there are 2 numbers for 6 pictures")
    graph["second"]["inputs"]["value"] = "nan " * 6
    says(failure(graph), "D3PORate", "no pair of pictures has a score on both sides")
    graph = two_sides(sets=SETS) | of_numbers({"a": [1, 2]}) | {"rate": rate("scorer", 0.5)}
    says(failure(graph), "D3PORate", "scores_a: the scorer of numbers failed on every image")
    graph["rate"]["inputs"]["prompt"] = ["prompts", 0]
    says(failure(graph), "D3PORate", "scores_a: the scorer of numbers gave 2 scores for 1 images")
