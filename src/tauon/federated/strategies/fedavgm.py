"""FedAvgM: the server applies momentum to the mean of the updates (Hsu, Qi & Brown 2019, arXiv:1909.06335)."""

from __future__ import annotations

from pydantic import Field
from torch import nn
from torch.optim import SGD, Optimizer

from tauon.config import register
from tauon.federated.strategies.base import StrategyConfig

__all__ = ["FedAvgM"]


@register("fedavgm")
class FedAvgM(StrategyConfig):
    """v <- momentum v + mean update, x <- x + server_lr v: steadier where sites have different data."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """Decay of the running sum of updates."""
    nesterov: bool = False
    """Look ahead along the momentum, as DiLoCo does."""

    def optimizer(self, model: nn.Module) -> Optimizer:
        nesterov = self.nesterov and self.momentum > 0
        return SGD(self.groups(model), lr=self.server_lr, momentum=self.momentum, nesterov=nesterov)
