"""Metrics of a multi-label classifier: mean average precision, F1 over all labels and by label, subset accuracy, Hamming loss.

A label is predicted if its probability is at least one half. Conventions are scikit-learn's: average precision is the sum of
precision over steps of recall, equal scores taken together; micro averages count all pairs of example and label, macro averages run over
the labels that have examples. Runs no model.

Legend: N examples, K labels, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tauon.errors import DataError
from tauon.metrics.classification import one_class, placements, variance
from tauon.metrics.intervals import area_interval, generator, percentile, resample_sums, wilson
from tauon.metrics.metric import Metric, Scores

__all__ = ["average_precision", "multi_label"]

_CHUNK = 8_000_000
"""Resampled weights in memory at once."""
_ABOUT_AP = "sum over scores of precision times the step in recall"


def multi_label(
    scores_NK: np.ndarray, targets_NK: np.ndarray, labels: Sequence[str], *, confidence: float, resamples: int, seed: int
) -> Scores:
    """Return the fields of an `Evaluation` for a multi-label task. scores: probabilities; targets: 0 and 1, else DataError."""
    n, K = scores_NK.shape
    names = [str(label) for label in labels] if len(labels) == K else [str(k) for k in range(K)]
    if not np.isin(targets_NK, (0.0, 1.0)).all():
        raise DataError("the labels to evaluate on are not all 0 or 1. Fractional labels can be used in training only")
    broken = int((~np.isfinite(scores_NK)).any(1).sum())
    if broken:
        reason = f"{broken} of {n} examples have probabilities that are not finite"
        gone = {"map": Metric.undefined(reason, n=n, better="higher", about=_ABOUT_AP)}
        return {"primary": "map", "metrics": gone, "notes": [reason]}
    truth, guess = targets_NK > 0.5, scores_NK >= 0.5
    metrics, own = _precision(scores_NK.astype(np.float64), truth, confidence, resamples, seed)
    metrics |= _counted(truth, guess, confidence, resamples, seed)
    per_class = []
    for k in range(K):
        hits, support, predicted = int((truth[:, k] & guess[:, k]).sum()), int(truth[:, k].sum()), int(guess[:, k].sum())
        row = {"label": names[k], "support": support, "predicted": predicted}
        per_class.append(
            row
            | one_class(hits, support, predicted, confidence)
            | {"average_precision": own[k], "roc_auc": _area(scores_NK, truth, k, confidence)}
        )
    return {"primary": "map", "metrics": metrics, "per_class": per_class}


def average_precision(score_N: np.ndarray, truth_N: np.ndarray) -> float:
    """Average precision of a label that has at least one example; scikit-learn's `average_precision_score`."""
    order, ends = _sorted(score_N)
    return float(_weighted_precision(truth_N[order].astype(np.float64)[None], np.ones((1, len(order))), ends)[0])


