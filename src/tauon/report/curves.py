"""Curves made small enough to draw: the min/max envelope of each bucket of steps, and a smoothed line. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["buckets", "envelope", "smooth", "thin"]

POINTS = 480
"""Buckets across a plot: more than a screen's plot area has use for."""


def buckets(n: int, most: int = POINTS) -> list[tuple[int, int]]:
    """[start, stop) of at most `most` runs of neighbours, lengths equal but for one."""
    count = min(n, most)
    edges = [i * n // count for i in range(count + 1)] if count else []
    return list(pairwise(edges))


def envelope(xs: Sequence[float], ys: Sequence[float], most: int = POINTS) -> list[tuple[float, float, float] | None]:
    """(x, lowest, highest) of each bucket; None (a gap) where no value is finite."""
    found: list[tuple[float, float, float] | None] = []
    for start, stop in buckets(len(xs), most):
        finite = [y for y in ys[start:stop] if math.isfinite(y)]
        found.append((xs[(start + stop - 1) // 2], min(finite), max(finite)) if finite else None)
    return found


def thin(xs: Sequence[float], ys: Sequence[float], most: int = POINTS) -> list[tuple[float, float] | None]:
    """Points of a line that keeps the ends and every bucket's lowest and highest value, in order; None is a gap."""
    if len(xs) <= 2 * most:
        return [(x, y) if math.isfinite(y) else None for x, y in zip(xs, ys, strict=True)]
    found: list[tuple[float, float] | None] = []
    for start, stop in buckets(len(xs), most):
        inside = [i for i in range(start, stop) if math.isfinite(ys[i])]
        if not inside:
            found.append(None)
            continue
        low, high = min(inside, key=lambda i: ys[i]), max(inside, key=lambda i: ys[i])
        ends = ({start} if start == 0 else set()) | ({stop - 1} if stop == len(xs) else set())
        found += [(xs[i], ys[i]) for i in sorted({low, high} | (ends & set(inside)))]
    return found


def smooth(ys: Sequence[float], span: int) -> list[float]:
    """Mean of up to `span` values around each one. Values that are not finite are passed over, and their own place is NaN.

    Centred, and narrow near the start, so that the steep beginning of a loss is neither delayed nor flattened.
    """
    sums, counts = [0.0], [0]
    for y in ys:
        fine = math.isfinite(y)
        sums.append(sums[-1] + (y if fine else 0.0))
        counts.append(counts[-1] + fine)
    found = []
    for i, y in enumerate(ys):
        half = min(span // 2, i // 4)
        start, stop = i - half, min(i + half + 1, len(ys))
        found.append((sums[stop] - sums[start]) / (counts[stop] - counts[start]) if math.isfinite(y) else math.nan)
    return found
