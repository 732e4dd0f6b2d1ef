"""Auditing a whole trade-off curve with one training run (Mahloujifar, Melis & Chaudhuri 2024, arXiv:2410.22235): as `one_run`, but it
tests the complete curve of the accountant instead of one (epsilon, delta) on it. With nearly Gaussian noise this refutes errors that the
other bound cannot, e.g. half the noise.

A trade-off curve f gives, for each false-positive rate, the smallest false-negative rate that any test of one coin can have (Dong, Roth &
Su 2019, arXiv:1905.02383). Gaussian DP with parameter mu has f(a) = Phi(Phi^-1(1 - a) - mu).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.privacy.audit.one_run import SHARES, guess

__all__ = [
    "CurveAudit",
    "TradeOff",
    "audit_curve",
    "curve_p_value",
    "epsilon_delta_curve",
    "gaussian_curve",
    "gaussian_epsilon",
    "points_curve",
]

TradeOff = Callable[[float], float]
"""Smallest false-negative rate at a false-positive rate; not increasing, convex, f(0) <= 1, f(1) = 0."""
_NORMAL = NormalDist()


def gaussian_curve(mu: float) -> TradeOff:
    """Curve of testing N(0, 1) against N(mu, 1)."""

    def f(alpha: float) -> float:
        if alpha <= 0 or alpha >= 1:
            return 1.0 if alpha <= 0 else 0.0
        return _cdf(-_NORMAL.inv_cdf(alpha) - mu)

    return f


def epsilon_delta_curve(epsilon: float, delta: float) -> TradeOff:
    """The lowest curve under (epsilon, delta)-DP: max(0, 1 - delta - e^eps a, e^-eps (1 - delta - a))."""
    return lambda alpha: max(0.0, 1 - delta - math.exp(epsilon) * alpha, math.exp(-epsilon) * (1 - delta - alpha))


def points_curve(alphas: Sequence[float], betas: Sequence[float]) -> TradeOff:
    """Lower bound of a convex curve through given points: between two points, the lines through the two before and the two after.
    Below the true curve, so that refuting it refutes the true one.
    """
    order = np.argsort(alphas, kind="stable")
    a, first = np.unique(np.asarray(alphas, float)[order], return_index=True)
    b = np.asarray(betas, float)[order][first]
    slopes = np.diff(b) / np.diff(a)

    def f(alpha: float) -> float:
        i = int(np.searchsorted(a, alpha, side="right")) - 1
        if 0 <= i < len(a) and a[i] == alpha:
            return float(b[i])
        left = b[i] + slopes[i - 1] * (alpha - a[i]) if i >= 1 else 0.0
        right = b[i + 1] + slopes[i + 1] * (alpha - a[i + 1]) if i + 1 < len(slopes) else 0.0
        return float(max(0.0, left, right))

    return f


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon at which mu-GDP is (epsilon, delta)-DP: Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu) = delta (Balle & Wang 2018).

    >>> round(gaussian_epsilon(1.0, 1e-5), 2)
    4.38
    """
    if mu <= 0:
        return 0.0

    def delta_at(eps: float) -> float:
        return _cdf(mu / 2 - eps / mu) - math.exp(eps + _log_cdf(-mu / 2 - eps / mu))

    low, high = 0.0, 1.0
    if delta_at(0.0) <= delta:
        return 0.0
    while delta_at(high) > delta:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


def _cdf(x: float) -> float:
    """Phi(x), accurate in the lower tail."""
    return math.erfc(-x / math.sqrt(2)) / 2


def _log_cdf(x: float) -> float:
    """Log Phi(x), also if Phi(x) underflows."""
    if x > -30:
        return math.log(_cdf(x))
    return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-1 / (x * x))


