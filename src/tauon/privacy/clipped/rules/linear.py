"""Linear layers: W's gradient is sum_t g_t a_t^T, b's is sum_t g_t. Shapes: I inputs, O outputs, any dimensions between rows and I."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.privacy.clipped.record import Record
from tauon.privacy.clipped.rules.base import register_rule, spread, weight_of

__all__ = ["linear"]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, anchor: Tensor, layer: nn.Module, record: Record) -> Tensor:
        y = F.linear(x, weight, bias)
        ctx.layer, ctx.record, ctx.dtype = layer, record, x.dtype
        ctx.save_for_backward(x.to(y.dtype), weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        g, record, layer = grads[0], ctx.record, ctx.layer
        with torch.autocast(g.device.type, enabled=False):
            dx = (g @ weight.to(g.dtype)).to(ctx.dtype) if ctx.needs_input_grad[0] else None
            if record.wants(layer, "weight"):
                record.keep_outer(layer, "weight", x, g)
            if record.wants(layer, "bias"):
                record.keep_sum(layer, "bias", g)
        return dx, None, None, None, None, None


def linear(record: Record, layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear, with the gradients of `layer`'s weight and bias recorded per unit."""
    if not torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    return cast(Tensor, _Linear.apply(x, weight, bias, record.here(x.device), layer, record))


@register_rule(nn.Linear, forward=True)
def run(layer: nn.Linear, record: Record, input: Tensor) -> Tensor:
    """See the module docstring."""
    x = spread(record, input) if record.shared(layer, input) else input
    return linear(record, layer, x, weight_of(layer, "weight"), weight_of(layer, "bias"))
