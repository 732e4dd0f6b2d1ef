"""Context parallelism: each process has a slice of every sequence (Ulysses: Jacobs et al. 2023, arXiv:2309.14509).

Everything except attention works per position, so it works on slices. Around attention, an all-to-all turns "own positions,
all heads" into "all positions, own heads", and back. So any attention kernel and mask works, on any backend.
torch's own `context_parallel` needs attention kernels with sharding rules, which do not exist on CPUs.

Shapes: B batch, T time, C processes, H heads, K head size.
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
    """All-to-all: split along `split`, concatenate along `join`. The gradient is the reverse exchange."""

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
    """Raise `RecipeError` if heads or positions do not divide evenly."""
    if heads % (context * tensor):
        raise RecipeError(
            [
                Problem(
                    "parallel.context",
                    f"is {context}, and {context} x tensor {tensor} does not divide the model's {heads} heads. Set a divisor.",
                )
            ]
        )
    if seq_len % context:
        raise RecipeError([Problem("parallel.context", f"is {context}, which does not divide data.seq_len={seq_len}. Set a divisor.")])


def cut_positions(first_block: nn.Module, group: ProcessGroup) -> None:
    """Take this process's slice of hidden states BTD along T before the first block."""
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
    """Batch for process `rank` of `size`: all inputs, and the targets and weights of its own positions."""
    if size == 1:
        return batch
    from dataclasses import replace

    return replace(batch, targets=batch.targets.chunk(size, dim=1)[rank], weights=batch.weights.chunk(size, dim=1)[rank])
