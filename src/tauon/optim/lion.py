"""Lion: the sign of a mixture of momentum and gradient (Chen et al. 2023, arXiv:2302.06675, algorithm 2). One state tensor, not two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from tauon.config import register
from tauon.distributed import local_part
from tauon.optim.base import Decay, OptimConfig, decay_groups
from tauon.optim.skip import put_unless

__all__ = ["Lion", "LionConfig"]


@register("lion")
class LionConfig(OptimConfig):
    """Lion; `weight_decay` is decoupled. Its rate is 3 to 10 times lower than AdamW's, and its decay is higher by the same factor."""

    default_lr = 1e-4
    elementwise = True

    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Share of the momentum in the step, and decay of the momentum."""
    clip_norm: float | None = Field(1.0, gt=0)

    def build(self, model: nn.Module) -> Optimizer:
        return Lion(decay_groups(model.named_parameters(), self.peak, self.weight_decay), lr=self.peak, betas=self.betas)


class Lion(Optimizer):
    """c = b1 m + (1 - b1) g;  w <- (1 - lr decay) w - lr sign(c);  m <- b2 m + (1 - b2) g."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    skips_on_device = True
    found_inf: Tensor | None = None
    """1 on the device if the step must do nothing (`optim.skip`)."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not trained:
                continue
            for p in trained:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            lr, (b1, b2) = float(group["lr"]), group["betas"]
            grads: list[Tensor] = [p.grad for p in trained if p.grad is not None]
            momenta = [self.state[p]["exp_avg"] for p in trained]
            steps = torch._foreach_lerp(momenta, grads, 1 - b1)
            torch._foreach_sign_(steps)
            if self.found_inf is not None:
                for p, m, g, step in zip(trained, momenta, grads, steps, strict=True):
                    moved = p * (1 - lr * group["weight_decay"])
                    put_unless(self.found_inf, local_part(p), local_part(moved.add_(step, alpha=-lr)))
                    put_unless(self.found_inf, local_part(m), local_part(m.lerp(g, 1 - b2)))
                continue
            torch._foreach_mul_(trained, 1 - lr * group["weight_decay"])
            torch._foreach_add_(trained, steps, alpha=-lr)
            torch._foreach_lerp_(momenta, grads, 1 - b2)
        return loss
