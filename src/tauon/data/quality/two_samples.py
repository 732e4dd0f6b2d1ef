"""Two-sample tests in plain numpy and torch: Kolmogorov-Smirnov for numbers, chi-square for counts. Both as in scipy (the oracle of the tests)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["chi_square_p", "kolmogorov_smirnov"]


def kolmogorov_smirnov(a_N: NDArray[Any], b_M: NDArray[Any]) -> tuple[float, float]:
    """Return (largest distance of the two distribution functions, two-sided p-value by the asymptotic series; Smirnov 1948).

    NaN is left out. (0, 1) if one sample is empty.

    >>> kolmogorov_smirnov(np.arange(50), np.arange(50))
    (0.0, 1.0)
    """
    a, b = (np.sort(x[np.isfinite(x)]) for x in (np.asarray(a_N, np.float64), np.asarray(b_M, np.float64)))
    if not len(a) or not len(b):
        return 0.0, 1.0
    both = np.concatenate([a, b])
    distance = float(np.abs(np.searchsorted(a, both, side="right") / len(a) - np.searchsorted(b, both, side="right") / len(b)).max())
    root = math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    return distance, _smirnov(root * distance)


def _smirnov(x: float) -> float:
    """Survival function of Kolmogorov's distribution: 2 sum (-1)^(k-1) exp(-2 k^2 x^2)."""
    if x < 0.2:  # 1 to 13 digits
        return 1.0
    return min(1.0, max(0.0, 2 * sum((1 if k % 2 else -1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))))


def chi_square_p(counts_RC: NDArray[Any]) -> float:
    """Return the p-value of Pearson's chi-square test of independence of a table of counts; columns that are all zero are left out."""
    import torch

    table = np.asarray(counts_RC, np.float64)
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2 or (table.sum(1) == 0).any():
        return 1.0
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    statistic, degrees = float(((table - expected) ** 2 / expected).sum()), (table.shape[0] - 1) * (table.shape[1] - 1)
    half = torch.tensor([degrees, statistic], dtype=torch.float64) / 2
    p: Any = torch.special.gammaincc(half[0], half[1])
    return float(p)
