"""Auditing with one training run (Steinke, Nasr & Jagielski 2023, arXiv:2305.08846): m examples are each included by a fair coin, and
an attacker guesses the coins from the result. The guarantee bounds the number of right guesses, so too many right guesses refute it.

Sources: Theorem 5.2 (the bound), Appendix D (how it is computed), Algorithm 1 (guesses from scores). Trains nothing, and uses no model.

The bound needs independent fair coins, and an auditor who sees them only through the mechanism's output. It makes no assumption about the
scores. `pairs_as_coins` makes such coins from any random split, without canaries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.privacy.audit.binomial import binomial_pmf

__all__ = ["Guesses", "OneRun", "audit_scores", "epsilon_lower_bound", "group_delta", "guess", "p_value", "pairs_as_coins"]


def p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """Probability of at least v right guesses of r, on m coins, if the mechanism is (epsilon, delta)-DP: Theorem 5.2.

    beta + 2 m delta alpha, beta = P[W >= v], alpha = max_i P[v - i <= W < v] / i, W ~ Binomial(r, e^eps / (1 + e^eps)).

    >>> round(p_value(1000, 100, 75, 0.673, 1e-4), 3)
    0.05
    """
    if not 0 <= v <= r <= m:
        raise ValueError(f"expected 0 <= right <= guesses <= coins, got {v}, {r}, {m}")
    if epsilon < 0 or not 0 <= delta <= 1:
        raise ValueError(f"expected epsilon >= 0 and delta from 0 to 1, got {epsilon}, {delta}")
    pmf = binomial_pmf(r, 1 / (1 + math.exp(-epsilon)))
    beta = math.fsum(pmf[v:]) if v else 1.0
    if v == 0 or delta == 0:
        return min(1.0, beta)
    below = np.cumsum(pmf[v - 1 :: -1])  # P[v - i <= W < v] for i = 1..v
    alpha = float((below / np.arange(1, v + 1)).max())
    return min(1.0, beta + 2 * m * delta * alpha)


def group_delta(epsilon: float, delta: float, examples: int) -> float:
    """Delta of a change of several examples under (epsilon, delta)-DP; its epsilon is `examples` x epsilon (Vadhan 2017, Lemma 2.2).

    >>> group_delta(0.0, 1e-6, 2)
    2e-06
    """
    return min(1.0, delta * math.fsum(math.exp(min(700.0, i * epsilon)) for i in range(examples)))


def epsilon_lower_bound(m: int, r: int, v: int, delta: float, *, confidence: float = 0.95, examples: int = 1) -> float:
    """Return the largest epsilon that v right guesses of r refute at this confidence: the mechanism is not (epsilon, delta)-DP. 0: none.

    `examples`: number of examples that a change of one coin adds or removes; 2 if it replaces one by another.

    >>> round(epsilon_lower_bound(1000, 100, 75, 1e-4), 3)
    0.673
    """
    level = 1 - confidence

    def refuted(epsilon: float) -> bool:
        return p_value(m, r, v, examples * epsilon, group_delta(epsilon, delta, examples)) < level

    low, high = 0.0, 1.0
    if not refuted(0.0):
        return 0.0
    while refuted(high):  # ends: e^-36 is below the resolution of float64
        low, high = high, high + 1
    for _ in range(40):
        middle = (low + high) / 2
        if refuted(middle):
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Guesses:
    """Guesses of an auditor about m coins, and how many were right."""

    coins: int
    guesses: int
    right: int


def guess(scores: NDArray[np.float64], included: NDArray[np.bool_], *, most: int, least: int) -> Guesses:
    """Algorithm 1: guess that the `most` highest scores (M) are included and the `least` lowest are not; abstain for the others.

    Equal scores are ordered by index, which is independent of the coins.
    """
    m = len(scores)
    if len(included) != m or most < 0 or least < 0 or most + least > m:
        raise ValueError(f"got {most} + {least} guesses for {m} scores and {len(included)} coins")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {m} scores are not finite")
    order = np.argsort(scores, kind="stable")
    right = int(included[order[m - most :]].sum()) + int((~included[order[:least]]).sum())
    return Guesses(m, most + least, right)


@dataclass(frozen=True)
class OneRun:
    """Result of one run."""

    coins: int
    guesses: int
    right: int
    delta: float
    confidence: float
    epsilon: float
    """Lower bound: the mechanism is not (epsilon, delta)-DP, at this confidence."""
    tried: int
    """Numbers of guesses that were tried; the confidence is for all of them jointly (Bonferroni)."""
    p_of_claim: float | None = None
    """p-value of the claimed guarantee, corrected for the numbers of guesses tried."""
    claimed: float | None = None
    """The claimed epsilon."""

    @property
    def contradicts(self) -> bool:
        """Whether the claim is refuted at the confidence."""
        return self.p_of_claim is not None and self.p_of_claim < 1 - self.confidence

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"contradicts": self.contradicts}


SHARES = (0.02, 0.1, 0.3, 1.0)
"""Shares of the coins to guess, tried in turn: few certain guesses refute a large epsilon, many uncertain ones a small one."""


def audit_scores(
    scores: NDArray[np.float64], included: NDArray[np.bool_], *, delta: float, claimed: float | None = None, confidence: float = 0.95,
    shares: Sequence[float] = SHARES, positive_only: bool = False, examples: int = 1,
) -> OneRun:  # fmt: skip
    """Return the best bound over a few numbers of guesses, at a joint confidence.

    Args:
        scores: (M), larger for canaries that look included.
        included: (M), the coins.
        delta: of the guarantee.
        claimed: epsilon to test.
        confidence: of the bound.
        shares: of the coins to guess; chosen before seeing the data.
        positive_only: guess only inclusions: for attacks that detect members only.
        examples: number of examples that a change of one coin adds or removes.
    """
    m = len(scores)
    counts = sorted({min(m, max(1, round(share * m))) for share in shares})
    each = 1 - (1 - confidence) / len(counts)
    best: tuple[float, Guesses] | None = None
    p = 1.0
    for count in counts:
        most = min(count, m) if positive_only else (count + 1) // 2
        found = guess(scores, included, most=most, least=0 if positive_only else count - most)
        bound = epsilon_lower_bound(m, found.guesses, found.right, delta, confidence=each, examples=examples)
        if claimed is not None:
            p = min(p, p_value(m, found.guesses, found.right, examples * claimed, group_delta(claimed, delta, examples)))
        if best is None or bound > best[0]:
            best = bound, found
    assert best is not None
    return OneRun(
        m, best[1].guesses, best[1].right, delta, confidence, best[0], len(counts), None if claimed is None else min(1.0, p * len(counts)),
        claimed,
    )  # fmt: skip


def pairs_as_coins(
    members: int, others: int, *, seed: int, member_groups: NDArray[Any] | None = None, other_groups: NDArray[Any] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """(first examples P, second examples P, coins P) of pairs of a member and a held-out example; indices count members, then held-out
    examples; the coin is whether the first is the member.

    If the split was random, then for a given pair, which of the two was trained on is a fair coin, independent of the other pairs: this
    is the experiment of Theorem 5.2 with m = P, and a coin's change replaces one example (`examples=2`). A split that is stratified by class
    is random within classes: pairs are then from one group.
    """
    rng = np.random.Generator(np.random.Philox(key=seed & (2**64 - 1)))
    if member_groups is None or other_groups is None:
        member_groups, other_groups = np.zeros(members, np.int64), np.zeros(others, np.int64)
    a, b = [], []
    for group in np.unique(member_groups):
        mine, theirs = rng.permutation(np.flatnonzero(member_groups == group)), rng.permutation(np.flatnonzero(other_groups == group))
        n = min(len(mine), len(theirs))
        a.append(mine[:n])
        b.append(members + theirs[:n])
    inside, outside = np.concatenate(a), np.concatenate(b)
    first = rng.random(len(inside)) < 0.5
    return np.where(first, inside, outside), np.where(first, outside, inside), first
