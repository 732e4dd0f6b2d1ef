"""DP-AdamBC: Adam for noised gradients (Tang, Shpilevskiy & Lecuyer 2023, arXiv:2312.14334, algorithm 1).

Noise of variance s^2 in each element of the gradient adds s^2 to the mean of squares that Adam divides by, so that private Adam is nearly SGD with momentum.
The variance is known, and is subtracted. If nothing is left (the gradient is below the noise), a floor keeps the step finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from tauon.config import register
from tauon.optim.base import Decay, OptimConfig, decay_groups

__all__ = ["AdamBC", "AdamBCConfig"]


@register("adamw-bc")
class AdamBCConfig(OptimConfig):
    """AdamW for private training: subtracts the noise variance from the mean of squares; `weight_decay` is decoupled."""

    elementwise = True
    for_noise = True

    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the running mean and of the running mean of squares."""
    floor: float = Field(1e-8, gt=0)
    """Minimum of the mean of squares after subtracting the noise variance: gamma' of the paper. Small values are fast but unstable."""

    def build(self, model: nn.Module) -> Optimizer:
        groups = decay_groups(model.named_parameters(), self.peak, self.weight_decay)
        return AdamBC(groups, lr=self.peak, betas=self.betas, floor=self.floor)


class AdamBC(Optimizer):
    """m, v: running means of g and g^2, each over its share (1 - b^t); w <- (1 - lr decay) w - lr m / sqrt(max(v - s^2, floor)).

    s, the standard deviation of the noise in each element, is the group's `noise`, which the code that adds noise sets before the step. If it
    changes, the running mean of its squares is subtracted, as in v.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), floor: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "floor": floor, "weight_decay": weight_decay, "noise": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (b1, b2), lr = group["betas"], float(group["lr"])
            for p in group["params"]:
                if p.grad is None:
                    continue
                held = self.state[p]
                if not held:
                    held |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p), "steps": 0, "noise_sq": 0.0}
                held["steps"] += 1
                held["noise_sq"] = b2 * held["noise_sq"] + (1 - b2) * group["noise"] ** 2
                mean: Tensor = held["exp_avg"].lerp_(p.grad, 1 - b1)
                square: Tensor = held["exp_avg_sq"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                share_1, share_2 = 1 - b1 ** held["steps"], 1 - b2 ** held["steps"]
                below = (square / share_2).sub_(held["noise_sq"] / share_2).clamp_(min=group["floor"]).sqrt_()
                p.mul_(1 - lr * group["weight_decay"]).addcdiv_(mean, below, value=-lr / share_1)
        return loss
