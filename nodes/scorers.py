"""Scorers: what judges pictures wherever a scorer is wanted."""

from comfy_api.latest import io

from ..d3po_core.candidates import objectives
from ..d3po_core.candidates.scorers import Scorer
from .judging import OBJECTIVES, parse_target
from .types import CATEGORY, ScorerType

# as OBJECTIVES, but what gradients do not flow through has what follows it in its place
DIFFERENTIABLE = OBJECTIVES | {
    "compressibility (smaller JPEG)": (lambda images, target: objectives.soft_jpeg_size(images), -1),
    "incompressibility (larger JPEG)": (lambda images, target: objectives.soft_jpeg_size(images), 1),
}


class D3POObjectiveScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POObjectiveScorer",
            display_name="D3PO Objective Scorer",
            category=CATEGORY,
            search_aliases=[
                "reward",
                "differentiable",
                "compressibility",
                "brightness",
                "draft",
                "alignprop",
            ],
            description="A measurable objective as a scorer, for D3PO Reward Train Step, which follows its "
            "gradient, or for D3PO Score Preference.",
            inputs=[
                io.Combo.Input(
                    "objective",
                    options=list(DIFFERENTIABLE),
                    default="brightness (brighter)",
                    tooltip="What makes one picture better than another. The JPEG's size is estimated, as no "
                    "gradient flows through its coding.",
                ),
                io.String.Input(
                    "target_colour",
                    default="#ff8800",
                    tooltip="The target of the colour objective, as #rrggbb. The others ignore it.",
                ),
            ],
            outputs=[
                ScorerType.Output(
                    display_name="scorer",
                    tooltip="Wire to D3PO Reward Train Step, or to a score of D3PO Score Preference.",
                )
            ],
        )

    @classmethod
    def execute(cls, objective, target_colour):
        target = parse_target(target_colour) if objective.startswith("colour") else None
        measure, sign = DIFFERENTIABLE[objective]
        name = f"{objective} {target_colour}" if target else objective
        return io.NodeOutput(
            Scorer(name, lambda images, prompt: sign * measure(images, target), differentiable=True)
        )
