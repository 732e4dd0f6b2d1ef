"""Confidence intervals: Wilson for proportions, DeLong for areas under a curve, the bootstrap over examples for the rest.

Sources: Wilson 1927; DeLong, DeLong & Clarke-Pearson 1988 (Biometrics 44); Birnbaum & Klose 1957 (variance bound of the area);
Pepe 2003 (logit scale); Efron & Tibshirani 1993 (bootstrap).
Every draw is a function of (seed, purpose). Independent of specific metrics.
"""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

import numpy as np

__all__ = ["absolute_sum_interval", "area_interval", "generator", "percentile", "resample_cells", "resample_sums", "wilson", "z_score"]

Interval = tuple[float, float]

_CHUNK = 4_000_000
"""Draws in memory at once (about 64 MB)."""


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return a random stream for (seed, purpose), independent of earlier draws."""
    digest = hashlib.sha256(f"{seed}:evaluate:{purpose}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def z_score(confidence: float) -> float:
    """Half-width of a two-sided normal interval in standard errors: 1.96 for 95%."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(successes: float, n: float, confidence: float) -> Interval:
    """Return Wilson's score interval of a proportion: all p with |successes/n - p| <= z sqrt(p (1 - p) / n). Never outside [0, 1].

    >>> [round(x, 4) for x in wilson(9, 10, 0.95)]
    [0.5958, 0.9821]
    """
    z2 = z_score(confidence) ** 2
    p = successes / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # The ends are exactly 0 and 1 at the corners; rounding must not push them inside or out.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def area_interval(area: float, variance: float, smaller: int, confidence: float) -> tuple[Interval, str]:
    """Return the interval of an area under a ROC curve from DeLong's variance, symmetric on the logit scale, and the method's name.

    The logit keeps it inside (0, 1) and covers better than the symmetric interval near 1. Where DeLong's variance is zero or
    undefined (perfect separation, a class of one example), Wilson's interval with n = the size of the `smaller` class:
    the area's variance is at most A (1 - A) / min(m, n) (Birnbaum & Klose 1957), so that it is too wide rather than too narrow.
    """
    if 0 < area < 1 and math.isfinite(variance) and variance > 0:
        half = z_score(confidence) * math.sqrt(variance) / (area * (1 - area))
        logit = math.log(area / (1 - area))
        return (_sigmoid(logit - half), _sigmoid(logit + half)), "DeLong, logit scale"
    return wilson(area * smaller, smaller, confidence), "Wilson with the smaller class's size (DeLong's variance is zero)"


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def resample_sums(columns: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return sums of each column over `resamples` draws of N rows with replacement.

    columns: N x K float64. Returns resamples x K. One draw serves all columns, so that ratios of sums stay paired.
    """
    n = len(columns)
    sums = np.empty((resamples, columns.shape[1]))
    step = max(1, _CHUNK // n)
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        drawn = rng.integers(0, n, size=(count, n), dtype=np.int64)
        drawn += (np.arange(count) * n)[:, None]  # one histogram for the whole chunk instead of one per resample
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        sums[first : first + count] = times.astype(np.float64) @ columns
    return sums


def resample_cells(counts: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return resampled counts of the cells of a table (any shape, flattened), as if the examples were drawn again.

    counts: cells (int). Returns resamples x cells. A multinomial draw: the same distribution as drawing examples, at the cost
    of one draw per cell.
    """
    n = int(counts.sum())
    return rng.multinomial(n, counts / n, size=resamples)


def percentile(values: np.ndarray, confidence: float) -> Interval | None:
    """Return the central `confidence` share of the resampled values (without undefined ones); None if all of them are equal."""
    kept = values[~np.isnan(values)]
    if len(kept) < 2:
        return None
    tail = (1 - confidence) / 2
    low, high = (float(v) for v in np.quantile(kept, (tail, 1 - tail)))
    return None if low == high else (low, high)


def absolute_sum_interval(parts_B: np.ndarray, drawn_RB: np.ndarray, n: int, confidence: float, upper: float) -> Interval | None:
    """Return the interval of sum_b |x_b| from the measured `parts` x and their resampled values, within [0, `upper`]; includes the measured sum.

    Noise increases |.|, so that sums of resampled absolute values exceed the measured one, which exceeds the true one:
    the percentile interval can miss both. Here a part whose sign is certain (beyond sqrt(log n) standard errors, as in moment
    selection, Andrews & Soares 2010) errs with its sign, any other errs by |noise|: |x_b| - |true_b| <= |x_b - true_b|.
    """
    noise = drawn_RB - parts_B
    sure = np.abs(parts_B) > math.sqrt(math.log(max(n, 2))) * noise.std(0)
    inner = percentile((np.sign(parts_B) * noise)[:, sure].sum(1) + np.abs(noise[:, ~sure]).sum(1), confidence)
    outer = percentile(np.abs(drawn_RB).sum(1), confidence)
    if inner is None or outer is None:
        return None
    value = math.fsum(np.abs(parts_B))
    return min(max(value - inner[1], 0.0), value), max(min(2 * value - outer[0], upper), value)