def allows(f: TradeOff, m: int, r: int, v: int, level: float) -> bool:
    """Whether a mechanism with this (symmetric) curve can give v or more right guesses of r, about m coins, with probability `level`.

    right_i: probability that a random coin is guessed right and i guesses or more are; wrong_i: that it is guessed wrong and i or more are
    right. Changing that coin turns the first event of i + 1 into the second of i, so that wrong_i >= f(1 - right_{i+1}); and what wrong_i
    gains over wrong_{i+1} are runs with exactly i right guesses, which add to right_i too. If right_0 + wrong_0 then exceeds the share
    r / m of guessed coins, there is no such mechanism (the paper's Theorem 3.2 and Algorithm 3).
    """
    right, wrong, most = level * v / m, level * (r - v) / m, r / m
    for i in range(v - 1, -1, -1):
        least = max(wrong, f(1 - right))
        right += i / (r - i) * (least - wrong)
        wrong = least
        if right + wrong > most:
            return False
    return True


def curve_p_value(f: TradeOff, m: int, r: int, v: int) -> float:
    """Largest probability of v or more right guesses of r, about m coins, under the curve.

    >>> curve_p_value(gaussian_curve(0.0), 100, 100, 60) < 0.12
    True
    """
    if not 0 <= v <= r <= m:
        raise ValueError(f"expected 0 <= right <= guesses <= coins, got {v}, {r}, {m}")
    if r == 0 or allows(f, m, r, v, 1.0):
        return 1.0
    low, high = -40.0, 0.0  # log10
    for _ in range(22):
        middle = (low + high) / 2
        low, high = (middle, high) if allows(f, m, r, v, 10**middle) else (low, middle)
    return float(10**high)


@dataclass(frozen=True)
class CurveAudit:
    """Result of one run about a trade-off curve."""

    coins: int
    guesses: int
    right: int
    confidence: float
    mu: float
    """Largest mu whose Gaussian curve is refuted."""
    delta: float
    epsilon: float
    """Epsilon of mu-GDP at `delta`. A lower bound for mechanisms with a Gaussian curve, which many steps nearly have."""
    p_of_claim: float | None
    """p-value of the claimed curve, corrected for the numbers of guesses tried. Assumes nothing."""

    @property
    def contradicts(self) -> bool:
        """Whether the claimed curve is refuted at the confidence."""
        return self.p_of_claim is not None and self.p_of_claim < 1 - self.confidence

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"contradicts": self.contradicts}


def audit_curve(
    scores: NDArray[np.float64], included: NDArray[np.bool_], *, delta: float, claimed: TradeOff | None = None, confidence: float = 0.95,
    shares: Sequence[float] = SHARES, examples: int = 1,
) -> CurveAudit:  # fmt: skip
    """As `one_run.audit_scores`, for curves: the best over a few numbers of guesses, at a joint confidence. `claimed` is the curve for a
    change of one coin; mu-GDP for one example is k mu for k examples.
    """
    m = len(scores)
    counts = sorted({min(m, max(1, round(share * m))) for share in shares})
    level = (1 - confidence) / len(counts)
    best, kept, p = 0.0, guess(scores, included, most=(counts[0] + 1) // 2, least=counts[0] // 2), 1.0
    for count in counts:
        found = guess(scores, included, most=(count + 1) // 2, least=count // 2)
        low, high = 0.0, 40.0
        if not allows(gaussian_curve(examples * best), m, found.guesses, found.right, level):
            low = best
            for _ in range(25):
                middle = (low + high) / 2
                low, high = (
                    (low, middle) if allows(gaussian_curve(examples * middle), m, found.guesses, found.right, level) else (middle, high)
                )
            if low > best:
                best, kept = low, found
        if claimed is not None:
            p = min(p, curve_p_value(claimed, m, found.guesses, found.right))
    return CurveAudit(
        m,
        kept.guesses,
        kept.right,
        confidence,
        best,
        delta,
        gaussian_epsilon(best, delta),
        None if claimed is None else min(1.0, p * len(counts)),
    )
