"""How often the base's and the LoRA's pictures show something that a scorer sees."""

import numpy as np
from comfy_api.latest import io

from ..d3po_core.candidates.scorers import Scorer, WrongNumber
from ..d3po_core.training.rates import PairedRates
from .comparing import IMAGES_A, IMAGES_B, NAME_A, NAME_B, paired
from .prompts import prompts_of
from .scores import numbers
from .types import CATEGORY

ABOVE, BELOW = "above the threshold", "below the threshold"


class D3PORate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3PORate",
            display_name="D3PO Rate",
            category=CATEGORY,
            search_aliases=["safety", "nsfw rate", "unwanted concept", "detection rate", "evaluate lora"],
            description=(
                "How often the base's pictures and the LoRA's show something that a scorer sees, such as an "
                "unwanted concept, and by how much that differs, with 95% intervals."
            ),
            is_input_list=True,
            inputs=[
                io.Image.Input("images_a", **IMAGES_A),
                io.Image.Input("images_b", **IMAGES_B),
                io.AnyType.Input(
                    "scores_a",
                    tooltip="A scorer of both sides' pictures, or a number for each of the first side's, "
                    "from any node that rates images.",
                ),
                io.String.Input(
                    "what",
                    default="unwanted",
                    tooltip="What is counted, in a word, for the report.",
                ),
                io.Combo.Input(
                    "counts",
                    options=[ABOVE, BELOW],
                    tooltip="Whether a picture counts whose score is above the threshold, or below it.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=-1e9,
                    max=1e9,
                    step=0.001,
                    round=False,
                    tooltip="In the scores' unit. The report says what scores the first side's pictures "
                    "have: choose it by pictures of the base before you train.",
                ),
                io.String.Input("name_a", **NAME_A),
                io.String.Input("name_b", **NAME_B),
                io.AnyType.Input(
                    "scores_b",
                    optional=True,
                    tooltip="Where scores_a are numbers: those of the second side's pictures.",
                ),
                io.String.Input(
                    "prompt",
                    optional=True,
                    force_input=True,
                    tooltip="The prompts, one for each batch of pictures, or one for all, for scorers that "
                    "want them. Without it they get the text of a CLIP Text Encode above the samplers.",
                ),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images_a, images_b, scores_a, what, counts, threshold, name_a, name_b, scores_b=None, prompt=()
    ):
        count = len(paired(images_a, images_b))
        if scores_b is None and not isinstance(scores_a[0], Scorer):
            raise ValueError("scores_b: scores_a are numbers of the first side alone. Wire the second's here")
        first = scores_of(scores_a, "a", images_a, prompts_of(cls, prompt, len(images_a)))
        second = scores_of(scores_b or scores_a, "b", images_b, prompts_of(cls, prompt, len(images_b)))
        known = np.isfinite(first) & np.isfinite(second)
        if not known.any():
            raise ValueError("scores_a, scores_b: no pair of pictures has a score on both sides")
        sign = 1 if counts[0] == ABOVE else -1
        shown = (sign * scores[known] > sign * threshold[0] for scores in (first, second))
        rates = PairedRates.of(*shown)
        title = f"{what[0]} ({counts[0].split()[0]} {threshold[0]:g})"
        text = "\n".join(report(rates, title, (name_a[0], name_b[0]), count, first[known]))
        return io.NodeOutput(*rates.shares, *rates.difference, text, ui={"text": [text]})


def outputs():
    return [
        io.Float.Output(display_name="rate_a", tooltip="Share of the first side's pictures that count."),
        io.Float.Output(display_name="rate_b", tooltip="Share of the second side's pictures that count."),
        io.Float.Output(display_name="difference", tooltip="The second side's rate less the first side's."),
        io.Float.Output(display_name="low", tooltip="Lower end of its 95% interval."),
        io.Float.Output(display_name="high", tooltip="Upper end of its 95% interval."),
        io.String.Output(
            display_name="report", tooltip="Counts, rates with their intervals, and what they say."
        ),
    ]


def scores_of(values, side, images, prompts):
    """[pictures] float64 of what a wire brings: a scorer of batches of images, or numbers; NaN where there is
    none. Raises ValueError for another count, and where a scorer fails on every picture."""
    if not isinstance(values[0], Scorer):
        return numbers(values, side, sum(map(len, images)))
    scores, failures = [], []
    for batch, prompt in zip(images, prompts):
        try:
            scores.append(values[0].known(batch, prompt))
        except WrongNumber as error:
            raise ValueError(f"scores_{side}: {error}") from error
        except ValueError as error:
            scores.append(np.full(len(batch), np.nan))
            failures.append(error)
    if len(failures) == len(images):
        raise ValueError(f"scores_{side}: {failures[-1]}") from failures[-1]
    return np.concatenate(scores)


def report(rates, title, names, count, scores):
    """What the rates of `count` pairs say, in lines; `scores` are the first side's."""
    sides = (
        f"{seen} of {rates.pairs} with {name} ({share:.0%}, 95% interval {low:.0%} to {high:.0%})"
        for seen, share, (low, high), name in zip(rates.counts, rates.shares, rates.intervals, names)
    )
    yield f"{title}: {', '.join(sides)}"
    difference, low, high = rates.difference
    yield (
        f"difference: {100 * difference:+.0f} points (95% interval {100 * low:+.0f} to {100 * high:+.0f}), "
        f"of pictures in pairs: {rates.only_first} lost it, {rates.only_second} gained it"
    )
    if low <= 0 <= high:
        yield "Not beyond chance: 0 lies in the interval. More pairs make it narrower"
    else:
        yield f"{'Rarer' if high < 0 else 'More often'} with {names[1]}, beyond chance"
    yield (
        f"scores of {names[0]}: {scores.min():.4g} to {scores.max():.4g}, half of them below "
        f"{np.median(scores):.4g}"
    )
    if rates.pairs < count:
        yield f"{count - rates.pairs} of {count} pairs are left out: a score is missing"
