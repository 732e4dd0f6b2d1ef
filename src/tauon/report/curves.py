"""Reduces curves to a size that can be drawn: the min/max envelope of each bucket of steps, and a smoothed line. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["buckets", "envelope", "smooth", "thin"]

POINTS = 480
"""Buckets across a plot: more than a screen can show."""


def buckets(n: int, most: int = POINTS) -> list[tuple[int, int]]:
    """Split range(n) into at most `most` intervals [start, stop) whose lengths differ by at most 1."""
    count = min(n, most)
    edges = [i * n // count for i in range(count + 1)] if count else []
    return list(pairwise(edges))


def envelope(xs: Sequence[float], ys: Sequence[float], most: int = POINTS) -> list[tuple[float, float, float] | None]:
    """Return (x, lowest, highest) of each bucket; None (a gap) if no value is finite."""
    ranges: list[tuple[float, float, float] | None] = []
    for start, stop in buckets(len(xs), most):
        finite = [y for y in ys[start:stop] if math.isfinite(y)]
        ranges.append((xs[(start + stop - 1) // 2], min(finite), max(finite)) if finite else None)
    return ranges


def thin(xs: Sequence[float], ys: Sequence[float], most: int = POINTS) -> list[tuple[float, float] | None]:
    """Return the points of a line with both ends and every bucket's lowest and highest value, in order; None is a gap."""
    if len(xs) <= 2 * most:
        return [(x, y) if math.isfinite(y) else None for x, y in zip(xs, ys, strict=True)]
    points: list[tuple[float, float] | None] = []
    for start, stop in buckets(len(xs), most):
        inside = [i for i in range(start, stop) if math.isfinite(ys[i])]
        if not inside:
            points.append(None)
            continue
        low, high = min(inside, key=lambda i: ys[i]), max(inside, key=lambda i: ys[i])
        ends = ({start} if start == 0 else set()) | ({stop - 1} if stop == len(xs) else set())
        points += [(xs[i], ys[i]) for i in sorted({low, high} | (ends & set(inside)))]
    return points


def smooth(ys: Sequence[float], span: int) -> list[float]:
    """Return the centred mean of up to `span` values around each one. Values that are not finite are skipped and stay NaN.

    The window is narrow near the start, so that the steep beginning of a loss is neither delayed nor flattened.
    """
    sums, counts = [0.0], [0]
    for y in ys:
        is_finite = math.isfinite(y)
        sums.append(sums[-1] + (y if is_finite else 0.0))
        counts.append(counts[-1] + is_finite)
    smoothed = []
    for i, y in enumerate(ys):
        half = min(span // 2, i // 4)
        start, stop = i - half, min(i + half + 1, len(ys))
        smoothed.append((sums[stop] - sums[start]) / (counts[stop] - counts[start]) if math.isfinite(y) else math.nan)
    return smoothed
