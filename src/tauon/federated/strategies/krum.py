"""Krum and Multi-Krum: only updates with many close neighbours count (Blanchard et al. 2017, NeurIPS; El Mhamdi et al. 2018, arXiv:1802.07927)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from tauon.config import Count, register
from tauon.federated.strategies.base import StrategyConfig, refuse_few
from tauon.federated.updates import Update, weighted_sum

__all__ = ["Krum", "krum_scores"]


@register("krum")
class Krum(StrategyConfig):
    """The mean, by weight, of the `select` updates with the lowest sum of squared distances to their n - f - 2 nearest others."""

    single_updates = True

    malicious: Count = Field(1, ge=0)
    """Sites of a round that may be malicious (f). A round needs at least 2 f + 3."""
    select: Count = Field(1, ge=1)
    """Updates that are averaged: 1 is Krum, more Multi-Krum (at most n - f)."""

    def refuse(self, sites: int) -> None:
        refuse_few("krum", sites, 2 * self.malicious + 3, f"2 f + 3 for f = {self.malicious} malicious ones")
        refuse_few("krum", sites, self.select + self.malicious, f"{self.select} are selected, and {self.malicious} may be malicious")

    @torch.no_grad()
    def combine(self, updates: Sequence[Update]) -> dict[str, Tensor]:
        self.refuse(len(updates))
        scores = krum_scores(updates, self.malicious)
        chosen = [updates[i] for i in torch.argsort(scores, stable=True)[: self.select].tolist()]
        total = sum(u.weight for u in chosen)
        return weighted_sum([u.tensors for u in chosen], [u.weight / total for u in chosen])


def krum_scores(updates: Sequence[Update], malicious: int) -> Tensor:
    """Return for each update the sum of squared distances to its n - f - 2 nearest others, float64. A poisoned update of 1e30 overflows no sum."""
    rows = [torch.cat([t.flatten().double() for t in u.tensors.values()]) for u in updates]
    n = len(rows)
    squared_NN = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):  # of differences: |x|^2 + |y|^2 - 2 x.y would cancel beside a huge update
        for j in range(i):
            squared_NN[i, j] = squared_NN[j, i] = (rows[i] - rows[j]).square().sum()
    squared_NN.fill_diagonal_(torch.inf)
    return squared_NN.sort(dim=1).values[:, : max(1, n - malicious - 2)].sum(1)
