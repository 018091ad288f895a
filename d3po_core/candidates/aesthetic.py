"""The improved aesthetic predictor: a rating of a picture, from CLIP's embedding of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

LAYERS = (0, 2, 4, 6, 7)  # of the file; the others are dropouts
WIDTHS = (768, 1024, 128, 64, 16, 1)


@dataclass(frozen=True)
class AestheticHead:
    """LAION's improved aesthetic predictor (github.com/christophschuhmann/improved-aesthetic-predictor):
    five linear layers, without activations between them."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "AestheticHead":
        """Of a file's tensors: layers.N.weight and layers.N.bias. Raises ValueError for others."""
        names = {f"layers.{n}.{part}" for n in LAYERS for part in ("weight", "bias")}
        layers = tuple((tensors[f"layers.{n}.weight"].float(), tensors[f"layers.{n}.bias"].float())
                       for n in LAYERS) if tensors.keys() == names else ()  # fmt: skip
        shapes = [(tuple(weight.shape), tuple(bias.shape)) for weight, bias in layers]
        if shapes != [((wide, before), (wide,)) for before, wide in zip(WIDTHS, WIDTHS[1:])]:
            raise ValueError(
                "this is not the improved aesthetic predictor, whose tensors are layers.0, 2, 4, 6 and 7 of "
                f"widths {', '.join(map(str, WIDTHS))}"
            )
        return cls(layers)

    def __call__(self, embeddings: Tensor) -> Tensor:
        """[N], about 1 (poor) to 10, of normalised embeddings [N, 768] by CLIP ViT-L/14."""
        for weight, bias in self.layers:
            embeddings = F.linear(embeddings, weight.to(embeddings), bias.to(embeddings))
        return embeddings[:, 0]
