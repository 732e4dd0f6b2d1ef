"""FedProx: local training is pulled towards the weights that were sent (Li et al. 2020, arXiv:1812.06127)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tauon.config import register
from tauon.federated.strategies.base import StrategyConfig

__all__ = ["FedProx"]


@register("fedprox")
class FedProx(StrategyConfig):
    """Sites minimise loss + mu / 2 ||x - x_sent||^2; their updates are averaged as in FedAvg."""

    mu: float = Field(0.01, ge=0)
    """Weight of the proximal term; 0 is FedAvg. The paper tries 0.001, 0.01, 0.1 and 1."""

    def order(self) -> dict[str, Any]:
        return {"proximal": self.mu}
