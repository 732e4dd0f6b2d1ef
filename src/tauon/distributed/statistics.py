"""Batch statistics over processes: each channel's mean and variance over the rows of several processes.

With them, batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167) on a mesh gives the same result as on one process, every rank has the
same running statistics, and evaluation is the same on all. Two all-reduces of 2 C numbers per layer and step. torch's SyncBatchNorm
does the same on GPUs only. Layers are found by the attribute `statistics_group`, None for a single process.

Shapes: B batch, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from tauon.distributed.mesh import Mesh
from tauon.errors import Problem, RecipeError

__all__ = ["batch_norm_over", "needs_batch_statistics", "refuse_running_statistics", "share_statistics"]


def needs_batch_statistics(model: nn.Module) -> list[str]:
    """Names of the layers with batch statistics and running statistics."""
    return [name for name, m in model.named_modules() if getattr(m, "track_running_stats", False)]


def refuse_running_statistics(model: nn.Module, kind: str) -> None:
    """Raise `RecipeError` if replicas with local steps would have different running statistics."""
    names = needs_batch_statistics(model)
    if names:
        raise RecipeError(
            [
                Problem(
                    "parallel.kind",
                    f"{kind} does not support running statistics, but the model has them ({names[0]}, {len(names)} in total). "
                    "Use GroupNorm or LayerNorm (model.norm=group), or another parallel.kind.",
                )
            ]
        )


def share_statistics(model: nn.Module, mesh: Mesh) -> None:
    """Set the process group of every layer with batch statistics. In place, before data parallelism."""
    layers = [m for m in model.modules() if hasattr(m, "statistics_group")]
    if layers and mesh.layout.data > 1:
        group: Any = mesh.group("replicate", "shard")
        for layer in layers:
            layer.statistics_group = group


class _OverProcesses(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, mean and var over rows and positions of all processes; (y, mean, var, count)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float, group: ProcessGroup) -> Any:  # type: ignore[override]
        other = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        wide = x.float()
        here = x.numel() // x.shape[1]
        count = torch.tensor([float(here)], device=x.device)
        dist.all_reduce(count, group=group)
        mean_C = wide.sum(other)
        dist.all_reduce(mean_C, group=group)
        mean_C = mean_C / count
        centred = wide - mean_C.view(shape)
        var_C = centred.square().sum(other)  # of centered values: sum of squares minus square of sum would cancel
        dist.all_reduce(var_C, group=group)
        var_C = var_C / count
        scale_C = (var_C + eps).rsqrt()
        normal = centred * scale_C.view(shape)
        ctx.save_for_backward(normal, weight_C, scale_C, count)
        ctx.group, ctx.dtype = group, x.dtype
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return (normal * weight_C.view(shape) + bias_C.view(shape)).to(x.dtype), mean_C, var_C, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:  # type: ignore[override]
        normal, weight_C, scale_C, count = ctx.saved_tensors
        other = [d for d in range(grad.ndim) if d != 1]
        shape = [1, -1] + [1] * (grad.ndim - 2)
        g = grad.float()
        sums = torch.stack([g.sum(other), (g * normal).sum(other)])
        bias_C, own_weight_C = sums[0].clone(), sums[1].clone()  # this process's share; data parallelism adds the others
        dist.all_reduce(sums, group=ctx.group)
        mean_g, mean_gn = (sums / count).unbind(0)
        dx = (g - mean_g.view(shape) - normal * mean_gn.view(shape)) * (weight_C * scale_C).view(shape)
        return dx.to(ctx.dtype), own_weight_C, bias_C, None, None


def batch_norm_over(
    group: ProcessGroup, x: Tensor, weight_C: Tensor, bias_C: Tensor, running_mean_C: Tensor, running_var_C: Tensor, momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """Batch norm of BC... in training, with the statistics of all processes of `group`. Updates the running statistics with `momentum` and
    the unbiased variance, as torch does. Collective, forward and backward.
    """
    y, mean_C, var_C, count = _OverProcesses.apply(x, weight_C, bias_C, eps, group)
    with torch.no_grad():
        running_mean_C.lerp_(mean_C, momentum)
        running_var_C.lerp_(var_C * (count / (count - 1).clamp(min=1)), momentum)
    out: Tensor = y
    return out
