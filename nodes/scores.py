"""A judge of numbers that other nodes give, or scorers: raters, reward models, detectors."""

import math
import re
from typing import NamedTuple

import numpy as np
import torch
from comfy_api.latest import io

from ..d3po_core.candidates.joining import JOININGS, PARETO, SUM, joined, sums
from ..d3po_core.candidates.judgement import LARGEST_SCORE
from ..d3po_core.candidates.preferences import Preferences
from ..d3po_core.candidates.scorers import Scorer
from .judging import judged_outputs, preferred_and_rejected, require_one_image_each, said_of
from .prompts import prompts_of
from .stored import DatasetType, record_pairs
from .types import CATEGORY, Trajectories

MOST = 4  # scores of a candidate
HIGHER, LOWER = "higher is better", "lower is better"


class D3POScorePreference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POScorePreference",
            display_name="D3PO Score Preference",
            category=CATEGORY,
            search_aliases=["reward model", "scorer", "rate images", "pickscore", "aesthetic", "ai feedback"],
            description=(
                "Prefers candidates by numbers that other nodes give: a scorer of taste or quality, a "
                "model's rating, a detector's count. With several, a candidate is preferred only where they "
                "agree, or as joined_by says."
            ),
            is_input_list=True,
            inputs=[
                Trajectories.Input("trajectory", tooltip="The recorded candidates."),
                io.Image.Input("images", tooltip="The same candidates as images, from VAE Decode."),
                scores_input(1),
                io.Combo.Input(
                    "joined_by",
                    options=list(JOININGS),
                    default=PARETO,
                    tooltip="How several scores make one preference. No worse in any: all must agree, as in "
                    "D3PO's paper. Weighted sum: in standard deviations among the candidates. First that "
                    "differs: the next score decides only between candidates that tie in those before it.",
                ),
                io.String.Input(
                    "judge",
                    default="score",
                    tooltip="A name for this judge: its judgements are kept under it in datasets.",
                ),
                *(one for number in range(1, MOST + 1) for one in settings_of(number)),
                *(scores_input(number) for number in range(2, MOST + 1)),
                DatasetType.Input(
                    "dataset",
                    optional=True,
                    tooltip="Where the judgements are kept as well, under the judge's name: from D3PO Save "
                    "to Dataset or D3PO Load Sets.",
                ),
                io.String.Input(
                    "prompt",
                    optional=True,
                    force_input=True,
                    tooltip="The prompts, from D3PO Prompts, for scorers that want them. Without it they get "
                    "the text of a CLIP Text Encode above the sampler.",
                ),
            ],
            outputs=judged_outputs("The first score's mean over the candidates.", is_list=True),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trajectory, images, scores_1, joined_by, judge, dataset=(None,), prompt=(), **further):
        given = [scores_1, *(further[f"scores_{n}"] for n in range(2, MOST + 1) if f"scores_{n}" in further)]
        for candidates, pictures in zip(trajectory, images, strict=True):
            require_one_image_each(candidates, pictures)
        prompts = prompts_of(cls, prompt, len(images))
        measured = np.stack([column(values, n, images, prompts) for n, values in enumerate(given, 1)], 1)
        rule = Rule.of(joined_by[0], len(given), further)
        by_set = np.split(measured, np.cumsum([candidates.count for candidates in trajectory])[:-1])
        made = [
            judged(candidates, pictures, values, rule, judge[0], dataset[0])
            for candidates, pictures, values in zip(trajectory, images, by_set, strict=True)
        ]
        *results, lines = map(list, zip(*made))
        return io.NodeOutput(*results, ui={"text": ["\n".join(line for own in lines for line in own)]})


