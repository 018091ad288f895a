"""LoRA's update of layers in half precision: in float32, as PEFT has it, without keeping their inputs in
float32.

PEFT casts a layer's input to the float32 of A, and the gradient of A needs it: four bytes for each of its
numbers, once more for each of q, k and v. Here the input itself is kept, which these share, and it is cast
again in the backward pass.
"""

from typing import Any

import torch
from torch import Tensor


class LowRankUpdate:
    """What a LoRA layer of PEFT has in place of its own update, in its `lora_variant`."""

    @staticmethod
    def forward(layer: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """result + scaling B A dropout(x), in the dtype of A."""
        A, B = layer.lora_A[active_adapter], layer.lora_B[active_adapter]
        x = layer.lora_dropout[active_adapter](x)
        low: Any = A(x) if x.dtype == A.weight.dtype else _Down.apply(x, A.weight, A)  # type: ignore[no-untyped-call]
        update: Tensor = B(low)
        update *= layer.scaling[active_adapter]
        update += result
        return update


class _Down(torch.autograd.Function):
    """A x of a layer A in float32, of which x is kept as it comes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        low: Tensor = layer(x.to(weight.dtype))
        return low

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,), layer = ctx.saved_tensors, ctx.layer
        with torch.enable_grad():
            wide = x.detach().to(layer.weight.dtype).requires_grad_()
            of_x, of_weight = torch.autograd.grad(layer(wide), (wide, layer.weight), gradients)
        return of_x.to(x.dtype), of_weight, None