def _sorted(score_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (examples from the highest score down, last position of each run of ties)."""
    order = np.argsort(-score_N, kind="stable")
    ranked = score_N[order]
    return order, np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))


def _weighted_precision(truth_RN: np.ndarray, weight_RN: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the average precision of examples that count `weight` times, in the order of their scores; NaN if no example has the label."""
    hits = (truth_RN * weight_RN).cumsum(1)[:, ends]
    shown = weight_RN.cumsum(1)[:, ends]
    total = hits[:, -1:]
    precision = np.divide(hits, shown, out=np.zeros_like(hits), where=shown > 0)
    steps = np.diff(hits, axis=1, prepend=0.0)
    value: np.ndarray = np.divide((precision * steps).sum(1), total[:, 0], out=np.full(len(hits), np.nan), where=total[:, 0] > 0)
    return value


def _precision(p_NK: np.ndarray, truth: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[dict[str, Metric], list[Metric]]:
    """Return (mean average precision, each label's own)."""
    n, K = p_NK.shape
    present = [k for k in range(K) if truth[:, k].any()]
    sortings = {k: _sorted(p_NK[:, k]) for k in present}
    values = {k: average_precision(p_NK[:, k], truth[:, k]) for k in present}
    drawn = np.empty((resamples, len(present)))
    rng = generator(seed, "multi-label")
    step = max(1, _CHUNK // n)
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        picked = rng.integers(0, n, size=(count, n), dtype=np.int64) + (np.arange(count) * n)[:, None]
        weight = np.bincount(picked.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)
        for at, k in enumerate(present):
            order, ends = sortings[k]
            drawn[first : first + count, at] = _weighted_precision(truth[order, k].astype(np.float64)[None], weight[:, order], ends)
    own = []
    for k in range(K):
        if k not in values:
            own.append(Metric.undefined("the label has no example", n=n, better="higher", about=_ABOUT_AP))
        else:
            interval = percentile(drawn[:, present.index(k)], confidence)
            own.append(Metric.bootstrapped(values[k], interval, n, "higher", _ABOUT_AP))
    about = "mean of the labels' average precision"
    if not present:
        return {"map": Metric.undefined("no label has an example", n=n, better="higher", about=about)}, own
    said = f"{K - len(present)} labels without examples are left out" if len(present) < K else ""
    known = ~np.isnan(drawn)  # a resample may have no example of a rare label: the label is left out of that mean
    counts = known.sum(1)
    means = np.divide(np.where(known, drawn, 0).sum(1), counts, out=np.full(resamples, np.nan), where=counts > 0)
    mean = math.fsum(values.values()) / len(values)
    return {"map": Metric.bootstrapped(mean, percentile(means, confidence), n, "higher", about, said)}, own


def _counted(truth: np.ndarray, guess: np.ndarray, confidence: float, resamples: int, seed: int) -> dict[str, Metric]:
    """Computed from true positives, predictions and supports alone: O(K)."""
    n, K = truth.shape
    hit, columns = truth & guess, []
    for part in (hit, guess, truth):
        columns.append(part.astype(np.float64))
    drawn = resample_sums(np.concatenate(columns, axis=1), resamples, generator(seed, "multi-label counts")).reshape(resamples, 3, K)
    ours = np.stack([c.sum(0) for c in columns])[None]
    present = np.asarray(truth.any(0))
    found: dict[str, Metric] = {}
    for name, figure, about in (
        ("f1_micro", _micro, "2 TP / (2 TP + FP + FN) over all pairs of example and label"),
        ("f1_macro", lambda t: _macro(t, present), "mean of the labels' F1"),
    ):
        value = float(figure(ours)[0])
        if math.isnan(value):
            found[name] = Metric.undefined("no label has an example", n=n, better="higher", about=about)
            continue
        found[name] = Metric.bootstrapped(value, percentile(figure(drawn), confidence), n, "higher", about)
    right = int((truth == guess).all(1).sum())
    about = "share of examples of which every label is right"
    found["subset_accuracy"] = Metric(right / n, *wilson(right, n, confidence), n, "Wilson", "higher", about)
    wrong_N = (truth != guess).mean(1)
    drawn_loss = resample_sums(wrong_N[:, None], resamples, generator(seed, "multi-label hamming"))[:, 0] / n
    about = "share of pairs of example and label that are wrong"
    found["hamming_loss"] = Metric.bootstrapped(math.fsum(wrong_N) / n, percentile(drawn_loss, confidence), n, "lower", about)
    return found


def _micro(tables_R3K: np.ndarray) -> np.ndarray:
    hit, guess, truth = tables_R3K.sum(2).T
    value: np.ndarray = np.divide(2 * hit, guess + truth, out=np.full(len(hit), np.nan), where=guess + truth > 0)
    return value


def _macro(tables_R3K: np.ndarray, present: np.ndarray) -> np.ndarray:
    hit, guess, truth = (tables_R3K[:, i, present] for i in range(3))
    if not hit.shape[1]:
        return np.full(len(hit), np.nan)
    value: np.ndarray = np.divide(2 * hit, guess + truth, out=np.zeros_like(hit), where=guess + truth > 0).mean(1)
    return value


def _area(scores_NK: np.ndarray, truth: np.ndarray, k: int, confidence: float) -> Metric:
    n, size = len(truth), int(truth[:, k].sum())
    about = "probability that a random example of the label scores above a random other one (ties count half)"
    if size in (0, n):
        return Metric.undefined(
            "the label has no example" if size == 0 else "every example has the label", n=n, better="higher", about=about
        )
    value, influence = placements(scores_NK[:, k].astype(np.float64), truth[:, k])
    interval, method = area_interval(value, variance(influence, truth[:, k].astype(np.int64), 2), min(size, n - size), confidence)
    return Metric(value, *interval, n, method, "higher", about)
