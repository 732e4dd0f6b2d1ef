"""Signum: step by the sign of the momentum (Bernstein et al. 2018, arXiv:1802.04434). Elementwise, one buffer a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from tauon.config import register
from tauon.optim import OptimConfig, decay_groups

__all__ = ["Signum", "SignumConfig"]


@register("signum")
class SignumConfig(OptimConfig):
    """Sign of the momentum; `weight_decay` is decoupled."""

    default_lr = 0.01

    momentum: float = Field(0.9, ge=0, lt=1)
    """Decay of the running mean of gradients."""

    def build(self, model: nn.Module) -> Optimizer:
        return Signum(decay_groups(model.named_parameters(), self.peak, self.weight_decay), self.momentum)


class Signum(Optimizer):
    """m <- b m + (1 - b) g; w <- (1 - lr * decay) w - lr * sign(m)."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * mean.sign())
        return loss
