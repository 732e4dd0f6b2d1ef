"""Gradient clipping by value and by norm, and the norm itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["clip_gradients"]


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None, max_value: float | None) -> Tensor:
    """Clamp elements to [-max_value, max_value], then scale all so that their joint L2 norm is at most max_norm.

    Returns the joint L2 norm before clipping by norm (after clamping): a scalar on the device. None: that clipping is off.
    Norm clipping is g * min(1, C / ||g||), as `torch.nn.utils.clip_grad_norm_` does it.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    if max_value is not None:
        for g in grads:
            g.clamp_(-max_value, max_value)
    norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in grads]))
    if max_norm is not None:
        scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(grads, scale)
    return norm
