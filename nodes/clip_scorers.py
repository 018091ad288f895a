"""Scorers by CLIP's embeddings: how well a picture fits its prompt, and how good it looks."""

from pathlib import Path

from comfy_api.latest import io

from ..d3po_core.candidates.aesthetic import WIDTHS, AestheticHead
from ..d3po_core.candidates.scorers import Scorer
from . import host
from .judge_files import TENSORS, judges, made_of
from .types import CATEGORY, scorer_output


class D3POCLIPScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POCLIPScorer",
            display_name="D3PO CLIP Scorer",
            category=CATEGORY,
            search_aliases=["clipscore", "clip score", "pickscore", "hps", "prompt alignment", "reward"],
            description="How well a picture fits its prompt: 100 times the cosine of CLIP's embeddings of "
            "both. With the files of PickScore or HPSv2.1, how well people like it for its prompt.",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="CLIP's image encoder, from Load CLIP Vision."),
                io.Clip.Input(
                    "clip",
                    tooltip="The text model of the same CLIP, from Load CLIP. That of a checkpoint will "
                    "rarely do.",
                ),
            ],
            outputs=[scorer_output()],
        )

    @classmethod
    def execute(cls, clip_vision, clip):
        pictures, texts = host.ImageEncoder(clip_vision), host.TextEncoder(clip)
        if pictures.width != texts.width:
            raise ValueError(
                f"clip: its texts have {texts.width} numbers, and clip_vision's pictures {pictures.width}: "
                "they are of two different CLIPs. Load both of one, such as OpenAI's ViT-L/14 or PickScore"
            )

        def judge(images, prompt):
            text = texts(prompt)
            embeddings = pictures(images)
            return 100 * embeddings @ text.to(embeddings)

        def prepare(prompts):
            for prompt in prompts:
                texts(prompt)
            return [pictures.patcher]

        return io.NodeOutput(Scorer("CLIP score", judge, differentiable=True, prepare=prepare))


class D3POAestheticScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POAestheticScorer",
            display_name="D3PO Aesthetic Scorer",
            category=CATEGORY,
            search_aliases=["aesthetic predictor", "laion aesthetics", "rate images", "beauty", "reward"],
            description="How good a picture looks, about 1 to 10, by LAION's improved aesthetic predictor on "
            "CLIP ViT-L/14.",
            inputs=[
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="The image encoder of OpenAI's CLIP ViT-L/14, from Load CLIP Vision.",
                ),
                io.Combo.Input(
                    "head",
                    options=judges(*TENSORS),
                    tooltip="The predictor's file, in models/aesthetic, as .safetensors.",
                ),
            ],
            outputs=[scorer_output()],
        )

    @classmethod
    def execute(cls, clip_vision, head):
        pictures, rating = host.ImageEncoder(clip_vision), made_of(head, "head", AestheticHead.of)
        if pictures.width != WIDTHS[0]:
            raise ValueError(
                f"clip_vision: its pictures have {pictures.width} numbers, but the predictor was made for "
                f"the {WIDTHS[0]} of OpenAI's CLIP ViT-L/14. Load that"
            )
        return io.NodeOutput(
            Scorer(
                f"aesthetic rating by {Path(head).stem}",
                lambda images, prompt: rating(pictures(images)),
                differentiable=True,
                prepare=lambda prompts: [pictures.patcher],
            )
        )
