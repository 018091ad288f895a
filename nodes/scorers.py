"""Scorers: what judges pictures wherever a scorer is wanted."""

from comfy_api.latest import io

from ..d3po_core.candidates import objectives
from ..d3po_core.candidates.rules import FUNCTIONS, Rule
from ..d3po_core.candidates.scorers import Scorer
from .judging import OBJECTIVES, parse_target
from .types import CATEGORY, ScorerType, scorer_output

# as OBJECTIVES, but what gradients do not flow through has what follows it in its place
DIFFERENTIABLE = OBJECTIVES | {
    "compressibility (smaller JPEG)": (lambda images, target: objectives.soft_jpeg_size(images), -1),
    "incompressibility (larger JPEG)": (lambda images, target: objectives.soft_jpeg_size(images), 1),
}
NAMES = "abcd"  # of the scorers in a rule


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
            outputs=[scorer_output()],
        )

    @classmethod
    def execute(cls, objective, target_colour):
        target = parse_target(target_colour) if objective.startswith("colour") else None
        measure, sign = DIFFERENTIABLE[objective]
        name = f"{objective} {target_colour}" if target else objective
        return io.NodeOutput(
            Scorer(name, lambda images, prompt: sign * measure(images, target), differentiable=True)
        )


class D3PORuleScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3PORuleScorer",
            display_name="D3PO Rule Scorer",
            category=CATEGORY,
            search_aliases=["expression", "formula", "combine scores", "weighted sum", "math", "reward"],
            description="Up to four scorers joined into one by a formula that you write, such as "
            "a + 0.5 * b or where(b > 5, a, 0).",
            inputs=[
                ScorerType.Input("a", tooltip="The scorer that the rule calls a."),
                io.String.Input(
                    "rule",
                    default="a",
                    tooltip="A formula over a, b, c and d: + - * / **, comparisons (1 or 0), and "
                    f"{', '.join(FUNCTIONS)}. More is better.",
                ),
                *(
                    ScorerType.Input(name, optional=True, tooltip=f"The scorer that the rule calls {name}.")
                    for name in NAMES[1:]
                ),
            ],
            outputs=[scorer_output()],
        )

    @classmethod
    def execute(cls, rule, **given):
        try:
            read = Rule.read(rule, NAMES)
        except ValueError as error:
            raise ValueError(f"rule: {error}") from error
        missing = [name for name in read.names if name not in given]
        if missing:
            raise ValueError(f"rule: it uses {missing[0]}, but no scorer is wired to {missing[0]}")
        scorers = {name: given[name] for name in read.names}

        def judge(images, prompt):
            return read({name: own(images, prompt).to(images.device) for name, own in scorers.items()})

        return io.NodeOutput(
            Scorer(
                f"{read.text} of {', '.join(f'{name}: {own.name}' for name, own in scorers.items())}",
                judge,
                differentiable=all(own.differentiable for own in scorers.values()),
                prepare=lambda prompts: [model for own in scorers.values() for model in own.prepare(prompts)],
            )
        )
