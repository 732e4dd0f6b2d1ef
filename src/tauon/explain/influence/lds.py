"""Linear datamodelling score: do influence scores predict what retraining on other subsets does? (Park et al. 2023, section 4.1)

For each query: the rank correlation over random subsets, between the sum of the scores of a subset's examples and the output of models retrained
on that subset. Beside it the ceiling: two retrainings on the same subset differ too (order, initial weights), and with an agreement r between
them, no prediction can correlate with the mean of n retrainings better than sqrt(n r / (1 + (n - 1) r)) (Spearman 1910, Brown 1910).

Shapes: Q queries, N training examples, S subsets, R retrainings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tauon.errors import DataError

__all__ = ["LdsResult", "lds", "rank_correlation"]


@dataclass(frozen=True)
class LdsResult:
    """Mean over queries, with an interval, and the ceiling."""

    value: float
    low: float
    high: float
    """95% interval, from resampled queries and subsets."""
    per_query: np.ndarray
    """Q."""
    agreement: float | None
    """Mean rank correlation of two retrainings on the same subsets. None with one retraining."""
    ceiling: float | None
    """Of `value`, estimated from `agreement`."""
    subsets: int
    retrainings: int

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "value": self.value, "interval": [self.low, self.high], "agreement_of_retrained_models": self.agreement, "ceiling": self.ceiling,
            "queries": len(self.per_query), "subsets": self.subsets, "retrainings": self.retrainings,
            "meaning": "rank correlation of predicted and retrained outputs over subsets of the training data: 1 is perfect, 0 is chance; "
            "retraining itself agrees with a perfect prediction only up to the ceiling",
        }  # fmt: skip


def rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation over the first dimension, for each column; 0 where one is constant.

    >>> rank_correlation(np.array([[1.0], [2.0], [4.0]]), np.array([[0.0], [3.0], [9.0]])).round(12)
    array([1.])
    """
    a, b = (_centred_ranks(v) for v in (x, y))
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    correlation: np.ndarray = np.divide((a * b).sum(0), scale, out=np.zeros(x.shape[1]), where=scale > 0)
    return correlation


def _centred_ranks(x: np.ndarray) -> np.ndarray:
    order = np.argsort(x, axis=0, kind="stable")
    ranks = np.empty(x.shape)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(len(x), dtype=float)[:, None], x.shape), 0)
    for q in np.flatnonzero((np.diff(np.take_along_axis(x, order, 0), axis=0) == 0).any(0)):
        _, inverse, counts = np.unique(x[:, q], return_inverse=True, return_counts=True)
        ranks[:, q] = (np.cumsum(counts) - (counts + 1) / 2)[inverse]
    centred: np.ndarray = ranks - ranks.mean(0)
    return centred


def lds(scores_QN: np.ndarray, subsets_SN: np.ndarray, outputs_RSQ: np.ndarray, *, resamples: int = 200, seed: int = 0) -> LdsResult:
    """Compare the scores with retrained models.

    Args:
        scores_QN: positive where an example helps the query.
        subsets_SN: which examples each subset has, bool.
        outputs_RSQ: what the models retrained on each subset say about each query, more is better: minus the loss, or the margin.
        resamples: bootstrap samples of queries and subsets for the interval.
        seed: of the bootstrap.

    Raises `DataError` for shapes that do not fit, and for fewer than 3 subsets.
    """
    R, S, Q = outputs_RSQ.shape
    if scores_QN.shape[0] != Q or subsets_SN.shape != (S, scores_QN.shape[1]):
        raise DataError(
            f"scores {scores_QN.shape}, subsets {subsets_SN.shape} and outputs {outputs_RSQ.shape} do not fit: expected QN, SN, RSQ."
        )
    if S < 3:
        raise DataError(f"{S} subsets: a rank correlation needs at least 3, and 50 are usual.")
    predicted_SQ, truth_SQ = subsets_SN.astype(np.float64) @ scores_QN.T.astype(np.float64), outputs_RSQ.mean(0)
    per_query = rank_correlation(predicted_SQ, truth_SQ)
    draws, means = np.random.default_rng(seed), []
    for _ in range(resamples):
        s, q = draws.integers(0, S, S), draws.integers(0, Q, Q)
        means.append(rank_correlation(predicted_SQ[s][:, q], truth_SQ[s][:, q]).mean())
    low, high = np.quantile(means, [0.025, 0.975]) if means else (np.nan, np.nan)
    agreement = ceiling = None
    if R > 1:
        pairs = [rank_correlation(outputs_RSQ[i], outputs_RSQ[j]).mean() for i in range(R) for j in range(i)]
        agreement = float(np.mean(pairs))
        r = max(0.0, agreement)
        ceiling = float(np.sqrt(R * r / (1 + (R - 1) * r)))
    return LdsResult(float(per_query.mean()), float(low), float(high), per_query, agreement, ceiling, S, R)
