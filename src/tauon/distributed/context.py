"""Context parallelism: each process holds a slice of every sequence (Ulysses: Jacobs et al. 2023, arXiv:2309.14509).

Everything but attention works position by position, so it works on slices. Around attention, an all-to-all turns "my positions,
all heads" into "all positions, my heads", and back. Any attention kernel and any mask then work unchanged, on any backend.
torch's own `context_parallel` needs attention kernels with sharding rules, which a CPU has not.

Shapes: B batch, T time, C processes, H heads, K head size. Knows no model by name.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from tauon.errors import Problem, RecipeError
from tauon.types import Batch

__all__ = ["cut_positions", "exchange_heads", "refuse_odd_heads", "shard_targets"]


class _AllToAll(torch.autograd.Function):
    """Cut along `split`, exchange, join along `join`. Its gradient is the exchange the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup, split: int, join: int) -> Tensor:  # type: ignore[override]
        ctx.group, ctx.split, ctx.join = group, split, join
        parts = torch.stack(x.chunk(dist.get_world_size(group), dim=split))  # C ..., contiguous
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group)
        return torch.cat(received.unbind(0), dim=join)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return _AllToAll.apply(grads[0].contiguous(), ctx.group, ctx.join, ctx.split), None, None, None


def refuse_odd_heads(heads: int, seq_len: int, context: int, tensor: int) -> None:
    """`RecipeError` where heads or positions cannot be shared evenly."""
    if heads % (context * tensor):
        raise RecipeError(
            [Problem("parallel.context", f"{context} x tensor {tensor} does not divide the model's {heads} heads. Take a divisor.")]
        )
    if seq_len % context:
        raise RecipeError([Problem("parallel.context", f"{context} does not divide data.seq_len={seq_len}. Take a divisor.")])


def cut_positions(first_block: nn.Module, group: ProcessGroup) -> None:
    """Before the first block, keep this process's slice of hidden states BTD along T."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)

    def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].chunk(size, dim=1)[rank], *args[1:])

    first_block.register_forward_pre_hook(enter)


def exchange_heads(attentions: list[nn.Module], group: ProcessGroup) -> None:
    """Wrap each attention's core (`attend`), in place."""
    for attention in attentions:
        attention.attend = _exchanged(attention.attend, group, dist.get_world_size(group))  # type: ignore[assignment]


def _exchanged(attend: Any, group: ProcessGroup, size: int) -> Any:
    def run(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, *rest: Any) -> Tensor:
        if k_BTGK.shape[2] % size:  # fewer key-value heads than processes: repeated as attention would
            repeats = q_BTHK.shape[2] // k_BTGK.shape[2]
            k_BTGK, v_BTGK = k_BTGK.repeat_interleave(repeats, dim=2), v_BTGK.repeat_interleave(repeats, dim=2)
        q, k, v = (_AllToAll.apply(x, group, 2, 1) for x in (q_BTHK, k_BTGK, v_BTGK))
        y_BTHK = attend(q, k, v, *rest)
        out: Tensor = _AllToAll.apply(y_BTHK, group, 1, 2)
        return out

    return run


def shard_targets(batch: Batch, rank: int, size: int) -> Batch:
    """The batch as process `rank` of `size` scores it: all inputs, and the targets and weights of its own positions."""
    if size == 1:
        return batch
    from dataclasses import replace

    return replace(batch, targets=batch.targets.chunk(size, dim=1)[rank], weights=batch.weights.chunk(size, dim=1)[rank])
