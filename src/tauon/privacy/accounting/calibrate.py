"""Noise calibration: the smallest multiplier at which a schedule of releases meets a target epsilon, by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tauon.errors import RecipeError
from tauon.privacy.accounting.loss import FINE, Accountant, epsilon
from tauon.privacy.accounting.release import Release, refuse_delta, refuse_epsilon

__all__ = ["calibrate"]

LEAST, MOST = 0.1, 1e5
"""Range of the search. Noise below 0.1 protects nothing."""
COARSE = 2e-2
"""Relative width of the grid for different steps while bracketing."""


def calibrate(
    releases_of: Callable[[float], Sequence[Release]],
    *,
    target_epsilon: float,
    delta: float,
    accountant: Accountant = "pld",
    tolerance: float = 1e-3,
) -> float:
    """Return the smallest multiplier (up to `tolerance`, relative in epsilon, on the private side) with at most `target_epsilon`.

    Args:
        releases_of: releases of a run whose schedule is scaled by the multiplier; epsilon must fall as it grows.
        target_epsilon: upper limit.
        delta: at which epsilon is computed.
        accountant: `pld`, or `rdp`.
        tolerance: the result's epsilon is at least (1 - tolerance) target_epsilon, if the schedule permits.

    >>> z = calibrate(lambda m: [Release(m, "poisson", 0.01, 1000)], target_epsilon=3, delta=1e-5)
    >>> round(z, 2), epsilon(Release(z, "poisson", 0.01, 1000), 1e-5) <= 3
    (0.81, True)
    """
    refuse_epsilon(target_epsilon)
    refuse_delta(delta)

    def gap(log_z: float, width: float) -> float:
        """log(epsilon / target): above 0 if there is too little noise."""
        found = epsilon(releases_of(math.exp(log_z)), delta, accountant=accountant, width=width)
        return math.inf if math.isinf(found) else math.log(max(found, 1e-12) / target_epsilon)

    width = COARSE
    low, high = 0.0, 0.0  # of log(multiplier): too little noise, enough
    while gap(high, width) > 0:
        low, high = high, high + math.log(4)
        if high > math.log(MOST):
            raise RecipeError(
                f"epsilon {target_epsilon:g} at delta {delta:g} cannot be reached: even a noise multiplier of {MOST:g} gives more. "
                "Raise target_epsilon, or remove other releases (statistics, queries), or raise delta."
            )
    if low == high:
        while gap(low, width) <= 0:
            high, low = low, low - math.log(2)
            if low < math.log(LEAST):
                return math.exp(high) if gap(math.log(LEAST), FINE) > 0 else LEAST
    low, high = _narrow(lambda x: gap(x, width), low, high, 10 * tolerance)
    fine_low, fine_high = low - 2 * COARSE, high + 2 * COARSE  # the coarse grid is on the private side, the fine one nearly exact
    while gap(fine_low, FINE) <= 0 and fine_low > math.log(LEAST):
        fine_low -= 2 * COARSE
    while gap(fine_high, FINE) > 0:
        fine_high += 2 * COARSE
    return math.exp(_narrow(lambda x: gap(x, FINE), fine_low, fine_high, tolerance)[1])


def _narrow(gap: Callable[[float], float], low: float, high: float, tolerance: float) -> tuple[float, float]:
    """Narrow the bracket of the zero of a falling function until `high` is within `tolerance` of it: secant steps inside the bracket, aimed
    slightly at the safe side, bisection where they do not help.
    """
    at_low, at_high = gap(low), gap(high)
    for turn in range(60):
        if at_high > -tolerance or high - low < 1e-7:
            break
        if math.isfinite(at_low) and turn % 3 != 2:
            middle = low + (at_low + 0.3 * tolerance) / (at_low - at_high) * (high - low)
            middle = min(max(middle, low + 1e-3 * (high - low)), high - 1e-3 * (high - low))
        else:
            middle = 0.5 * (low + high)
        at = gap(middle)
        if at > 0:
            low, at_low = middle, at
        else:
            high, at_high = middle, at
    return low, high
