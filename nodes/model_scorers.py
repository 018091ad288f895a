"""Scorers by models from files: ImageReward, BLIP, and any in ONNX."""

from pathlib import Path

from comfy_api.latest import io

from ..d3po_core.candidates.onnx_models import PREPARATIONS, OnnxModel
from ..d3po_core.candidates.scorers import Scorer
from . import host
from .judge_files import FOLDER, TENSORS, judges, made_of, path_of
from .types import CATEGORY, ScorerType, scorer_output

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


class D3POONNXScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POONNXScorer",
            display_name="D3PO ONNX Scorer",
            category=CATEGORY,
            search_aliases=["classifier", "nsfw", "safety", "onnxruntime", "open_nsfw", "reward"],
            description="A number that any image classifier or rating in ONNX gives of a picture, such as "
            "how probable something unwanted is. It has no gradient.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=judges(".onnx"),
                    tooltip=f"The model, in models/{FOLDER}, as .onnx. The package onnxruntime runs it.",
                ),
                io.Combo.Input(
                    "preparation",
                    options=list(PREPARATIONS),
                    tooltip="How the model wants a picture's colours. Its own page says so.",
                ),
                io.Int.Input(
                    "output",
                    default=-1,
                    min=-100_000,
                    max=100_000,
                    tooltip="Which of the model's numbers is the score, from 0 on; -1 is the last. More is "
                    "better: where it is something unwanted, write -a in D3PO Rule Scorer.",
                ),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="The pictures' height and width, for a model that does not say. 0: 224.",
                ),
            ],
            outputs=[
                ScorerType.Output(
                    display_name="scorer",
                    tooltip="Wire to a score of D3PO Score Preference, D3PO Rate, D3PO Best of N or D3PO "
                    "Noise Search.",
                )
            ],
        )

    @classmethod
    def execute(cls, file, preparation, output, size):
        try:
            model = OnnxModel(path_of(file), preparation, output, size)
        except ValueError as error:
            raise ValueError(f"file: {file}: {error}") from error
        return io.NodeOutput(Scorer(f"number {output} of {Path(file).stem}", lambda images, _: model(images)))


def vocabulary_of(file):
    """Beside a file. Raises ValueError where there is none."""
    found = path_of(file).with_name(VOCABULARY)
    if not found.is_file():
        raise ValueError(
            f"{VOCABULARY} is not beside it. Put the {VOCABULARY} of bert-base-uncased there, from "
            "huggingface.co/google-bert/bert-base-uncased"
        )
    return found
