"""Two classes at every threshold: ROC and precision-recall curves, average precision, KS, and a table of thresholds. Runs no model.

Class 1 is the positive one. An example is flagged at a threshold if its probability of class 1 is at least that.

Sources: average precision as scikit-learn defines it, sum (R_k - R_k-1) P_k; its interval: Boyd, Eng & Page 2013, the logit interval; KS: the largest
distance of the two classes' distributions of scores; Gini = 2 AUC - 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tauon.metrics.intervals import wilson, z_score
from tauon.metrics.metric import Metric

__all__ = ["Costs", "average_precision", "thresholds"]

Costs = Mapping[str, float]
"""`false_positive` and `false_negative`: cost of one of each, in any unit."""

_POINTS = 200
"""Most points of a drawn curve."""


def average_precision(score_N: np.ndarray, positive_N: np.ndarray, confidence: float) -> Metric:
    """Return the area under the precision-recall curve, as a sum of steps.

    >>> average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]), 0.95).value
    0.8333333333333333
    """
    n, positives = len(score_N), int(positive_N.sum())
    about = "mean over the positive examples of the precision at their score; a random order has the share of positives"
    if positives == 0:
        return Metric.undefined("no example is of class 1", n=n, better="higher", about=about)
    hits, flagged, _ = _cumulative(score_N, positive_N)
    value = math.fsum(np.diff(hits, prepend=0) / positives * hits / flagged)
    if not 0 < value < 1:
        return Metric(value, *wilson(value * positives, positives, confidence), n, "Wilson with the number of positives", "higher", about)
    logit, half = math.log(value / (1 - value)), z_score(confidence) / math.sqrt(positives * value * (1 - value))
    low, high = (1 / (1 + math.exp(-x)) for x in (logit - half, logit + half))
    return Metric(value, low, high, n, "logit (Boyd et al. 2013)", "higher", about)


def _cumulative(score_N: np.ndarray, positive_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(positives flagged, all flagged, threshold) at each different score, from the highest."""
    order = np.argsort(-score_N, kind="stable")
    score, positive = score_N[order], positive_N[order]
    last = np.append(np.nonzero(np.diff(score))[0], len(score) - 1)
    return positive.cumsum()[last].astype(np.float64), (last + 1).astype(np.float64), score[last]


def thresholds(score_N: np.ndarray, positive_N: np.ndarray, label: str, costs: Costs | None = None) -> dict[str, Any] | None:
    """Return curves and the table of thresholds, as JSON values; None with a single class.

    Args:
        score_N: probability of class 1.
        positive_N: whether an example is of class 1.
        label: name of class 1.
        costs: of errors; adds the cost an example at each threshold, and a row where it is lowest.
    """
    n, positives = len(score_N), int(positive_N.sum())
    if not 0 < positives < n or not np.isfinite(score_N).all():
        return None
    hits, flagged, at = _cumulative(score_N, positive_N)
    negatives = n - positives
    false = flagged - hits
    tpr, fpr, precision = hits / positives, false / negatives, hits / flagged
    best = int(np.argmax(tpr - fpr))
    area = float(np.trapezoid(np.append(0, tpr), np.append(0, fpr)))
    rows: list[dict[str, Any]] = []

    def row(why: str, i: int) -> None:
        one: dict[str, Any] = {
            "why": why, "threshold": float(at[i]), "flagged": float(flagged[i] / n), "precision": float(precision[i]),
            "recall": float(tpr[i]), "specificity": float(1 - fpr[i]), "lift": float(precision[i] / (positives / n)),
        }  # fmt: skip
        if costs is not None:
            one["cost"] = float((false[i] * costs["false_positive"] + (positives - hits[i]) * costs["false_negative"]) / n)
        rows.append(one)

    half = np.searchsorted(-at, -0.5, side="right") - 1
    if half >= 0:
        row("probability of at least one half", int(half))
    for wanted in (0.8, 0.9, 0.95):
        row(f"finds {wanted:.0%} of {label}", int(np.argmax(tpr >= wanted - 1e-12)))
    for wanted in (0.9, 0.95):
        fits = np.nonzero(1 - fpr >= wanted - 1e-12)[0]
        if len(fits):
            row(f"spares {wanted:.0%} of the others", int(fits[-1]))
    for share in (0.01, 0.05, 0.1):
        fits = np.nonzero(flagged <= max(1.0, share * n))[0]
        if len(fits):
            row(f"flags the {share:.0%} with the highest scores", int(fits[-1]))
    if costs is not None:
        total = false * costs["false_positive"] + (positives - hits) * costs["false_negative"]
        i = int(np.argmin(total))
        nothing = positives * costs["false_negative"]
        if total[i] < nothing:
            row("lowest cost", i)
    draw = _drawn(len(at))
    found: dict[str, Any] = {
        "positive": label, "prevalence": positives / n, "ks": float(tpr[best] - fpr[best]), "ks_threshold": float(at[best]), "gini": 2 * area - 1,
        "roc": {"fpr": [0.0, *fpr[draw].tolist()], "tpr": [0.0, *tpr[draw].tolist()]},
        "pr": {"recall": tpr[draw].tolist(), "precision": precision[draw].tolist()}, "rows": rows,
    }  # fmt: skip
    return found | ({"costs": dict(costs), "cost_of_flagging_none": positives * costs["false_negative"] / n} if costs is not None else {})


def _drawn(n: int) -> np.ndarray:
    """Up to `_POINTS` indices, the last included."""
    return np.unique(np.linspace(0, n - 1, min(n, _POINTS)).round().astype(np.int64))
