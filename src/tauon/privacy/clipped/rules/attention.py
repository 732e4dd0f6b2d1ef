"""torch's MultiheadAttention: its projections are linear layers, in one matrix or in three. Ours is made of linear layers and needs no rule.

Shapes: N rows, T queries, S keys, E width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.privacy.clipped.record import Record, tap
from tauon.privacy.clipped.rules.base import bare, register_rule, weight_of
from tauon.privacy.clipped.terms import Term, outer

__all__: list[str] = []


@dataclass(frozen=True)
class _Options:
    """Arguments of `nn.MultiheadAttention.forward` after query, key and value, with its names, order and defaults."""

    key_padding_mask: Tensor | None = None
    need_weights: bool = True
    attn_mask: Tensor | None = None
    average_attn_weights: bool = True
    is_causal: bool = False


class _Stacked(Term):
    """Terms of the row blocks of a weight, stacked in the first dimension."""

    def __init__(self, parts: list[Term], sizes: list[int]) -> None:
        self.parts, self.sizes = parts, sizes
        self.squared = cast(Tensor, sum(p.squared for p in parts))
        errors = [p.error for p in parts if p.error is not None]
        self.error = cast(Tensor, sum(errors)) if len(errors) == len(parts) else None
        self.size, self.rounding = (cast(Tensor, sum(getattr(p, what) for p in parts)) for what in ("size", "rounding"))

    def add(self, factors_U: Tensor, out: Tensor | None) -> Tensor:
        if out is None:
            return torch.cat([p.add(factors_U, None) for p in self.parts])
        for part, rows in zip(self.parts, out.split(self.sizes), strict=True):
            part.add(factors_U, rows)
        return out

    def dense(self, units: Tensor | None = None) -> Tensor:
        return torch.cat([p.dense(units) for p in self.parts], 1)


@register_rule(nn.MultiheadAttention, forward=True)
def run(
    layer: nn.MultiheadAttention, record: Record, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention from separate projections. `args` and `kwargs`: the fields of `_Options`, as torch's `forward` takes them."""
    if not torch.is_grad_enabled():
        return cast(
            tuple[Tensor, "Tensor | None"],
            bare(layer)(query, key, value, *args, **kwargs),
        )
    if layer.bias_k is not None or layer.add_zero_attn or query.ndim != 3:
        raise RecipeError(
            "MultiheadAttention has no clipping rule with add_bias_kv, with add_zero_attn, or with unbatched input. "
            "Turn them off, and pass batched input."
        )
    options = _Options(*args, **kwargs)
    itself = key is query and value is query
    q, k, v = (x if layer.batch_first else x.transpose(0, 1) for x in (query, key, value))
    weights = [weight_of(layer, n) for n in ("q_proj_weight", "k_proj_weight", "v_proj_weight")]
    if layer.in_proj_weight is not None:
        weights = list(weight_of(layer, "in_proj_weight").chunk(3))
    bias = weight_of(layer, "in_proj_bias")
    biases = [None] * 3 if bias is None else list(bias.chunk(3))
    factors: list[tuple[Tensor, Tensor] | None] = [None] * 3

    def done(g: Tensor, x: Tensor, which: int) -> None:
        factors[which] = (x.to(g.dtype), g)
        if None not in factors:
            _keep(layer, record, [c for c in factors if c is not None])

    if itself:
        k = v = q
    parts = [
        tap(record, F.linear(x, w, b), lambda g, x, i=i: done(g, x, i), x)
        for i, (x, w, b) in enumerate(zip((q, k, v), weights, biases, strict=True))
    ]
    N, T, E = parts[0].shape
    q_NHTK, k_NHSK, v_NHSK = (p.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for p in parts)
    mask = _mask(layer, options, q_NHTK, k_NHSK)
    drop = layer.dropout if layer.training else 0.0
    attention = None
    if options.need_weights:
        scores = q_NHTK @ k_NHSK.mT / q_NHTK.shape[3] ** 0.5
        attention = (scores if mask is None else scores + mask).softmax(-1)
        attention = F.dropout(attention, drop)
        y = attention @ v_NHSK
        attention = attention.mean(1) if options.average_attn_weights else attention
    else:
        y = F.scaled_dot_product_attention(q_NHTK, k_NHSK, v_NHSK, mask, drop)
    out = layer.out_proj(y.transpose(1, 2).reshape(N, T, E))
    return (out if layer.batch_first else out.transpose(0, 1)), attention


def _mask(layer: nn.MultiheadAttention, options: _Options, q_NHTK: Tensor, k_NHSK: Tensor) -> Tensor | None:
    """Both masks as one that is added to the scores, broadcast to NHTS."""
    N, _, T, _ = q_NHTK.shape
    S, dtype = k_NHSK.shape[2], q_NHTK.dtype
    total: Tensor | None = None
    mask = options.attn_mask
    if mask is None and options.is_causal:
        raise RecipeError("MultiheadAttention was called with is_causal=True and without attn_mask. Pass attn_mask as well.")
    for part, shape in (
        (mask, (-1, layer.num_heads, T, S) if mask is not None and mask.ndim == 3 else (1, 1, T, S)),
        (options.key_padding_mask, (N, 1, 1, S)),
    ):
        if part is None:
            continue
        added = torch.zeros_like(part, dtype=dtype).masked_fill_(part, -torch.inf) if part.dtype == torch.bool else part.to(dtype)
        total = added.view(shape) if total is None else total + added.view(shape)
    return total


def _keep(layer: nn.MultiheadAttention, record: Record, factors: list[tuple[Tensor, Tensor]]) -> None:
    """Record the gradients of the three projections; called when all of them have arrived."""
    if record.wants(layer, "in_proj_weight"):
        name = record.name(layer, "in_proj_weight")
        terms = [outer(record.by_unit(x, name).flatten(1, -2), record.by_unit(g, name).flatten(1, -2), record.grams) for x, g in factors]
        record.keep(layer, "in_proj_weight", _Stacked(terms, [g.shape[2] for _, g in factors]))
    for leaf, (x, g) in zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), factors, strict=True):
        if record.wants(layer, leaf):
            record.keep_outer(layer, leaf, x, g)
    if record.wants(layer, "in_proj_bias"):
        name = record.name(layer, "in_proj_bias")
        sums = [record.by_unit(g, name).flatten(1, -2).sum(1, dtype=torch.float32) for _, g in factors]
        record.keep(layer, "in_proj_bias", torch.cat(sums, 1))
