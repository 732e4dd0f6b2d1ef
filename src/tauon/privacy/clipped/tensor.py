"""Layers with weights split over tensor-parallel processes (by `distributed/tensor.py`): rules see only this process's part.

    column-wise   a is complete, g is a part: the gradient is that part of the full one
    row-wise      a is a part, g is complete: likewise
    vocabulary    rows of a table: ids of other processes are not looked up, and the partial sums are added
    replicated    norms: every process has all of a and g, and the same gradient; in norms inside attention each process has some heads, and
                  the parts of each unit's gradient are added

The squared norms of the parts add up to that of the full gradient. Adapters and bare parameters are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tauon.distributed.pieces import is_dtensor, local_slices
from tauon.errors import Problem, RecipeError
from tauon.privacy.clipped.rules.embedding import look_up
from tauon.privacy.clipped.rules.linear import linear

if TYPE_CHECKING:
    from tauon.privacy.clipped.record import Record

__all__ = ["in_parts", "on_part", "refuse_parts"]


def in_parts(p: Tensor | None) -> bool:
    """Whether a parameter is split over tensor-parallel processes in the computation (FSDP2's shards are gathered before)."""
    return p is not None and is_dtensor(p) and p.device_mesh.mesh_dim_names == ("tensor",)


def refuse_parts(model: nn.Module) -> None:
    """Raise `RecipeError` for a layer that cannot be clipped in parts."""
    from tauon.models.families.transformer import RMSNorm

    fine = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, RMSNorm)
    for name, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)) and (
            type(module).__mro__[0] not in fine and not (isinstance(module, fine) and type(module).forward in {k.forward for k in fine})
        ):
            message = f"splits {name} ({type(module).__name__}), which cannot be clipped per example in parts. Set parallel.shard instead."
            raise RecipeError([Problem("parallel.tensor", message)])


def on_part(run: Callable[..., Any], layer: nn.Module, record: Record, x: Any) -> Any:
    """Run the layer on this process's part, from DTensor to DTensor, like torch's parallel styles."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    weight: Any = layer._parameters["weight"]
    mesh, how, part = weight.device_mesh, weight.placements[0], weight.to_local().detach()
    if isinstance(layer, nn.Embedding) and isinstance(how, Shard):
        ids, first = _here(x), local_slices(weight)[0].start
        mine = (ids >= first) & (ids < first + len(part))
        y = look_up(record, layer, "weight", torch.where(mine, ids - first, 0), part, None) * mine[..., None]
        return DTensor.from_local(y, mesh, [Partial()], run_check=False)
    if isinstance(layer, nn.Linear) and how == Shard(0):
        y = run(layer, record, x.to_local(grad_placements=[Partial()]) if is_dtensor(x) else x)
        return DTensor.from_local(y, mesh, [Shard(y.ndim - 1)], run_check=False)
    if isinstance(layer, nn.Linear) and how == Shard(1):
        bias = layer._parameters.get("bias")
        own = None if bias is None else _here(bias).detach() / mesh.size()  # each process adds its share
        return DTensor.from_local(linear(record, layer, _here(x), part, own), mesh, [Partial()], run_check=False)
    if is_dtensor(x) and isinstance(x.placements[0], Shard):
        record.added_over[id(layer)] = mesh.get_group()  # each process has some heads
    y = run(layer, record, _here(x))
    return DTensor.from_local(y, mesh, list(x.placements) if is_dtensor(x) else [Replicate()], run_check=False)


def _here(x: Any) -> Any:
    return x.to_local() if is_dtensor(x) else x
