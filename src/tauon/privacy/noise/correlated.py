"""Correlated noise: later steps subtract part of the noise of earlier ones. For data in full passes, without amplification by sampling.

The weights follow the prefix sums A x of the gradients x_t, A the lower triangle of ones. Release x + C^-1 w, with w independent: the sums
are then A x + B w with A = B C, and the cost is the sensitivity of C (matrix mechanism; DP-FTRL's tree is one such C: Kairouz et al. 2021,
arXiv:2103.00039; adaptive inputs: Denisov et al. 2022, arXiv:2202.08312). Here C^-1 is a banded lower-triangular Toeplitz matrix,

    noise_t = w_t + sum_{k=1}^{p-1} r_k w_{t-k},

the coefficients r being the first p of (1 - x)^(1/2), the inverse of A's square root (banded inverse square root: Kalinin, McKenna, Upadhyay &
Lampert 2025, arXiv:2505.12128), or improved from there for the length of the run. Its last p draws are computed again from (key, step, name): no
memory, and a resume is exact. An example takes part once per pass, so in steps at least b apart, at most k times
(Choquette-Choo et al. 2023, arXiv:2306.08153); C has decreasing, non-negative coefficients, so its sensitivity is the norm of the sum of
its columns 0, b, 2b, ... (Kalinin & Lampert 2024, arXiv:2405.13763, theorem 2). The secret order of the data is not used for amplification.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Count, register
from tauon.privacy.noise.schedule import NoiseConfig

__all__ = ["Correlated", "coefficients_of_inverse", "prefix_error", "sensitivity", "square_root_coefficients"]

Array = NDArray[np.float64]


@register("correlated")
class Correlated(NoiseConfig):
    """Noise that later steps partly cancel, for `sampling: shuffled`; the same multiplier in every step."""

    bands: Count = Field(4, ge=2, le=1024)
    """Draws in the noise of one step, which is its cost; more lower the error of long runs."""
    form: Literal["square-root", "optimised"] = "optimised"
    """How coefficients are chosen: square root of the prefix sum, or optimized from there for the length of the run."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("form") == "optimised" and self.raw_value("bands") > 64:
            yield "bands", f"{self.raw_value('bands')} are too many to optimize. Set at most 64, or form=square-root."

    def factor(self, step: int, total: int, seen: Mapping[str, Any] | None = None) -> float:
        return 1.0

    def coefficients(self, steps: int, apart: int) -> tuple[float, ...]:
        """(1, r_1, ..., r_{p-1}) for a run of `steps` steps in which the steps of an example are at least `apart` apart."""
        bands = min(self.bands, steps)
        if self.form == "square-root" or bands < 2:
            return tuple(float(r) for r in square_root_coefficients(bands))
        return _optimised(bands, steps, apart)


def square_root_coefficients(bands: int) -> Array:
    """The first coefficients of (1 - x)^(1/2): 1, -1/2, -1/8, -1/16, ..."""
    r = np.ones(bands)
    for k in range(1, bands):
        r[k] = r[k - 1] * (k - 1.5) / k
    return r


def coefficients_of_inverse(r: Array, steps: int) -> Array:
    """First column of C (`steps` entries), from `r`, that of C^-1: the power series 1 / r(x)."""
    from scipy.signal import lfilter

    impulse = np.zeros(steps)
    impulse[0] = 1.0
    return np.asarray(lfilter([1.0], r, impulse), dtype=np.float64)


def sensitivity(r: Array | tuple[float, ...], steps: int, apart: int) -> float:
    """Sensitivity of C x to one example whose contributions have norm 1, in steps at least `apart` apart.

    The norm of columns 0, b, 2b, ... of C together: the worst pattern, as the coefficients of C are non-negative and non-increasing (checked).
    """
    c = coefficients_of_inverse(np.asarray(r, dtype=np.float64), steps)
    if c.min() < -1e-12 or np.diff(c).max(initial=-1.0) > 1e-12:
        raise ValueError("the coefficients of C grow or change sign: the worst participation pattern is not known")
    total = np.zeros(steps)
    for start in range(0, steps, apart):
        total[start:] += c[: steps - start]
    return float(np.sqrt(total @ total))


def prefix_error(r: Array | tuple[float, ...], steps: int, apart: int) -> float:
    """Root mean square error of the prefix sums for noise of multiplier 1 in the accountant's sense: of w, scaled by the sensitivity."""
    return float(math.sqrt(np.mean(_variances(np.asarray(r, dtype=np.float64), steps)))) * sensitivity(r, steps, apart)


def _variances(r: Array, steps: int) -> Array:
    """Variance of each prefix sum of the noise, for w of variance 1."""
    sums = np.cumsum(np.concatenate([r[:steps], np.zeros(max(0, steps - len(r)))]))
    return np.asarray(np.cumsum(sums**2), dtype=np.float64)


LONG = 2048
"""Maximum steps that coefficients are optimized for; longer runs use this length, with passes in proportion."""


@lru_cache(maxsize=64)
def _optimised(bands: int, steps: int, apart: int) -> tuple[float, ...]:
    """Coefficients that minimize the error of the prefix sums, by Powell's method from those of the square root.

    The search is over -r_k > 0 that sum to less than 1, so that the inverse is non-negative and bounded; candidates with a non-decreasing inverse
    are rejected. The result is checked by `sensitivity` for the real length of the run.
    """
    from scipy.optimize import minimize

    shrink = max(1.0, steps / LONG)
    short, gap = min(steps, LONG), max(1, min(steps, round(apart / shrink)))
    start = square_root_coefficients(bands)

    def shape(free: Array) -> Array:
        weights = np.exp(np.clip(free, -30, 30))
        return np.concatenate([[1.0], -weights / (1 + weights.sum())])

    def error(free: Array) -> float:
        try:
            return math.log(prefix_error(shape(free), short, gap))
        except ValueError:
            return 1e3

    free = np.log(-start[1:] / (1 + start[1:].sum()))
    found = minimize(error, free, method="Powell", options={"maxfev": 200 * bands, "xtol": 1e-3, "ftol": 1e-6})
    r = shape(found.x)
    try:
        better = prefix_error(r, steps, apart) < prefix_error(start, steps, apart)
    except ValueError:
        better = False
    return tuple(float(x) for x in (r if better else start))
