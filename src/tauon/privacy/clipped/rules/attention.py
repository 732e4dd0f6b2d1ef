"""torch's MultiheadAttention: its projections are linear layers, in one matrix or in three. Ours is made of linear layers and needs no rule.

Shapes: N rows, T queries, S keys, E width, H heads.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.privacy.clipped.record import Record, tap
from tauon.privacy.clipped.rules.base import bare, register_rule, weight_of
from tauon.privacy.clipped.terms import Term, outer

__all__: list[str] = []


class _Stacked(Term):
    """Terms of the parts of a weight that lie one under the other."""

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
    layer: nn.MultiheadAttention, record: Record, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
    need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """See the head of this file."""
    if not torch.is_grad_enabled():
        return cast(
            tuple[Tensor, "Tensor | None"],
            bare(layer)(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal),
        )
    if layer.bias_k is not None or layer.add_zero_attn or query.ndim != 3:
        raise RecipeError("MultiheadAttention with add_bias_kv or add_zero_attn, or without a batch, has no rule: leave them out.")
    itself = key is query and value is query
    q, k, v = (x if layer.batch_first else x.transpose(0, 1) for x in (query, key, value))
    weights = [weight_of(layer, n) for n in ("q_proj_weight", "k_proj_weight", "v_proj_weight")]
    if layer.in_proj_weight is not None:
        weights = list(weight_of(layer, "in_proj_weight").chunk(3))
    bias = weight_of(layer, "in_proj_bias")
    biases = [None] * 3 if bias is None else list(bias.chunk(3))
    caught: list[tuple[Tensor, Tensor] | None] = [None] * 3

    def done(g: Tensor, x: Tensor, which: int) -> None:
        caught[which] = (x.to(g.dtype), g)
        if None not in caught:
            _keep(layer, record, [c for c in caught if c is not None])

    if itself:
        k = v = q
    parts = [
        tap(record, F.linear(x, w, b), lambda g, x, i=i: done(g, x, i), x)
        for i, (x, w, b) in enumerate(zip((q, k, v), weights, biases, strict=True))
    ]
    N, T, E = parts[0].shape
    q_NHTK, k_NHSK, v_NHSK = (p.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for p in parts)
    mask = _mask(layer, N, T, k_NHSK.shape[2], key_padding_mask, attn_mask, is_causal, q_NHTK)
    drop = layer.dropout if layer.training else 0.0
    seen = None
    if need_weights:
        scores = q_NHTK @ k_NHSK.mT / q_NHTK.shape[3] ** 0.5
        seen = (scores if mask is None else scores + mask).softmax(-1)
        seen = F.dropout(seen, drop)
        y = seen @ v_NHSK
        seen = seen.mean(1) if average_attn_weights else seen
    else:
        y = F.scaled_dot_product_attention(q_NHTK, k_NHSK, v_NHSK, mask, drop)
    out = layer.out_proj(y.transpose(1, 2).reshape(N, T, E))
    return (out if layer.batch_first else out.transpose(0, 1)), seen


def _mask(
    layer: nn.MultiheadAttention, N: int, T: int, S: int, padding: Tensor | None, mask: Tensor | None, causal: bool, like: Tensor
) -> Tensor | None:
    """What is added to the scores, broadcast to NHTS."""
    found: Tensor | None = None
    if mask is None and causal:
        raise RecipeError("MultiheadAttention with is_causal needs its attn_mask.")
    for given, shape in (
        (mask, (-1, layer.num_heads, T, S) if mask is not None and mask.ndim == 3 else (1, 1, T, S)),
        (padding, (N, 1, 1, S)),
    ):
        if given is None:
            continue
        added = (
            torch.zeros_like(given, dtype=like.dtype).masked_fill_(given, -torch.inf) if given.dtype == torch.bool else given.to(like.dtype)
        )
        found = added.view(shape) if found is None else found + added.view(shape)
    return found


def _keep(layer: nn.MultiheadAttention, record: Record, caught: list[tuple[Tensor, Tensor]]) -> None:
    """All three projections' gradients are there."""
    if record.wants(layer, "in_proj_weight"):
        name = record.name(layer, "in_proj_weight")
        terms = [outer(record.by_unit(x, name).flatten(1, -2), record.by_unit(g, name).flatten(1, -2), record.grams) for x, g in caught]
        record.keep(layer, "in_proj_weight", _Stacked(terms, [g.shape[2] for _, g in caught]))
    for leaf, (x, g) in zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), caught, strict=True):
        if record.wants(layer, leaf):
            record.keep_outer(layer, leaf, x, g)
    if record.wants(layer, "in_proj_bias"):
        name = record.name(layer, "in_proj_bias")
        sums = [record.by_unit(g, name).flatten(1, -2).sum(1, dtype=torch.float32) for _, g in caught]
        record.keep(layer, "in_proj_bias", torch.cat(sums, 1))
