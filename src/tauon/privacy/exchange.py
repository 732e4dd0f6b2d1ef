"""Exchange of clipped sums. Every process clips its own examples, so data-parallel ranks exchange sums and no norms.

    replicate   sums of a step are all-reduced once, after the last microbatch
    shard       the clipped sum of a layer is unsharded (weights are gathered while a step computes): reduce-scattered into the shard as
                soon as it is formed
    tensor      each process forms the sum of its own part of a matrix; norms of the parts are added, B numbers

Noise is not exchanged: each process draws the noise of its own part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tauon.distributed import Mesh
from tauon.distributed.pieces import is_dtensor, local_part

__all__ = ["norms_over", "place_over", "sum_over"]

BUCKET = 2**22
"""Elements in one all-reduce."""


def place_over(mesh: Mesh, p: nn.Parameter, summed: Tensor) -> None:
    """Add this process's clipped sum to `p.grad`, which gets the layout of `p`.

    `summed` has the shape that this process computes with: the full parameter, or its tensor-parallel part.
    """
    if not is_dtensor(p):
        if p.grad is None:
            p.grad = summed
        elif p.grad is not summed:  # the engine may have added in place
            p.grad.add_(summed)
        return
    from torch.distributed.tensor import DTensor

    mine = local_part(p.detach())
    if mesh.layout.shard > 1:
        summed = _scattered(summed, mine, mesh)
    if p.grad is None:
        p.grad = DTensor.from_local(summed, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
    else:
        local_part(p.grad).add_(summed)


def _scattered(whole: Tensor, mine: Tensor, mesh: Mesh) -> Tensor:
    """Return this process's rows of the sum: FSDP2 splits dimension 0 into equal chunks, the last ones shorter."""
    group = mesh.group("shard", "context")
    assert group is not None
    size = group.size()
    rows = -(-whole.shape[0] // size)
    if rows * size != whole.shape[0]:
        whole = torch.cat([whole, whole.new_zeros(rows * size - whole.shape[0], *whole.shape[1:])])
    part = whole.new_empty(rows, *whole.shape[1:])
    dist.reduce_scatter_single(part, whole.contiguous(), group=group)
    return part[: mine.shape[0]].contiguous()


def sum_over(mesh: Mesh, gradients: list[Tensor]) -> None:
    """All-reduce the sums of the replicas in place, in few messages."""
    group = mesh.group("replicate", "context") if mesh.layout.shard == 1 else mesh.group("replicate")
    if group is None:
        return
    waiting: list[Tensor] = []
    parts = [local_part(g) for g in gradients]
    for i, g in enumerate(parts):
        waiting.append(g)
        if sum(w.numel() for w in waiting) >= BUCKET or i == len(parts) - 1:
            flat = torch.cat([w.flatten() for w in waiting])
            dist.all_reduce(flat, group=group)
            at = 0
            for w in waiting:
                w.copy_(flat[at : at + w.numel()].view_as(w))
                at += w.numel()
            waiting = []


def norms_over(mesh: Mesh, squared: Mapping[str, Tensor], parameters: Mapping[str, Any]) -> dict[str, Tensor]:
    """Squared norms (U) of complete parameters, some of them split over tensor-parallel processes: one all-reduce for all."""
    group = mesh.group("tensor")
    if group is None:
        return dict(squared)
    cut = [name for name in squared if _cut(parameters[name], mesh)]
    if not cut:
        return dict(squared)
    together = torch.stack([squared[name] for name in cut])
    dist.all_reduce(together, group=group)
    return dict(squared) | dict(zip(cut, together, strict=True))


def _cut(p: Tensor, mesh: Mesh) -> bool:
    """Whether `p` is split over tensor-parallel processes."""
    if not is_dtensor(p):
        return False
    names = p.device_mesh.mesh_dim_names or ()
    at = names.index("tensor") if "tensor" in names else len(names) - 1
    return bool(p.placements[at].is_shard())
