"""Layers whose weight lies in parts over tensor-parallel processes (`distributed/tensor.py` cuts them): rules see this process's part alone.

    column-wise   a is whole, g is a part: the gradient is the part of the whole one
    row-wise      a is a part, g is whole: so it is
    vocabulary    rows of a table: of ids that lie elsewhere nothing is looked up, and the parts of the sum are added
    whole         norms: every process has all of a and g, and the same gradient; of norms inside attention each process has some heads, and
                  the parts of each unit's gradient are added

The squared norm of a part is a part of the whole's: whoever holds several processes adds them. Adapters and bare parameters are refused.
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
    """Whether a parameter is one of tensor-parallel processes, as they compute with it (FSDP2's shards are gathered before)."""
    return p is not None and is_dtensor(p) and p.device_mesh.mesh_dim_names == ("tensor",)


def refuse_parts(model: nn.Module) -> None:
    """`RecipeError` for a layer that cannot be clipped in parts."""
    from tauon.models.families.transformer import RMSNorm

    fine = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, RMSNorm)
    for name, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)) and (
            type(module).__mro__[0] not in fine and not (isinstance(module, fine) and type(module).forward in {k.forward for k in fine})
        ):
            said = f"leaves each process a part of {name} ({type(module).__name__}), which cannot be clipped by example. Take shard."
            raise RecipeError([Problem("parallel.tensor", said)])


def on_part(run: Callable[..., Any], layer: nn.Module, record: Record, x: Any) -> Any:
    """The layer on this process's part, from a DTensor to a DTensor, as torch's parallel styles have it."""
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
