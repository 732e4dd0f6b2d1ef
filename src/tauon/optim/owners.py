"""Orthogonalization of distributed matrices, each on one process, its owner. For Muon, whose update needs complete matrices, while
all other operations are elementwise (Liu et al. 2025, arXiv:2502.16982, section 2.3).

Matrices are sent in bfloat16, the input and output dtype of Newton-Schulz, so the result equals that of one process bit for bit. W
matrices are processed at a time, one per process, the largest first. Bytes that a process sends per step, for matrices of N elements in
total:

    replicated (DDP)             owners compute, one all-gather of the results                 2 N / W
    sharded (FSDP2)              all-to-all to the owner, and back                             4 N (W-1) / W^2
    sharded over two dimensions  gathered everywhere, then as if replicated                    2 N / shards, and 2 N / W

Independent of momentum, learning rate and model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from tauon.distributed import Traffic, is_dtensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Replicate

__all__ = ["orthogonalized", "shard_size"]

Orthogonalize = Callable[[Tensor], Tensor]


def orthogonalized(
    matrices: Sequence[Tensor], function: Orthogonalize, group: dist.ProcessGroup | None = None, traffic: Traffic | None = None
) -> list[Tensor]:
    """Apply `function` to each complete matrix; return this process's part of each result (a plain tensor), in bfloat16.

    Args:
        matrices: two-dimensional; plain tensors, equal on all processes of `group`, or DTensors. The same list on all processes.
        function: takes a bfloat16 matrix, which it may overwrite.
        group: over which plain tensors are replicated; None: each process computes them all.
        traffic: counter of sent bytes.

    Collective over all groups involved.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    traffic = traffic or Traffic()
    results: list[Tensor | None] = [None] * len(matrices)
    shared: dict[dist.ProcessGroup, list[tuple[int, Tensor]]] = {}
    sharded: dict[tuple[dist.ProcessGroup, int], list[tuple[int, DTensor]]] = {}
    for i, matrix in enumerate(matrices):
        if not is_dtensor(matrix):
            if group is None or dist.get_world_size(group) == 1:
                results[i] = function(rounded(matrix))
            else:
                shared.setdefault(group, []).append((i, rounded(matrix)))
            continue
        mesh = matrix.device_mesh
        large = [d for d in range(mesh.ndim) if mesh.size(d) > 1]
        cut = [d for d in large if not isinstance(matrix.placements[d], Replicate)]
        place = matrix.placements[cut[0]] if len(cut) == 1 else None
        if type(place) is Shard:  # not a subclass: rows of a strided shard are not contiguous
            sharded.setdefault((mesh.get_group(cut[0]), place.dim % 2), []).append((i, matrix))
        elif not large:
            results[i] = function(rounded(matrix.to_local()))
        else:
            whole = matrix
            if cut:
                mine = rounded(matrix.to_local())
                traffic.add("all-gather", 2 * mine.numel())
                places, shape, stride = matrix.placements, matrix.shape, matrix.stride()
                whole = DTensor.from_local(mine, mesh, places, run_check=False, shape=shape, stride=stride)
                whole = whole.redistribute(mesh, everywhere(mesh))
            widest = mesh.get_group(max(large, key=mesh.size))
            shared.setdefault(widest, []).append((i, rounded(whole.to_local())))
    for among, items in shared.items():
        for i, result in by_owners(items, function, among, traffic):
            matrix = matrices[i]
            if is_dtensor(matrix):  # back to this process's part: a slice, no communication
                mesh = matrix.device_mesh
                whole = DTensor.from_local(result, mesh, everywhere(mesh), run_check=False)
                result = whole.redistribute(mesh, matrix.placements).to_local()
            results[i] = result
    for (among, dim), shards in sharded.items():
        for i, result in to_owners_and_back(shards, dim, function, among, traffic):
            results[i] = result
    return [r for r in results if r is not None]


def everywhere(mesh: DeviceMesh) -> list[Replicate]:
    """Placements of a replicated tensor."""
    from torch.distributed.tensor import Replicate

    return [Replicate()] * mesh.ndim


def rounded(matrix: Tensor) -> Tensor:
    """A copy in bfloat16."""
    return matrix.to(torch.bfloat16, copy=True)


def largest_first(items: Sequence[tuple[int, Tensor]], at_a_time: int) -> Iterator[list[tuple[int, Tensor]]]:
    """Group matrices of similar size, so that owners work equally long with little padding."""
    ordered = sorted(items, key=lambda item: (-item[1].numel(), item[0]))
    yield from (list(ordered[k : k + at_a_time]) for k in range(0, len(ordered), at_a_time))


def by_owners(
    items: Sequence[tuple[int, Tensor]], function: Orthogonalize, group: dist.ProcessGroup, traffic: Traffic
) -> Iterator[tuple[int, Tensor]]:
    """Replicated matrices: each process computes one of W; then all-gather."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    for batch in largest_first(items, world):
        longest = batch[0][1].numel()
        mine = batch[0][1].new_zeros(longest)
        if rank < len(batch):
            matrix = batch[rank][1]
            mine[: matrix.numel()] = function(matrix).flatten()
        everyone = mine.new_empty(world * longest)
        dist.all_gather_single(everyone, mine, group=group)
        traffic.add("all-gather", 2 * longest)
        for (i, matrix), result in zip(batch, everyone.split(longest), strict=False):
            yield i, result[: matrix.numel()].view(matrix.shape)


def to_owners_and_back(
    items: Sequence[tuple[int, DTensor]], dim: int, function: Orthogonalize, group: dist.ProcessGroup, traffic: Traffic
) -> Iterator[tuple[int, Tensor]]:
    """Matrices sharded along `dim`: each of W is gathered on one process, computed there, and scattered again."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    for batch in largest_first(items, world):
        locals_ = [rounded(matrix.to_local()) for _, matrix in batch]  # type: ignore[attr-defined]
        parts = [p.numel() for p in locals_] + [0] * (world - len(batch))
        whole = batch[rank][1].shape if rank < len(batch) else None
        sizes = [shard_size(whole[dim], world, r) for r in range(world)] if whole is not None else [0] * world
        pieces = [n * whole[1 - dim] for n in sizes] if whole is not None else [0] * world
        sent = torch.cat([p.flatten() for p in locals_])
        received = sent.new_empty(sum(pieces))
        dist.all_to_all_single(received, sent, pieces, parts, group=group)
        back = received
        if whole is not None:
            shapes = [(n, whole[1]) if dim == 0 else (whole[0], n) for n in sizes]
            matrix = torch.cat([p.view(s) for p, s in zip(received.split(pieces), shapes, strict=True)], dim)
            back = torch.cat([p.flatten() for p in function(matrix).split(sizes, dim)])
        result = torch.empty_like(sent)
        dist.all_to_all_single(result, back, parts, pieces, group=group)
        traffic.add("all-to-all", 2 * (sum(parts) - parts[rank] + sum(pieces) - pieces[rank]))
        for (i, _), p, like in zip(batch, result.split(parts[: len(batch)]), locals_, strict=True):
            yield i, p.view(like.shape)


def shard_size(length: int, world: int, rank: int) -> int:
    """Number of rows (or columns) of `length` on a process, as in `torch.chunk`: the last may have fewer, or none."""
    each = -(-length // world)
    return max(0, min(each, length - rank * each))
