"""Deals the examples of one data set to simulated clients: evenly, by class, by number of examples, by a feature.

Shapes: N examples, K clients, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Count, Registered, register
from tauon.errors import DataError

__all__ = ["ByFeature", "ByLabel", "ByQuantity", "ClientSplit", "Dirichlet", "Even"]

Rows = NDArray[np.int64]


class ClientSplit(Registered, family="client_split", default="even"):
    """How examples are dealt to clients. Every example goes to one client, and every client gets at least one example."""

    def split(self, clients: int, *, labels: NDArray[np.int64], features: NDArray[np.float64] | None = None, seed: int) -> list[Rows]:
        """Return the row numbers of each client, sorted.

        Args:
            clients: K.
            labels: class of each example (N). For splits that do not read it, only its length counts.
            features: a number for each example (N), for a split by feature: its brightness, the value of a column.
            seed: of all draws.

        Raises:
            DataError: fewer examples than clients, or data that the split does not fit.

        >>> [len(rows) for rows in Even().split(3, labels=np.zeros(10, np.int64), seed=0)]
        [4, 3, 3]
        """
        if clients < 1 or len(labels) < clients:
            raise DataError(f"{len(labels)} examples cannot be dealt to {clients} clients: each needs at least one")
        rng = np.random.Generator(np.random.Philox(seed))
        parts = self.deal(clients, labels, features, rng)
        return [np.sort(part).astype(np.int64) for part in _fill_empty(parts, rng)]

    def deal(self, clients: int, labels: NDArray[np.int64], features: NDArray[np.float64] | None, rng: np.random.Generator) -> list[Rows]:
        """Return the rows of each client in any order; some may be empty."""
        raise NotImplementedError


@register("even")
class Even(ClientSplit):
    """Equal numbers at random: independent and identically distributed (IID)."""

    def deal(self, clients: int, labels: NDArray[np.int64], features: NDArray[np.float64] | None, rng: np.random.Generator) -> list[Rows]:
        return list(np.array_split(rng.permutation(len(labels)), clients))


@register("dirichlet")
class Dirichlet(ClientSplit):
    """Each class is dealt by shares from Dirichlet(alpha) (Yurochkin et al. 2019, arXiv:1905.12022; Hsu et al. 2019, arXiv:1909.06335)."""

    alpha: float = Field(0.5, gt=0)
    """Concentration: 0.1 gives clients of one or two classes, 100 nearly even ones."""

    def deal(self, clients: int, labels: NDArray[np.int64], features: NDArray[np.float64] | None, rng: np.random.Generator) -> list[Rows]:
        parts: list[list[Rows]] = [[] for _ in range(clients)]
        for c in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == c))
            cuts = np.round(np.cumsum(rng.dirichlet(np.full(clients, self.alpha)))[:-1] * len(rows)).astype(int)
            for part, piece in zip(parts, np.split(rows, cuts), strict=True):
                part.append(piece)
        return [np.concatenate(part) for part in parts]


@register("by-label")
class ByLabel(ClientSplit):
    """Examples sorted by class, cut into shards; each client gets some (McMahan et al. 2017, section 3: two shards, so about two digits)."""

    shards: Count = Field(2, ge=1)
    """Shards of a client."""

    def deal(self, clients: int, labels: NDArray[np.int64], features: NDArray[np.float64] | None, rng: np.random.Generator) -> list[Rows]:
        order = np.lexsort((rng.permutation(len(labels)), labels))
        pieces = np.array_split(order, clients * self.shards)
        dealt = rng.permutation(len(pieces)).reshape(clients, self.shards)
        return [np.concatenate([pieces[i] for i in mine]) for mine in dealt]


@register("by-quantity")
class ByQuantity(ClientSplit):
    """Random examples in unequal numbers: shares in proportion to 1 / rank^power (Zipf), or as they are given."""

    power: float = Field(1.0, ge=0)
    """0 is even; with 1, the second largest client has half as many examples as the largest."""
    shares: tuple[float, ...] | None = None
    """Share of each client instead, in proportion: [5, 3, 1]."""

    def deal(self, clients: int, labels: NDArray[np.int64], features: NDArray[np.float64] | None, rng: np.random.Generator) -> list[Rows]:
        shares = np.arange(1, clients + 1, dtype=float) ** -self.power if self.shares is None else np.asarray(self.shares, float)
        if len(shares) != clients or not (shares > 0).all() or not math.isfinite(shares.sum()):
            raise DataError(f"shares are {shares.tolist()}: expected {clients} numbers above 0, one for each client")
        cuts = np.round(np.cumsum(shares / shares.sum())[:-1] * len(labels)).astype(int)
        return list(np.split(rng.permutation(len(labels)), cuts))


@register("by-feature")
class ByFeature(ClientSplit):
    """Examples sorted by a feature, with noise: clients with dark pictures and with bright ones, young patients and old ones."""

    mixing: float = Field(0.1, ge=0)
    """Noise on the ranks, as a share of all examples; 0 sorts strictly."""

    def deal(self, clients: int, labels: NDArray[np.int64], features: NDArray[np.float64] | None, rng: np.random.Generator) -> list[Rows]:
        if features is None or len(features) != len(labels) or not np.isfinite(features).all():
            raise DataError("a split by feature needs a finite number for each example")
        ranks = np.argsort(np.lexsort((rng.permutation(len(features)), features)))
        return list(np.array_split(np.argsort(ranks + rng.normal(0, max(1e-9, self.mixing * len(features)), len(features))), clients))


def _fill_empty(parts: Sequence[Rows], rng: np.random.Generator) -> list[Rows]:
    """Move one example of the largest client to each client without any."""
    filled = [np.asarray(part) for part in parts]
    for i, part in enumerate(filled):
        if len(part) == 0:
            largest = int(np.argmax([len(p) for p in filled]))
            at = int(rng.integers(len(filled[largest])))
            filled[i], filled[largest] = filled[largest][at : at + 1], np.delete(filled[largest], at)
    return filled
