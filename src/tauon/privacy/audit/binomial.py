"""Exact binomial tails and intervals in float64, without SciPy: an audit's verdict must not depend on a normal approximation.

Sources: Clopper & Pearson 1934 (Biometrika 26). Tails are sums of the probability mass in logarithms, accurate to about 1e-9 relative for a
million trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["binomial_pmf", "binomial_tail", "clopper_pearson"]


def binomial_pmf(n: int, p: float) -> NDArray[np.float64]:
    """P[Binomial(n, p) = k] for k = 0..n, (n + 1)."""
    if p <= 0 or p >= 1:
        certain = np.zeros(n + 1)
        certain[0 if p <= 0 else n] = 1.0
        return certain
    k = np.arange(n + 1.0)
    pmf: NDArray[np.float64] = np.exp(_log_choose(n) + k * math.log(p) + (n - k) * math.log1p(-p))
    return pmf


@lru_cache(maxsize=8)
def _log_choose(n: int) -> NDArray[np.float64]:
    """Logarithm of the binomial coefficients of n, k = 0..n; cached for bisection over p."""
    import torch

    k = torch.arange(n + 1, dtype=torch.float64)
    choose: NDArray[np.float64] = (math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)).numpy()
    return choose


def binomial_tail(v: int, n: int, p: float) -> float:
    """P[Binomial(n, p) >= v].

    >>> round(binomial_tail(8, 10, 0.5), 4)
    0.0547
    """
    if v <= 0:
        return 1.0
    return min(1.0, math.fsum(binomial_pmf(n, p)[v:]))


def clopper_pearson(successes: int, n: int, confidence: float = 0.95, *, sides: int = 2) -> tuple[float, float]:
    """Interval that contains the proportion with probability at least `confidence`. `sides` 1: each end alone has that confidence.

    >>> [round(x, 4) for x in clopper_pearson(0, 100)]
    [0.0, 0.0362]
    """
    if not 0 <= successes <= n:
        raise ValueError(f"got {successes} successes of {n}: expected 0 to {n}")
    if n == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / sides
    low = 0.0 if successes == 0 else _solve(lambda p: binomial_tail(successes, n, p) - tail)
    # P[X <= k] of p is P[n - X >= n - k] of 1 - p
    high = 1.0 if successes == n else 1 - _solve(lambda q: binomial_tail(n - successes, n, q) - tail)
    return low, high


def _solve(rising: Callable[[float], float]) -> float:
    """Zero of an increasing function on [0, 1], by bisection to full precision."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
