"""Gradient clipping by value, by layer, adaptive (by unit), and by norm; and the norm itself.

Gradients may be sharded (DTensor): norms of a layer or a unit are then over all shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tauon.distributed import DIMENSIONS, Mesh
from tauon.distributed.pieces import is_dtensor, local_part

__all__ = ["clip_adaptive", "clip_gradients", "clip_layers"]


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None, max_value: float | None, mesh: Mesh | None = None) -> Tensor:
    """Clamp elements to [-max_value, max_value], then scale all so that their joint L2 norm is at most max_norm.

    Returns the joint L2 norm before clipping by norm (after clamping): a scalar on the device. None: that clipping is off.
    Gradients may be sharded over the processes of `mesh`; the norm is over all shards.
    Norm clipping is g * min(1, C / ||g||), as `torch.nn.utils.clip_grad_norm_` does it.
    """
    whole = [p.grad for p in parameters if p.grad is not None]
    if not whole and (mesh is None or mesh.layout.pipeline == 1):
        return torch.zeros(())
    grads = [local_part(g) for g in whole]
    if max_value is not None:
        for g in grads:
            g.clamp_(-max_value, max_value)
    norm = _norm(grads) if mesh is None or mesh.replicas_only else _norm_over(mesh, whole, grads)
    if max_norm is not None:
        scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(grads, scale)
    return norm


def _norm(grads: list[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2.0, torch.float32)))
    return norm


def _norm_over(mesh: Mesh, whole: list[Tensor], parts: list[Tensor]) -> Tensor:
    """Norm of sharded gradients: each process adds its pieces, a piece on n processes counts 1/n each; one number is exchanged."""
    device = parts[0].device if parts else torch.device(mesh.device_type)
    square = torch.zeros((), device=device)
    stage = mesh.layout.world // mesh.layout.pipeline
    for g, part in zip(whole, parts, strict=True):
        pieces = 1
        if is_dtensor(g):
            from torch.distributed.tensor import Replicate

            cut = [n for n, how in zip(g.device_mesh.shape, g.placements, strict=True) if not isinstance(how, Replicate)]
            pieces = math.prod(cut)
        square += torch.linalg.vector_norm(part, dtype=torch.float32).square() * (pieces / stage)
    return mesh.sum(square, *DIMENSIONS).sqrt()


def clip_layers(parameters: Iterable[nn.Parameter], most: float) -> None:
    """Scale each parameter's gradient separately, so that its L2 norm is at most `most`: g * min(1, most / ||g||)."""
    for p in parameters:
        if p.grad is not None:
            norm = torch.linalg.vector_norm(p.grad, dtype=torch.float32)
            p.grad.mul_((most / (norm + 1e-6)).clamp(max=1.0))


def clip_adaptive(named: Iterable[tuple[str, nn.Parameter]], share: float, least: float = 1e-3) -> None:
    """Adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171, equation 3): the gradient of each unit, a row of a matrix or an
    output channel of a convolution, is scaled down to `share` of the norm of the unit's weights, or of `least` if that is larger.

    A bias or a norm's gain is one unit. The output layer (`head.`) is not clipped, as in the paper.
    """
    for name, p in named:
        if p.grad is None or name.startswith("head."):
            continue
        dims = tuple(range(1, p.ndim)) or None
        size = torch.linalg.vector_norm(p.detach(), dim=dims, keepdim=p.ndim > 1, dtype=torch.float32).clamp(min=least)
        norm = torch.linalg.vector_norm(p.grad, dim=dims, keepdim=p.ndim > 1, dtype=torch.float32)
        p.grad.mul_((share * size / norm.clamp(min=1e-6)).clamp(max=1.0))
