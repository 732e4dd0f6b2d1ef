"""Which part of a tensor this process holds: what initialisation, checkpoints and vocabulary-parallel losses need to know."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

__all__ = ["fill", "first_holder", "local_part", "local_slices"]


def local_part(t: Tensor) -> Tensor:
    """The numbers that this process holds: the tensor itself unless it is a DTensor. Shares memory."""
    return t.to_local() if isinstance(t, DTensor) else t


def local_slices(t: Tensor) -> tuple[slice, ...]:
    """Where `local_part(t)` lies in the whole tensor, a slice a dimension."""
    if not isinstance(t, DTensor):
        return tuple(slice(0, n) for n in t.shape)
    shape, offset = compute_local_shape_and_global_offset(t.shape, t.device_mesh, t.placements)
    return tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))


def first_holder(t: Tensor) -> bool:
    """Of the processes that hold the same part of a DTensor, whether this is the first."""
    if not isinstance(t, DTensor):
        return True
    place = t.device_mesh.get_coordinate()
    return place is not None and all(at == 0 for at, how in zip(place, t.placements, strict=True) if isinstance(how, Replicate))


def fill(t: Tensor, whole: Any) -> None:
    """Copy this process's part of `whole` (a tensor, or one that is read from a file by slices) into `t`, without communication."""
    part = local_part(t.detach())
    if part.numel():
        part.copy_(whole[local_slices(t)])
