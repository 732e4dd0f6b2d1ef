"""The local part of a tensor: for initialization, checkpoints and vocabulary-parallel losses."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["fill", "first_holder", "is_dtensor", "local_part", "local_slices", "whole_gradients"]


def is_dtensor(t: Any) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor. Does not import DTensor, which takes a second: if not imported, there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local_part(t: Tensor) -> Tensor:
    """Return this process's values: the tensor itself unless it is a DTensor. Shares memory."""
    return t.to_local() if is_dtensor(t) else t


def local_slices(t: Tensor) -> tuple[slice, ...]:
    """Position of `local_part(t)` in the full tensor, one slice per dimension."""
    if not is_dtensor(t):
        return tuple(slice(0, n) for n in t.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(t.shape, t.device_mesh, t.placements)
    return tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))


def first_holder(t: Tensor) -> bool:
    """Whether this is the first of the processes with the same part of a DTensor."""
    if not is_dtensor(t):
        return True
    from torch.distributed.tensor import Replicate

    place = t.device_mesh.get_coordinate()
    return place is not None and all(at == 0 for at, how in zip(place, t.placements, strict=True) if isinstance(how, Replicate))


def fill(t: Tensor, whole: Any) -> None:
    """Copy this process's part of `whole` (a tensor, or one read from a file by slices) into `t`, without communication."""
    part = local_part(t.detach())
    if part.numel():
        part.copy_(whole[local_slices(t)])


def whole_gradients(model: nn.Module) -> None:
    """Redistribute gradients that are partial sums over processes to the placement of their parameter, in place."""
    for p in model.parameters():
        g = p.grad
        if g is not None and is_dtensor(g) and is_dtensor(p) and g.placements != p.placements:
            p.grad = g.redistribute(placements=p.placements)
