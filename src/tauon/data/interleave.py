"""Which of several sources each example comes from, in exact proportion: after any number n of examples, source i has had n p_i of them,
give or take less than one.

Sample j of source i (j = 1, 2, ...) may not come before n p_i > j - 1 and must have come when n p_i = j. The earliest deadline goes first;
that such a sequence exists for any proportions is shown by Tijdeman (1980, "The chairman assignment problem", Discrete Mathematics 32).
The sequence repeats after the common denominator of the proportions, so any position is found at once in a small table. Independent of data.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONGEST", "Interleaving", "interleave", "whole_numbers"]

LONGEST = 1 << 16
"""Longest period: proportions with a larger common denominator are rounded to multiples of 1 / 65,536."""


@dataclass(frozen=True)
class Interleaving:
    """One period of the sequence."""

    counts: NDArray[np.int64]
    """(S) samples of each source in a period."""
    source: NDArray[np.int64]
    """(P) source at each place."""
    rank: NDArray[np.int64]
    """(P) samples of the same source before it in the period."""

    def at(self, position: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (source, number of its samples before) of each position."""
        turn, place = np.divmod(position, len(self.source))
        source = self.source[place]
        return source, turn * self.counts[source] + self.rank[place]

    def before(self, position: int) -> NDArray[np.int64]:
        """Return (S) how many samples of each source come before a position."""
        turn, place = divmod(position, len(self.source))
        found: NDArray[np.int64] = turn * self.counts + np.bincount(self.source[:place], minlength=len(self.counts))
        return found

    def after(self, source: int, samples: int) -> int:
        """Return the first position before which there are `samples` (at least 1) samples of a source."""
        turn, rank = divmod(samples - 1, int(self.counts[source]))
        return turn * len(self.source) + int(np.flatnonzero(self.source == source)[rank]) + 1


def whole_numbers(weights: Sequence[float]) -> list[int]:
    """Return whole numbers in proportion to weights (at least one above 0); rounded if their sum would be above `LONGEST`. A weight above 0
    stays above 0.

    >>> whole_numbers([0.5, 1.5, 2]), whole_numbers([7, 0, 7])
    ([1, 3, 4], [1, 0, 1])
    """
    exact = [Fraction(repr(float(w))) for w in weights]
    scale = math.lcm(*(f.denominator for f in exact))
    whole = [int(f * scale) for f in exact]
    common = math.gcd(*whole)
    whole = [w // common for w in whole]
    total = sum(whole)
    if total <= LONGEST:
        return whole
    share = [w * LONGEST / total for w in whole]
    rounded = [max(int(s), int(w > 0)) for s, w in zip(share, whole, strict=True)]
    for i in sorted(range(len(share)), key=lambda i: rounded[i] - share[i]):
        if sum(rounded) < LONGEST:
            rounded[i] += int(whole[i] > 0)
    return rounded


def interleave(weights: Sequence[float]) -> Interleaving:
    """Return the sequence for these weights.

    >>> interleave([2, 1, 1]).source.tolist()
    [0, 1, 0, 2]
    """
    counts = whole_numbers(weights)
    period = sum(counts)
    samples = [(j * period // a + 1, -(-(j + 1) * period // a), i, j) for i, a in enumerate(counts) for j in range(a)]
    samples.sort(reverse=True)
    ready: list[tuple[int, int, int]] = []
    source, rank = np.empty(period, np.int64), np.empty(period, np.int64)
    for n in range(1, period + 1):
        while samples and samples[-1][0] <= n:
            _, deadline, i, j = samples.pop()
            heapq.heappush(ready, (deadline, i, j))
        _, source[n - 1], rank[n - 1] = heapq.heappop(ready)
    return Interleaving(np.array(counts, np.int64), source, rank)
