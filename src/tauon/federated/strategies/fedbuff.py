"""FedBuff: the server takes a step whenever a buffer of updates is full, and waits for none (Nguyen et al. 2022, arXiv:2106.06639, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from tauon.config import Count, register
from tauon.federated.strategies.base import StrategyConfig
from tauon.federated.updates import Update, weighted_sum

__all__ = ["FedBuff"]


@register("fedbuff")
class FedBuff(StrategyConfig):
    """Asynchronous: `concurrency` sites train at any time, each from the weights of its start; of every `buffer` updates that arrive, the mean is
    applied, each times 1 / (1 + staleness)^power. Slow sites do not hold up the others.
    """

    single_updates = True
    asynchronous = True

    buffer: Count = Field(10, ge=1)
    """Updates in one step of the server (K)."""
    concurrency: Count = Field(20, ge=1)
    """Sites that train at the same time."""
    power: float = Field(0.5, ge=0)
    """How much older updates count less. Staleness: steps of the server since the update's start."""
    max_staleness: Count = Field(100, ge=0)
    """Older updates are refused."""

    def scale(self, staleness: int) -> float:
        """Return the factor of an update."""
        return float((1 + staleness) ** -self.power)

    @torch.no_grad()
    def combine(self, updates: Sequence[Update]) -> dict[str, Tensor]:
        """`Update.weight` is the factor of its staleness."""
        return weighted_sum([u.tensors for u in updates], [u.weight / len(updates) for u in updates])
