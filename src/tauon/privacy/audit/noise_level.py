"""Test of the noise level. At the coordinate of a gradient canary that was not included, every noised sum has only noise and the contribution of
the examples. Divided by the stated standard deviation, squared and summed over n values, this is at least chi-square with n degrees of freedom
if the noise is as stated (Gaussian, independent of the data: examples only increase it). So a small sum refutes the stated noise.

The test guesses no memberships, which makes it much stronger than a test by coins: with 2,000 canaries and 40 steps at epsilon 2, half the noise
is far below what coins can refute, but clearly detected here.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NoiseLevel", "noise_level"]


@dataclass(frozen=True)
class NoiseLevel:
    """Result of the noise test."""

    draws: int
    """Number of values: steps times canaries that were not included."""
    ratio: float
    """Observed / stated standard deviation; includes the contribution of the examples."""
    at_most: float
    """Upper bound of the real / stated standard deviation, at the confidence."""
    p_of_claim: float
    """p-value of the stated noise."""
    confidence: float

    @property
    def contradicts(self) -> bool:
        """Whether the stated noise is refuted."""
        return self.p_of_claim < 1 - self.confidence

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"contradicts": self.contradicts}


def noise_level(
    squares_M: NDArray[np.float64], steps: int, included_M: NDArray[np.bool_], *, confidence: float = 0.95
) -> NoiseLevel | None:
    """Args:
    squares_M: sum over the steps of (value at canary m's coordinate / stated standard deviation)^2.
    steps: number of steps.
    included_M: the coins; included canaries are skipped.
    confidence: confidence level of the bound and the test.

    Returns:
        None if there are no values.

    >>> rng = np.random.default_rng(0)
    >>> squares = (0.5 * rng.normal(size=(100, 40))) ** 2  # half the noise
    >>> noise_level(squares.sum(1), 40, np.zeros(100, bool)).contradicts
    True
    """
    from scipy.special import gammainc, gammaincinv

    mine = squares_M[~included_M]
    n, total = len(mine) * steps, math.fsum(mine)
    if not n:
        return None
    p = float(gammainc(n / 2, total / 2))
    least = 2 * float(gammaincinv(n / 2, 1 - confidence))
    return NoiseLevel(n, math.sqrt(total / n), math.sqrt(total / least), p, confidence)
