"""FedAvg: the weights become the mean of the sites' weights, by examples (McMahan et al. 2017, arXiv:1602.05629)."""

from __future__ import annotations

from tauon.config import register
from tauon.federated.strategies.base import StrategyConfig

__all__ = ["FedAvg"]


@register("fedavg")
class FedAvg(StrategyConfig):
    """x <- x + server_lr sum_k (n_k / n) (x_k - x)."""
