"""Is the noise as large as was said? Of gradient canaries that were not included, every noised sum shows noise at the canary's coordinate, and
what the examples added to it. Divided by the stated standard deviation, squared and added up over n of them, that is at least a chi-square
of n degrees where the noise is right (Gaussian, independent of the data: what the examples add only makes it larger). So a small sum refutes it.

It needs no guess of who was included, which is what makes a proof by coins weak: half the noise at epsilon 2 in 40 steps with 2,000 canaries
is far below what coins can refute, and here it is beyond doubt.
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
    """What was seen of the noise."""

    draws: int
    """Steps times canaries that were not included."""
    ratio: float
    """Standard deviation that was seen, over the one that was stated; what the examples added is in it."""
    at_most: float
    """Upper bound of noise over stated noise, at the confidence."""
    p_of_claim: float
    """Probability of as little as was seen, were the noise as large as stated."""
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
    squares_M: sum over the steps of (what was seen at canary m's coordinate / stated standard deviation)^2.
    steps: how many.
    included_M: the coins: canaries that were included are left out.
    confidence: of the bound and of a refutation.

    Returns:
        None where there is nothing to look at.

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
