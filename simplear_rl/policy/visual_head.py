"""Logits of the visual codes: float32, whatever the type of the weights. All engines, learner and reference use them.

A logit of 20 that is rounded to bfloat16 is off by up to 0.06 nats, and guidance multiplies that by its scale.
So products of bfloat16 numbers are summed in float32, and the sum is kept.
"""

from typing import Any

import torch
from torch.autograd.function import FunctionCtx


def visual_logits(hidden_NH: torch.Tensor, head_CH: torch.Tensor) -> torch.Tensor:
    """`hidden_NH @ head_CH.T`, float32 [..., C]; differentiable in both."""
    return hidden_NH @ head_CH.T if hidden_NH.dtype == torch.float32 else _Float32Product.apply(hidden_NH, head_CH)


class _Float32Product(torch.autograd.Function):
    """Forward in float32; backward in the type of the inputs, as that of their plain product."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: torch.Tensor, head_CH: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden, head_CH)
        if hidden.device.type == "cuda":
            product = torch.mm(hidden.flatten(0, -2), head_CH.T, out_dtype=torch.float32)
            return product.unflatten(0, hidden.shape[:-1])
        return hidden.float() @ head_CH.float().T

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, head_CH = ctx.saved_tensors
        gradient = gradient.to(hidden.dtype)
        return gradient @ head_CH, gradient.flatten(0, -2).T @ hidden.flatten(0, -2)
