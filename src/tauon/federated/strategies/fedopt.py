"""FedAdam and FedYogi: the mean update is the gradient of an adaptive optimizer at the server (Reddi et al. 2021, arXiv:2003.00295, algorithm 2).

The defaults are Flower's: second moments start at 0, and FedAdam's rate is corrected for that in the first rounds. With `correct_bias: false`
and `start: tau^2`, they are the paper's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from tauon.config import register
from tauon.federated.strategies.base import StrategyConfig
from tauon.optim.base import Decay

__all__ = ["AdaptiveServer", "FedAdam", "FedYogi"]


class FedOptConfig(StrategyConfig):
    """Settings that FedAdam and FedYogi share."""

    server_lr: float = Field(0.1, gt=0)
    """Learning rate of the server: about how far a weight moves in a round."""
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Decay of the first and second moment."""
    tau: float = Field(1e-3, gt=0)
    """Adaptivity, added to the root of the second moment."""
    start: float = Field(0.0, ge=0)
    """Second moment before the first round; the paper takes tau^2."""


@register("fedadam")
class FedAdam(FedOptConfig):
    """m <- b1 m + (1 - b1) d, v <- b2 v + (1 - b2) d^2, x <- x + server_lr m / (sqrt(v) + tau); d is the mean update."""

    correct_bias: bool = True
    """Scale the rate by sqrt(1 - b2^(t+1)) / (1 - b1^(t+1)) in round t, as Flower does; the paper does not."""

    def optimizer(self, model: nn.Module) -> Optimizer:
        return AdaptiveServer(self.groups(model), self.betas, self.tau, self.start, correct_bias=self.correct_bias)


@register("fedyogi")
class FedYogi(FedOptConfig):
    """As FedAdam, but v <- v - (1 - b2) d^2 sign(v - d^2): second moments change slowly when updates suddenly become small."""

    server_lr: float = Field(0.01, gt=0)

    def optimizer(self, model: nn.Module) -> Optimizer:
        return AdaptiveServer(self.groups(model), self.betas, self.tau, self.start, yogi=True)


class AdaptiveServer(Optimizer):
    """Adam or Yogi as the server of a federated run. A gradient is minus the mean update."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        betas: tuple[float, float],
        tau: float,
        start: float,
        *,
        yogi: bool = False,
        correct_bias: bool = False,
    ) -> None:
        self.betas, self.tau, self.start, self.yogi, self.correct_bias = betas, tau, start, yogi, correct_bias
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        b1, b2 = self.betas
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                held: dict[str, Tensor] = self.state[p]
                if not held:
                    held |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.full_like(p, self.start)}
                t = float(held["step"].add_(1))
                m = held["exp_avg"].mul_(b1).add_(p.grad, alpha=1 - b1)
                v, square = held["exp_avg_sq"], p.grad.square()
                if self.yogi:
                    v.addcmul_(square, torch.sign(v - square), value=-(1 - b2))
                else:
                    v.mul_(b2).add_(square, alpha=1 - b2)
                rate = group["lr"] * (math.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1)) if self.correct_bias else 1.0)
                p.addcdiv_(m, v.sqrt().add_(self.tau), value=-rate)
