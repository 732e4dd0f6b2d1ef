"""Metrics of ordered classes: mean distance of ranks, quadratic-weighted kappa (Cohen 1968), accuracy.

The predicted class is the median of the probabilities: the first class at which their sum reaches one half. All follows from the
confusion matrix. Runs no model.

Legend: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tauon.metrics.classification import checked_probabilities, one_class
from tauon.metrics.intervals import generator, percentile, resample_cells, wilson
from tauon.metrics.metric import Better, Metric, Scores

__all__ = ["median_class", "ordinal"]

_ABOUT: dict[str, tuple[Better, str]] = {
    "rank_mae": ("lower", "mean |predicted class - true class|, in classes"),
    "rank_mae_macro": ("lower", "mean over the classes of their own mean |predicted - true|: seldom classes count as much"),
    "kappa_quadratic": ("higher", "1 - sum of squared distances / those of chance agreement (Cohen's kappa, quadratic weights)"),
}
_AT_ONCE = 4_000_000
"""Resampled counts in memory at once (32 MB)."""


def ordinal(scores_NC: np.ndarray, targets_N: np.ndarray, labels: Sequence[str], *, confidence: float, resamples: int, seed: int) -> Scores:
    """Return the fields of an `Evaluation` for an ordinal task; scores are probabilities, columns in the order of the classes."""
    n, classes = scores_NC.shape
    names = [str(label) for label in labels] if len(labels) == classes else [str(c) for c in range(classes)]
    p_NC = checked_probabilities(scores_NC, targets_N)
    if p_NC is None:
        reason = f"{int((~np.isfinite(scores_NC)).any(1).sum())} of {n} examples have probabilities that are not finite"
        gone = {k: Metric.undefined(reason, n=n, better=b, about=a) for k, (b, a) in _ABOUT.items()}
        return {"primary": "rank_mae", "metrics": gone, "notes": [reason]}
    predicted_N = median_class(p_NC)
    counts_CC = np.bincount(targets_N * classes + predicted_N, minlength=classes * classes).reshape(classes, classes)
    ours, theirs = _figures(counts_CC[None]), _resampled(counts_CC, resamples, seed)
    metrics: dict[str, Metric] = {}
    for name, (better, about) in _ABOUT.items():
        if np.isnan(ours[name][0]):
            metrics[name] = Metric.undefined("all examples and predictions are of one class", n=n, better=better, about=about)
        else:
            metrics[name] = Metric.bootstrapped(float(ours[name][0]), percentile(theirs[name], confidence), n, better, about)
    off = np.abs(np.arange(classes)[:, None] - np.arange(classes))
    for name, reach, about in (
        ("accuracy", 0, "share of examples whose median class is the true one"),
        ("within_one", 1, "share of examples whose median class is at most one off"),
    ):
        right = int(counts_CC[off <= reach].sum())
        metrics[name] = Metric(right / n, *wilson(right, n, confidence), n, "Wilson", "higher", about)
    per_class = [
        {"label": names[c], "support": int(counts_CC[c].sum()), "predicted": int(counts_CC[:, c].sum())}
        | one_class(int(counts_CC[c, c]), int(counts_CC[c].sum()), int(counts_CC[:, c].sum()), confidence)
        for c in range(classes)
    ]
    confusion = {"labels": names, "counts": counts_CC.tolist()}
    return {"primary": "rank_mae", "metrics": metrics, "per_class": per_class, "confusion": confusion}


def median_class(p_NC: np.ndarray) -> np.ndarray:
    """Return the class at which the cumulative probability (float64) reaches a half: it minimises the expected distance."""
    found: np.ndarray = (p_NC.cumsum(1) < 0.5 * p_NC.sum(1, keepdims=True)).sum(1).clip(max=p_NC.shape[1] - 1)
    return found


def _resampled(counts_CC: np.ndarray, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Return `_figures` of resampled examples, in chunks."""
    rng, step = generator(seed, "ordinal"), max(1, _AT_ONCE // counts_CC.size)
    parts = [
        _figures(resample_cells(counts_CC.ravel(), min(step, resamples - start), rng).reshape(-1, *counts_CC.shape))
        for start in range(0, resamples, step)
    ]
    return {name: np.concatenate([p[name] for p in parts]) for name in _ABOUT}


def _figures(counts_RCC: np.ndarray) -> dict[str, np.ndarray]:
    """Return each metric of each table; NaN if it is undefined."""
    classes = counts_RCC.shape[1]
    counts = counts_RCC.astype(np.float64)
    away = np.abs(np.arange(classes)[:, None] - np.arange(classes)).astype(np.float64)
    n = counts.sum((1, 2))
    support = counts.sum(2)
    distance = (counts * away).sum(2)
    there = support > 0
    own = np.divide(distance, support, out=np.zeros_like(distance), where=there)
    chance = np.einsum("ri,rj,ij->r", support, counts.sum(1), away**2) / n
    squared = (counts * away**2).sum((1, 2))
    return {
        "rank_mae": distance.sum(1) / n,
        "rank_mae_macro": own.sum(1) / there.sum(1),
        "kappa_quadratic": 1 - np.divide(squared, chance, out=np.full_like(squared, np.nan), where=chance > 0),
    }
