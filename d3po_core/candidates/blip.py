"""ImageReward and BLIP: how well pictures fit a text, by a network that reads the text and looks at them."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .aesthetic import AestheticHead

IMAGE_REWARD, MATCH = "ImageReward", "BLIP's match of picture and prompt"
USUAL, SPREAD = 0.16717362830052426, 1.0333394966054072  # of ImageReward's scores, as its code has them
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
MOST_TOKENS = 35
HEAD_WIDTH = 64  # of attention, in all of BERT's and ViT's sizes that BLIP has
SPECIAL = 2  # tokens that BLIP adds to BERT's vocabulary: [DEC], and [ENC] before a text to match
VISION_NAMES = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    (".norm", ".layer_norm"),
    (".attn.proj.", ".self_attn.projection."),
    (".attn.", ".self_attn."),
)


class Blip(nn.Module):
    """BLIP's image-grounded text encoder (arXiv 2201.12086, figure 2) with a head on the text's first token.

    name  what it scores by: IMAGE_REWARD (arXiv 2304.05977) or MATCH, the probability that both belong
          together
    size  of the pictures that it takes, in pixels
    """

    def __init__(
        self,
        name: str,
        vision: Any,
        text: Any,
        head: Callable[[Tensor], Tensor],
        first: int | None,
        size: int,
    ) -> None:
        super().__init__()
        self.name, self.vision, self.text, self.head = name, vision, text, head
        self.first, self.size = first, size

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Blip":
        """Of a file's tensors, in ImageReward's layout or that of BLIP's own files. Their shapes are those of
        the network. Raises ValueError for others."""
        rewards = "mlp.layers.0.weight" in tensors
        prefix = "blip." if rewards else ""
        try:
            vision, size = vision_of(part(tensors, f"{prefix}visual_encoder."))
            text = text_of(part(tensors, f"{prefix}text_encoder."))
            vocabulary = text.get_input_embeddings().num_embeddings
            if rewards:
                rating = AestheticHead.of(part(tensors, "mlp."))
                return cls(IMAGE_REWARD, vision, text, lambda x: (rating(x) - USUAL) / SPREAD, None, size)
            weight, bias = tensors["itm_head.weight"].float(), tensors["itm_head.bias"].float()
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(
                "this is neither ImageReward, whose tensors are blip.visual_encoder, blip.text_encoder and "
                "mlp.layers, nor a BLIP for image-text matching, whose are visual_encoder, text_encoder and "
                "itm_head"
            ) from error
        head = lambda x: F.linear(x, weight.to(x), bias.to(x)).softmax(-1)[:, 1]
        return cls(MATCH, vision, text, head, vocabulary - 1, size)

    def forward(self, pixels: Tensor, tokens: Sequence[int]) -> Tensor:
        """[N], of pixels [N, 3, size, size], normalised as CLIP's, and the tokens of one text."""
        tokens = [*tokens] if self.first is None else [self.first, *tokens[1:]]
        ids = torch.tensor([tokens] * len(pixels), device=pixels.device)
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
        return self.head(read[:, 0])

    def reader(self, vocabulary: Path) -> Callable[[str], list[int]]:
        """Text -> tokens, at most MOST_TOKENS, by a file of bert-base-uncased's vocabulary. Raises ValueError
        for another one."""
        from tokenizers import BertWordPieceTokenizer

        words = vocabulary.read_text("utf-8").rstrip("\n").split("\n")  # other ends of lines are words
        expected = self.text.get_input_embeddings().num_embeddings - SPECIAL
        if len(words) != expected or not {"[CLS]", "[SEP]", "[UNK]"} <= {*words}:
            raise ValueError(
                f"{vocabulary.name} has {len(words)} lines, and the vocabulary that this network reads by "
                f"has {expected}. It needs that of bert-base-uncased"
            )
        tokenizer = BertWordPieceTokenizer({word: number for number, word in enumerate(words)})
        tokenizer.enable_truncation(MOST_TOKENS)
        return lambda text: tokenizer.encode(text).ids


def vision_of(tensors: Mapping[str, Tensor]) -> tuple[Any, int]:
    """transformers' BlipVisionModel of timm's names of a ViT, and the size of its pictures."""
    from transformers import BlipVisionConfig, BlipVisionModel

    kernel = tensors["patch_embed.proj.weight"]
    width, patch = len(kernel), kernel.shape[-1]
    size = patch * math.isqrt(tensors["pos_embed"].shape[1] - 1)
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(tensors["blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=layers_in(tensors, "blocks."),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=size,
        patch_size=patch,
        layer_norm_eps=1e-6,  # timm's
    )
    return holding(BlipVisionModel, config, {vision_name(name): own for name, own in tensors.items()}), size


def text_of(tensors: Mapping[str, Tensor]) -> Any:
    """transformers' BlipTextModel, whose names are those of BLIP's own."""
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    layer = "encoder.layer.0."
    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=tensors[f"{layer}crossattention.self.key.weight"].shape[1],
        intermediate_size=len(tensors[f"{layer}intermediate.dense.weight"]),
        num_hidden_layers=layers_in(tensors, "encoder.layer."),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=len(tensors["embeddings.position_embeddings.weight"]),
    )
    positions = "embeddings.position_ids"  # counted, not learned: files may have them or not
    weights = {name: own for name, own in tensors.items() if name != positions}
    model = holding(BlipTextModel, config, weights, add_pooling_layer=False)
    model.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    return model


def holding(kind: Callable[..., Any], config: Any, tensors: Mapping[str, Tensor], **further: Any) -> Any:
    """A network of transformers' with these weights, in float32."""
    with torch.device("meta"):
        model = kind(config, **further)
    model.load_state_dict({name: own.float() for name, own in tensors.items()}, assign=True)
    return model.eval().requires_grad_(False)


def vision_name(name: str) -> str:
    for theirs, ours in VISION_NAMES:
        name = name.replace(theirs, ours)
    return name.replace("norm.", "post_layernorm.") if name.startswith("norm.") else name


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): own for name, own in tensors.items() if name.startswith(prefix)}


def layers_in(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name.split(".")[0]) for name in part(tensors, prefix))