class Rule(NamedTuple):
    """How scores make preferences, an entry for each: +1 where higher is better, the most that is no
    difference, the weight in a sum."""

    joined_by: str
    signs: list
    least: list
    weights: list

    @classmethod
    def of(cls, joined_by, count, widgets):
        better, least, weights = (
            [widgets[f"{name}_{n}"][0] for n in range(1, count + 1)]
            for name in ("better", "least_difference", "weight")
        )
        return cls(joined_by, [1 if own == HIGHER else -1 for own in better], least, weights)


def judged(candidates, pictures, values, rule, judge, dataset):
    """What the node gives of one set with its candidates' values [N, K], and lines about it."""
    scores = values * rule.signs
    pairs = joined(rule.joined_by, scores, rule.least, rule.weights)
    # of several that are not summed up none is the score: wins against losses are
    single = sums(scores, rule.weights) if rule.joined_by == SUM else scores[:, 0]
    has_single = values.shape[1] == 1 or rule.joined_by == SUM
    kept = tuple(float(one) if np.isfinite(one) else None for one in single) if has_single else ()
    preferences = Preferences(candidates, tuple(pairs), source=judge, scores=kept)
    record_pairs(dataset, preferences, "score")
    best, worst = preferred_and_rejected(preferences, pictures)
    known = values[np.isfinite(values[:, 0]), 0]
    mean = float(known.mean()) if len(known) else float("nan")
    return preferences, best, worst, len(pairs), mean, list(said_of(values))


def column(values, place, images, prompts):
    """[candidates of all sets] float64 of what a wire brings: a scorer of their images, or numbers. Raises
    ValueError as numbers, and where a scorer cannot judge."""
    if not isinstance(values[0], Scorer):
        return numbers(values, place, sum(map(len, images)))
    try:
        return np.concatenate([values[0].known(*each) for each in zip(images, prompts)])
    except ValueError as error:
        raise ValueError(f"scores_{place}: {error}") from error


def numbers(values, place, count):
    """[count] float64 of what a wire brings: numbers, or lists, tensors and texts of them; NaN for None and
    for what is not finite or beyond LARGEST_SCORE. Raises ValueError for another count, or what is no
    number."""
    try:
        found = np.array([one for value in values for one in flat(value)], np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"scores_{place}: what is wired here are not numbers ({error})") from error
    if len(found) != count:
        raise ValueError(
            f"scores_{place}: there are {len(found)} numbers for {count} pictures. Wire a node that gives "
            "one for each image; one that rates only the first of a batch needs the images one by one"
        )
    return np.where(np.abs(found) <= LARGEST_SCORE, found, np.nan)


def flat(value):
    """The numbers in nested lists, tensors and texts; NaN where there is none."""
    if value is None:
        return [math.nan]
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.reshape(-1).tolist()
    if isinstance(value, str):
        return [float(part) for part in re.split(r"[\s,;\[\]]+", value) if part]
    if isinstance(value, list | tuple):
        return [one for part in value for one in flat(part)]
    return [float(value)]


def scores_input(number):
    return io.AnyType.Input(
        f"scores_{number}",
        optional=number > 1,
        tooltip="A scorer, or a number for each candidate, in the images' order, from any node that rates "
        "images."
        if number == 1
        else "Another scorer, or another number for each candidate.",
    )


def settings_of(number):
    """The widgets of one score; those of further ones are folded away."""
    folded = number > 1 or None
    return [
        io.Combo.Input(
            f"better_{number}",
            options=[HIGHER, LOWER],
            advanced=folded,
            tooltip=f"Which way scores_{number} points.",
        ),
        io.Float.Input(
            f"least_difference_{number}",
            default=0.0,
            min=0.0,
            max=1e9,
            step=0.001,
            round=False,
            advanced=folded,
            tooltip=f"Candidates that differ by this much or less in scores_{number} tie in it. In its unit.",
        ),
        io.Float.Input(
            f"weight_{number}",
            default=1.0,
            min=0.0,
            max=1e6,
            step=0.1,
            round=False,
            advanced=True,
            tooltip=f"What scores_{number} counts in a weighted sum.",
        ),
    ]
