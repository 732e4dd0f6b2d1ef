"""q-FedAvg: sites with a higher loss count more, so that the model serves them more alike (Li et al. 2020, arXiv:1905.10497, algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from tauon.config import register
from tauon.federated.strategies.base import StrategyConfig
from tauon.federated.updates import Update, norm_of, weighted_sum

__all__ = ["QFedAvg"]


@register("qfedavg")
class QFedAvg(StrategyConfig):
    """Minimises sum_k F_k^(q+1) / (q + 1). With d_k = L (x - x_k): x <- x - sum F_k^q d_k / sum (q F_k^(q-1) ||d_k||^2 + L F_k^q)."""

    single_updates = True
    weighted = False
    reads_first_loss = True

    q: float = Field(0.2, ge=0)
    """Fairness: 0 is the mean of all sites alike; the paper tries 0.001 to 5."""
    client_lr: float = Field(0.1, gt=0)
    """Learning rate of the sites: its inverse estimates L, the Lipschitz constant of the gradient."""

    @torch.no_grad()
    def combine(self, updates: Sequence[Update]) -> dict[str, Tensor]:
        lipschitz, largest = 1 / self.client_lr, max(u.first_loss for u in updates) + 1e-10
        scales, below = [], 0.0
        for u in updates:  # above and below divided by the largest F^q, so that no loss overflows
            loss = u.first_loss + 1e-10
            power = (loss / largest) ** self.q
            scales.append(power * lipschitz)
            below += self.q * power / loss * (lipschitz * norm_of(u.tensors)) ** 2 + lipschitz * power
        return weighted_sum([u.tensors for u in updates], [s / below for s in scales])
