"""Adapters (`models/adapters/layers.py`): per-unit gradients of LoRA's two matrices are formed, as they are small; DoRA's magnitudes are vectors.

The frozen base costs nothing. If the base's weight or bias is trainable, the rule of linear layers is used for it. Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tauon.models.adapters import AdaptedLinear
from tauon.models.randomness import dropout
from tauon.privacy.clipped.record import Record, tap
from tauon.privacy.clipped.rules.base import bare, register_rule, spread, weight_of

__all__: list[str] = []


class _Merged(torch.autograd.Function):
    """The layer as one product, as `models.adapters` has it: W + s B A is formed for the product, and again for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, anchor: Tensor, layer: AdaptedLinear, record: Record) -> Tensor:
        weight, a, b = (weight_of(layer, n) for n in ("weight", "lora_a", "lora_b"))
        ctx.save_for_backward(x, weight, a, b)
        ctx.layer, ctx.record = layer, record
        return F.linear(x, torch.addmm(weight, b, a, alpha=layer.scale), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight, a, b = ctx.saved_tensors
        layer, record, g = ctx.layer, ctx.record, grads[0]
        dx = g @ torch.addmm(weight, b, a, alpha=layer.scale) if ctx.needs_input_grad[0] else None
        _keep_thin(layer, record, x, g @ b * layer.scale, x @ a.t() * layer.scale, g)
        _keep_base(layer, record, x, g)
        return dx, None, None, None, None


def _keep_thin(layer: AdaptedLinear, record: Record, x: Tensor, through: Tensor, inside: Tensor, g: Tensor) -> None:
    """A's gradient from the layer's input and what reaches the middle; B's from the middle and the gradient of the output."""
    if record.wants(layer, "lora_a"):
        record.keep_outer(layer, "lora_a", x, through)
    if record.wants(layer, "lora_b"):
        record.keep_outer(layer, "lora_b", inside, g)


def _keep_base(layer: AdaptedLinear, record: Record, x: Tensor, g: Tensor) -> None:
    if record.wants(layer, "weight"):
        record.keep_outer(layer, "weight", x, g)
    if record.wants(layer, "bias"):
        record.keep_sum(layer, "bias", g)


@register_rule(AdaptedLinear, forward=True)
def run(layer: AdaptedLinear, record: Record, x: Tensor) -> Tensor:
    """See the module docstring."""
    if record.shared(layer, x):
        x = spread(record, x)
    if not torch.is_grad_enabled():
        return cast(Tensor, bare(layer)(x))
    layer.__dict__["_clipped_inside"] = True
    try:
        merge = layer._may_merge(x)
        bias = weight_of(layer, "bias")
        if merge:
            return cast(Tensor, _Merged.apply(x, bias, record.here(x.device), layer, record))
        return _apart(layer, record, x, bias)
    finally:
        layer.__dict__["_clipped_inside"] = False


def _apart(layer: AdaptedLinear, record: Record, x: Tensor, bias: Tensor | None) -> Tensor:
    """The adapter beside the base: bf16, dropout, DoRA, NF4."""
    a, b, magnitude = (weight_of(layer, n) for n in ("lora_a", "lora_b", "magnitude"))
    scale = layer.scale
    dropped = dropout(x, layer.dropout, layer.training)

    def inner(g: Tensor, x: Tensor) -> None:
        if record.wants(layer, "lora_a"):
            record.keep_outer(layer, "lora_a", x.to(g.dtype), g)

    def outside(g: Tensor, h: Tensor, x: Tensor) -> None:
        if record.wants(layer, "lora_b"):
            record.keep_outer(layer, "lora_b", h.to(g.dtype) * scale, g)
        if record.wants(layer, "weight"):
            record.keep_outer(layer, "weight", x.to(g.dtype), g)
        if magnitude is None and record.wants(layer, "bias"):
            record.keep_sum(layer, "bias", g)

    h = tap(record, F.linear(dropped, a), inner, dropped)
    y = layer.frozen(x, bias if magnitude is None else None) + F.linear(h, b * scale)
    y = tap(record, y, outside, h, x)
    if magnitude is None:
        return y
    norms_O = layer.row_norms()

    def lengths(g: Tensor, before: Tensor) -> None:
        if record.wants(layer, "magnitude"):
            record.keep_sum(layer, "magnitude", g.float() * before.float() / norms_O)
        if record.wants(layer, "bias"):
            record.keep_sum(layer, "bias", g)

    out = tap(record, y * (magnitude / norms_O).to(y.dtype), lengths, y)
    return out if bias is None else out + bias.to(y.dtype)
