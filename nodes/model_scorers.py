"""Scorers by models from files: ImageReward and BLIP."""

from comfy_api.latest import io

from ..d3po_core.candidates.scorers import Scorer
from . import host
from .judge_files import FOLDER, TENSORS, judges, made_of, path_of
from .types import CATEGORY, scorer_output

VOCABULARY = "vocab.txt"


class D3POImageRewardScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POImageRewardScorer",
            display_name="D3PO ImageReward Scorer",
            category=CATEGORY,
            search_aliases=["imagereward", "blip", "image text matching", "prompt alignment", "reward"],
            description="How well people will like a picture for its prompt, by ImageReward (arXiv "
            "2304.05977). With a file of BLIP's, how probable it is that picture and prompt belong together.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=judges(*TENSORS),
                    tooltip=f"ImageReward, or a BLIP for image-text matching, in models/{FOLDER}, as "
                    f".safetensors, and beside it bert-base-uncased's {VOCABULARY}.",
                ),
            ],
            outputs=[scorer_output()],
        )

    @classmethod
    def execute(cls, file):
        scores = made_of(file, "file", lambda tensors: host.TextImageScores(tensors, vocabulary_of(file)))

        def prepare(prompts):
            for prompt in prompts:
                scores.tokens(prompt)
            return [scores.patcher]

        return io.NodeOutput(Scorer(scores.name, scores, differentiable=True, prepare=prepare))


def vocabulary_of(file):
    """Beside a file. Raises ValueError where there is none."""
    found = path_of(file).with_name(VOCABULARY)
    if not found.is_file():
        raise ValueError(
            f"{VOCABULARY} is not beside it. Put the {VOCABULARY} of bert-base-uncased there, from "
            "huggingface.co/google-bert/bert-base-uncased"
        )
    return found
