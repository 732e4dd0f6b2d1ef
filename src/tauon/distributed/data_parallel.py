"""Data parallelism: replicas (DDP), shards (FSDP2), and replicas of shards (hybrid); torch's own, applied by the mesh.

Only replicas of the complete model -> DDP, whose buckets overlap with backward. Shards -> FSDP2, per block. Replicas with tensor or
pipeline parallelism -> FSDP2 without sharding, which supports DTensors and several microbatches in flight. All of them average over
replicate x shard x context.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tauon.distributed.mesh import Mesh

__all__ = ["apply_data", "reshard", "synchronising"]


def apply_data(
    model: nn.Module, mesh: Mesh, *, blocks: list[nn.Module], reshard_after_forward: bool = True, gather_dtype: torch.dtype | None = None
) -> None:
    """Wrap the model in place; its class becomes a subclass, parameter names do not change.

    `gather_dtype`: dtype in which the shards of blocks are gathered (None: their own). Under bf16 autocast, gathering in bf16 sends half
    as much and saves the cast, with the same rounding of matrices. Gradients are summed in fp32 in any case. Parameters outside the
    blocks (embedding, last norm, head) are gathered in their own dtype, so that the residual stream stays in fp32.
    """
    layout = mesh.layout
    if mesh.reduce_size == 1:
        return
    if layout.shard > 1:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        inner = mesh.along("shard", "context")
        assert inner is not None
        where = inner if layout.replicate == 1 else mesh.hybrid()
        sums = torch.float32 if gather_dtype is not None else None
        policy = MixedPrecisionPolicy(param_dtype=gather_dtype, reduce_dtype=sums, cast_forward_inputs=False)
        for block in blocks:
            fully_shard(block, mesh=where, reshard_after_forward=reshard_after_forward, mp_policy=policy)
        fully_shard(model, mesh=where)
    elif layout.tensor == 1 and layout.pipeline == 1:
        from torch.distributed._composable.replicate import replicate

        whole = all(p.requires_grad for p in model.parameters())  # a frozen base is read by every process, and may be memory-mapped
        replicate(
            model, process_group=mesh.group("replicate", "context"), gradient_as_bucket_view=True, forward_sync_buffers=False, init_sync=whole
        )  # fmt: skip
    else:
        from torch.distributed._composable.replicate_with_fsdp import replicate as replicate_dtensors

        group = mesh.along("replicate", "context")
        assert group is not None
        for block in blocks:
            replicate_dtensors(block, mesh=group)
        replicate_dtensors(model, mesh=group)


def _sharded(model: nn.Module) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported: not applied
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


@contextmanager
def synchronising(model: nn.Module, now: bool) -> Iterator[None]:
    """Context in which backward passes reduce gradients over processes only if `now`: for the last of several microbatches."""
    change: Any = getattr(model, "set_requires_gradient_sync", None)
    if change is None or now:
        yield
        return
    change(False)
    try:
        yield
    finally:
        change(True)


def reshard(model: nn.Module) -> None:
    """Free gathered weights: after a forward pass without backward, the root keeps them, and they would become stale."""
    if _sharded(model):
        for module in model.modules():
            if _sharded(module):
                module.reshard()  # type: ignore[operator]
