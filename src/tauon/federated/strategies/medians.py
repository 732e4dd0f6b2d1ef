"""Coordinate-wise median and trimmed mean: a few updates of any size cannot move them far (Yin et al. 2018, arXiv:1803.01498)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import torch
from pydantic import Field
from torch import Tensor

from tauon.config import register
from tauon.federated.strategies.base import StrategyConfig, refuse_few
from tauon.federated.updates import Update

__all__ = ["CoordinateMedian", "TrimmedMean"]


@register("median")
class CoordinateMedian(StrategyConfig):
    """The median over sites of each weight's update, every site alike: withstands fewer than half. Of an even number, the mean of the two middle ones."""

    single_updates = True
    weighted = False

    def refuse(self, sites: int) -> None:
        refuse_few("median", sites, 3, "fewer have no middle")

    @torch.no_grad()
    def combine(self, updates: Sequence[Update]) -> dict[str, Tensor]:
        n = len(updates)

        def middle(sorted_N: Tensor) -> Tensor:
            return (sorted_N[(n - 1) // 2] + sorted_N[n // 2]) / 2

        return _by_coordinate(updates, middle)


@register("trimmed-mean")
class TrimmedMean(StrategyConfig):
    """The mean over sites of each weight's update, without the largest and smallest, every site alike."""

    single_updates = True
    weighted = False

    trim: float = Field(0.2, ge=0, lt=0.5)
    """Share of the sites dropped at each end: withstands that share of malicious ones. Rounded down to whole sites."""

    def refuse(self, sites: int) -> None:
        least = 1 if self.trim == 0 else max(3, next(n for n in count(int(1 / self.trim)) if int(self.trim * n) >= 1))
        refuse_few("trimmed-mean", sites, least, f"of fewer, {self.trim:.0%} is no site" if self.trim else "it is a mean")

    @torch.no_grad()
    def combine(self, updates: Sequence[Update]) -> dict[str, Tensor]:
        cut = int(self.trim * len(updates))
        return _by_coordinate(updates, lambda sorted_N: sorted_N[cut : len(updates) - cut].mean(0))


def _by_coordinate(updates: Sequence[Update], reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    names = updates[0].tensors
    return {n: reduce(torch.stack([u.tensors[n].float() for u in updates]).sort(dim=0).values) for n in names}
