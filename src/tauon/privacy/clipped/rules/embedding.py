"""Embedding tables: a gradient is one vector per looked-up row; never rows x table. Shapes: V rows, D width."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.errors import RecipeError
from tauon.privacy.clipped.record import Record, tap
from tauon.privacy.clipped.rules.base import register_rule, spread, weight_of
from tauon.privacy.clipped.terms import Rows

__all__ = ["bag", "look_up"]


def look_up(
    record: Record, layer: nn.Module, leaf: str, ids: Tensor, weight_VD: Tensor, skip: int | None, *, shared: bool = False
) -> Tensor:
    """Rows `ids` of the table; their gradients are recorded per unit. `shared`: all rows of the batch have the same ids."""
    y = F.embedding(ids, weight_VD)
    if not torch.is_grad_enabled():
        return y
    if shared:
        ids, y = spread(record, ids), spread(record, y)
    name = record.name(layer, leaf)
    if record.rows is not None:
        record.ids.setdefault(name, []).append(record.by_unit(ids, name).flatten(1))

    def done(g: Tensor, ids: Tensor) -> None:
        ids_UT, g_UTD = record.by_unit(ids, name).flatten(1), record.by_unit(g, name).flatten(1, -2)
        record.keep(layer, leaf, Rows(ids_UT, g_UTD, len(weight_VD), skip))

    return tap(record, y, done, ids)


@register_rule(nn.Embedding, forward=True)
def run(layer: nn.Embedding, record: Record, input: Tensor) -> Tensor:
    """See the module docstring."""
    if layer.max_norm is not None or layer.scale_grad_by_freq:
        which = "max_norm" if layer.max_norm is not None else "scale_grad_by_freq"
        raise RecipeError(f"an embedding with {which} mixes the examples of a batch. Turn {which} off.")
    shared = record.shared(layer, input)
    return look_up(record, layer, "weight", input, weight_of(layer, "weight"), layer.padding_idx, shared=shared)


def bag(record: Record, layer: nn.Module, leaf: str, ids_BG: Tensor, weight_VD: Tensor, each_BG: Tensor | None) -> Tensor:
    """sum_g each_g weight[ids_g] for each row: `F.embedding_bag` with mode sum."""
    y_BD: Tensor = F.embedding_bag(ids_BG, weight_VD, mode="sum", per_sample_weights=each_BG)
    name = record.name(layer, leaf)

    def done(g_BD: Tensor, ids_BG: Tensor, *each: Tensor) -> None:
        g_BGD = g_BD[:, None, :].expand(-1, ids_BG.shape[1], -1)
        if each:
            g_BGD = g_BGD * each[0].to(g_BD.dtype)[:, :, None]
        ids_UT, g_UTD = record.by_unit(ids_BG, name).flatten(1), record.by_unit(g_BGD, name).flatten(1, -2)
        record.keep(layer, leaf, Rows(ids_UT, g_UTD, len(weight_VD)))

    kept: tuple[Any, ...] = (ids_BG,) if each_BG is None else (ids_BG, each_BG)
    return tap(record, y_BD, done, *kept)
