"""Metrics of a classifier from its probabilities: accuracy, precision, recall, F1, ROC-AUC, log loss, Brier, calibration.

Conventions (scikit-learn's if it has one): the predicted class is the most probable, the first of ties; macro averages are
over classes that have examples; a class that was never predicted counts as precision 0 in the macro average, with a note;
an undefined metric is None with its reason. Runs no model.

Legend: N examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tauon.errors import DataError
from tauon.metrics.intervals import absolute_sum_interval, area_interval, generator, percentile, resample_cells, resample_sums, wilson
from tauon.metrics.metric import Metric, Scores
from tauon.metrics.thresholds import Costs, average_precision, thresholds

__all__ = ["BINS", "MANY", "WHOLE", "ConfusionCounts", "checked_probabilities", "classification", "one_class", "placements", "variance"]

BINS = 15
"""Equal-width bins of confidence (Guo et al. 2017, arXiv:1706.04599)."""
MANY = 20
"""Number of classes from which top-5 accuracy is reported by default."""
UNBALANCED = 1 / 3
"""Share of the smaller of two classes below which accuracy is not the primary metric."""
WHOLE = 300
"""Number of classes up to which the whole confusion matrix is stored."""
_AT_ONCE = 4_000_000
"""Resampled counts in memory at once (32 MB per array)."""
_TINY = float(np.finfo(np.float32).tiny)
_LOSS_ABOUT = "mean -log p(true class), nats"


def classification(
    scores_NC: np.ndarray, targets_N: np.ndarray, labels: Sequence[str], *, confidence: float, resamples: int, seed: int,
    top_k: Sequence[int] | None = None, costs: Costs | None = None,
) -> Scores:  # fmt: skip
    """Return the fields of an `Evaluation` for a classifier.

    The primary metric is accuracy; of two classes of which one has less than a third of the examples it is ROC-AUC, since there always naming the other
    class is accurate and useless.

    scores: probabilities, rows sum to 1. targets: class indices. costs: of errors, for two classes. Raises DataError if scores are not probabilities and
    if targets are out of range.
    """
    n, classes = scores_NC.shape
    names = [str(label) for label in labels] if len(labels) == classes else [str(c) for c in range(classes)]
    broken = int((~np.isfinite(scores_NC)).any(1).sum())
    p_NC = checked_probabilities(scores_NC, targets_N)
    if p_NC is None:
        return _broken(n, broken, names)
    predicted_N = p_NC.argmax(1)
    counts = ConfusionCounts.of(targets_N, predicted_N, classes)
    areas = _areas(p_NC, targets_N, confidence)
    calibration, losses = _probabilistic(p_NC, targets_N, predicted_N, confidence, resamples, seed)
    metrics = {"accuracy": _accuracy(counts, confidence)}
    metrics |= _ranking(p_NC, targets_N, top_k if top_k is not None else (5,) if classes >= MANY else (), confidence, resamples, seed)
    metrics |= _averages(counts, _resampled_averages(counts, resamples, seed), confidence)
    metrics["roc_auc"] = areas.pop()
    found: Scores = {"primary": "accuracy"}
    if classes == 2:
        positive_N = targets_N == 1
        metrics["average_precision"] = average_precision(p_NC[:, 1], positive_N, confidence)
        found["curves"] = thresholds(p_NC[:, 1], positive_N, names[1], costs)
        metrics["roc_auc"] = replace(
            metrics["roc_auc"], about=f"probability that a random {names[1]} scores above a random {names[0]} (ties count half)"
        )
        if min(positive_N.mean(), 1 - positive_N.mean()) < UNBALANCED and metrics["roc_auc"].value is not None:
            found["primary"] = "roc_auc"
    metrics |= losses
    per_class = [
        {"label": names[c], "support": support, "predicted": predicted}
        | one_class(hits, support, predicted, confidence)
        | {"roc_auc": areas[c]}
        for c, (hits, support, predicted) in enumerate(zip(*(a.tolist() for a in counts.by_class()), strict=True))
    ]
    found |= {"metrics": metrics, "per_class": per_class, "confusion": {"labels": names} | counts.to_json(), "calibration": calibration}
    return found


def checked_probabilities(scores_NC: np.ndarray, targets_N: np.ndarray) -> np.ndarray | None:
    """Return scores in float64; None if some are not finite. DataError for targets out of range and scores that are not probabilities."""
    classes = scores_NC.shape[1]
    if targets_N.min() < 0 or targets_N.max() >= classes:
        raise DataError(
            f"class indices range from {targets_N.min()} to {targets_N.max()}, but the model has {classes} classes, 0 to {classes - 1}"
        )
    if not np.isfinite(scores_NC).all():
        return None
    p_NC = scores_NC.astype(np.float64)
    if p_NC.min() < -1e-3 or np.abs(p_NC.sum(1) - 1).max() > 1e-2:
        raise DataError(
            f"scores are not probabilities: smallest {p_NC.min():.4g}, row sums {p_NC.sum(1).min():.4g} to {p_NC.sum(1).max():.4g}"
        )
    return p_NC


def _broken(n: int, broken: int, names: list[str]) -> Scores:
    reason = f"{broken} of {n} examples have probabilities that are not finite"
    about = {"accuracy": "share of examples whose most probable class is the true one", "log_loss": _LOSS_ABOUT}
    metrics = {k: Metric.undefined(reason, n=n, better="higher" if k == "accuracy" else "lower", about=a) for k, a in about.items()}
    return {"primary": "accuracy", "metrics": metrics, "notes": [reason]}


# ---------------------------------------------------------------------------------------------- from the confusion matrix


@dataclass(frozen=True)
class ConfusionCounts:
    """A confusion matrix as its non-empty cells, at most as many as examples: with 10,000 classes the full one would have 1e8."""

    classes: int
    true_K: np.ndarray
    guess_K: np.ndarray
    """Sorted by (true, guess)."""
    count_K: np.ndarray

    @classmethod
    def of(cls, targets_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> ConfusionCounts:
        """Counted from the true and the predicted class of each example."""
        cell_K, count_K = np.unique(targets_N.astype(np.int64) * classes + predicted_N, return_counts=True)
        return cls(classes, cell_K // classes, cell_K % classes, count_K)

    def by_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(hits, support, predicted), C each."""
        same = self.true_K == self.guess_K
        hits, support, predicted = (np.zeros(self.classes, np.int64) for _ in range(3))
        hits[self.true_K[same]] = self.count_K[same]
        np.add.at(support, self.true_K, self.count_K)
        np.add.at(predicted, self.guess_K, self.count_K)
        return hits, support, predicted

    def to_json(self) -> dict[str, Any]:
        """`counts[true][predicted]`; above `WHOLE` classes `cells`, [true, predicted, count] of non-empty cells."""
        if self.classes > WHOLE:
            return {"cells": np.stack([self.true_K, self.guess_K, self.count_K], 1).tolist()}
        counts_CC = np.zeros((self.classes, self.classes), np.int64)
        counts_CC[self.true_K, self.guess_K] = self.count_K
        return {"counts": counts_CC.tolist()}


def _accuracy(counts: ConfusionCounts, confidence: float) -> Metric:
    n, right = int(counts.count_K.sum()), int(counts.by_class()[0].sum())
    about = "share of examples whose most probable class is the true one"
    return Metric(right / n, *wilson(right, n, confidence), n, "Wilson", "higher", about)


def one_class(hit: int, support: int, predicted: int, confidence: float) -> dict[str, Metric]:
    """Metrics of a class with `support` examples that was predicted `predicted` times, `hit` of them correctly.

    Precision and recall are proportions (of the predicted, of the true): Wilson. F1 = 2 J / (1 + J) rises with
    J = TP / (TP + FP + FN), a proportion too (Hand et al. 2021, arXiv:2008.00103): Wilson's ends, carried over.
    """
    either = support + predicted - hit
    found = {}
    for name, of, about, empty in (
        ("precision", predicted, "TP / (TP + FP)", "the class was never predicted"),
        ("recall", support, "TP / (TP + FN)", "the class has no example"),
        ("f1", either, "2 TP / (2 TP + FP + FN)", "the class has no example and was never predicted"),
    ):
        if of == 0 or (support == 0 and name == "f1"):
            found[name] = Metric.undefined(empty if of == 0 else "the class has no example", n=of, better="higher", about=about)
            continue
        value, (low, high), method = hit / of, wilson(hit, of, confidence), "Wilson"
        if name == "f1":
            value, low, high, method = (
                2 * hit / (support + predicted),
                2 * low / (1 + low),
                2 * high / (1 + high),
                "Wilson of TP / (TP + FP + FN)",
            )
        found[name] = Metric(value, low, high, of, method, "higher", about)
    return found


def _resampled_averages(counts: ConfusionCounts, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """By name (`f1_macro`, ...): each average over resampled examples, `resamples` values; in chunks."""
    rng, true, guess = generator(seed, "confusion"), counts.true_K, counts.guess_K
    same, order = true == guess, np.argsort(guess, kind="stable")
    rows, first_of_row = np.unique(true, return_index=True)  # cells of one row are neighbours
    columns, first_of_column = np.unique(guess[order], return_index=True)
    step = max(1, _AT_ONCE // (counts.classes + len(true)))
    found: list[dict[str, np.ndarray]] = []
    for start in range(0, resamples, step):
        drawn = resample_cells(counts.count_K, min(step, resamples - start), rng)
        hits, support, predicted = (np.zeros((len(drawn), counts.classes)) for _ in range(3))
        hits[:, true[same]] = drawn[:, same]
        support[:, rows] = np.add.reduceat(drawn, first_of_row, axis=1)
        predicted[:, columns] = np.add.reduceat(drawn[:, order], first_of_column, axis=1)
        weights = {"macro": (support > 0).astype(np.float64), "weighted": support}
        ours = _scores(hits, support, predicted)
        found.append({f"{k}_{how}": (v * w).sum(1) / w.sum(1) for how, w in weights.items() for k, v in ours.items()})
    return {name: np.concatenate([f[name] for f in found]) for name in found[0]} if found else {}


def _scores(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Per class, last axis C: precision, recall, F1, 0 where the denominator is 0 (the callers know where)."""
    return {
        "precision": np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0),
        "recall": np.divide(hits, support, out=np.zeros_like(hits), where=support > 0),
        "f1": np.divide(2 * hits, support + predicted, out=np.zeros_like(hits), where=support + predicted > 0),
    }


def _averages(counts: ConfusionCounts, drawn: dict[str, np.ndarray], confidence: float) -> dict[str, Metric]:
    """Macro (plain mean over classes with examples) and weighted (by support) precision, recall, F1."""
    hits, support, predicted = (a.astype(np.float64) for a in counts.by_class())
    n = int(support.sum())
    absent = int((support == 0).sum())
    silent = int(((support > 0) & (predicted == 0)).sum())
    ours = _scores(hits, support, predicted)
    found = {}
    for how in ("macro", "weighted"):
        weights = (support > 0).astype(np.float64) if how == "macro" else support
        for name in ("precision", "recall", "f1"):
            if (name, how) == ("recall", "weighted"):
                continue  # it is accuracy
            value = math.fsum(ours[name] * weights) / math.fsum(weights)
            about = f"mean of the classes' {name.replace('f1', 'F1')}" + (", weighted by their examples" if how == "weighted" else "")
            said = [f"{absent} classes without examples are left out"] if absent else []
            if silent and name == "precision":
                said.append(f"{silent} classes that were never predicted count as 0")
            interval = percentile(drawn.get(f"{name}_{how}", np.empty(0)), confidence)
            found[f"{name}_{how}"] = Metric.bootstrapped(value, interval, n, "higher", about, "; ".join(said))
    return found


# ---------------------------------------------------------------------------------------------- ranking


def _ranking(
    p_NC: np.ndarray, targets_N: np.ndarray, top_k: Sequence[int], confidence: float, resamples: int, seed: int
) -> dict[str, Metric]:
    """Rank of the true class among all classes: top-k accuracy, and with it the mean reciprocal rank. Of ties the first class
    ranks higher, as for the predicted class.
    """
    n, classes = p_NC.shape
    if not top_k:
        return {}
    own = p_NC[np.arange(n), targets_N][:, None]
    rank_N = (p_NC > own).sum(1) + ((p_NC == own) & (np.arange(classes) < targets_N[:, None])).sum(1) + 1
    found = {}
    for k in top_k:
        right = int((rank_N <= k).sum())
        about = f"share of examples whose true class is among the {k} most probable"
        found[f"top_{k}_accuracy"] = Metric(right / n, *wilson(right, n, confidence), n, "Wilson", "higher", about)
    each = 1.0 / rank_N
    drawn = resample_sums(each[:, None], resamples, generator(seed, "ranks"))[:, 0] / n
    about = "mean of 1 / (place of the true class among all, by probability)"
    found["reciprocal_rank"] = Metric.bootstrapped(math.fsum(each) / n, percentile(drawn, confidence), n, "higher", about)
    return found


def _areas(p_NC: np.ndarray, targets_N: np.ndarray, confidence: float) -> list[Metric]:
    """ROC-AUC of each class against the rest, and the main one: class 1's for two classes, the macro mean otherwise.

    The mean's variance is DeLong's, with every class's placement values added up per example before squaring, so that the
    areas' covariances are in it; for two classes it is DeLong's formula.
    """
    n, classes = p_NC.shape
    sizes = np.bincount(targets_N, minlength=classes)
    about = "probability that a random example of the class scores above a random other one (ties count half)"
    areas: list[Metric] = []
    influences = np.zeros(n)
    present = [c for c in range(classes) if 0 < sizes[c] < n]
    scored = [1] if classes == 2 and present else present
    values = {}
    for c in range(classes):
        if c not in present:
            reason = "the class has no example" if sizes[c] == 0 else "every example is of this class"
            areas.append(Metric.undefined(reason, n=n, better="higher", about=about))
            continue
        value, influence = placements(p_NC[:, c], targets_N == c)
        values[c] = value
        smaller = int(min(sizes[c], n - sizes[c]))
        (low, high), method = area_interval(value, variance(influence, (targets_N == c).astype(np.int64), 2), smaller, confidence)
        areas.append(Metric(value, low, high, n, method, "higher", about))
        if c in scored:
            influences += influence / len(scored)
    if not scored:
        areas.append(Metric.undefined("all examples are of one class", n=n, better="higher", about=about))
    elif classes == 2:
        areas.append(replace(areas[1], about="probability that a random example of class 1 scores above one of class 0 (ties count half)"))
    else:
        mean = math.fsum(values.values()) / len(values)
        smaller = int(min(sizes[scored]))
        (low, high), method = area_interval(mean, variance(influences, targets_N, classes), smaller, confidence)
        said = f"{classes - len(scored)} classes without examples are left out" if len(scored) < classes else ""
        areas.append(Metric(mean, low, high, n, method, "higher", "mean over classes of ROC-AUC, each class against the rest", said))
    return areas


def placements(score_N: np.ndarray, positive_N: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the area, and each example's influence on it: (placement - area) / size of its own side. Sum of squares ~ variance."""
    pos, neg = np.sort(score_N[positive_N]), np.sort(score_N[~positive_N])
    below = np.searchsorted(neg, score_N[positive_N], "left") + np.searchsorted(neg, score_N[positive_N], "right")
    area = int(below.sum()) / (2 * len(pos) * len(neg))  # whole numbers until the one division
    above = 2 * len(pos) - np.searchsorted(pos, score_N[~positive_N], "left") - np.searchsorted(pos, score_N[~positive_N], "right")
    influence = np.empty(len(score_N))
    influence[positive_N] = (below / (2 * len(neg)) - area) / len(pos)
    influence[~positive_N] = (above / (2 * len(pos)) - area) / len(neg)
    return area, influence


def variance(influence_N: np.ndarray, group_N: np.ndarray, groups: int) -> float:
    """Sum of squared influences, each group's by m / (m - 1): exactly DeLong's variance for two groups; NaN for a group of one."""
    sizes = np.bincount(group_N, minlength=groups)
    squares = np.bincount(group_N, weights=influence_N**2, minlength=groups)
    there = sizes > 0
    if (sizes[there] == 1).any():
        return math.nan
    return float((squares[there] * sizes[there] / (sizes[there] - 1)).sum())


# ---------------------------------------------------------------------------------------------- probabilities


def _probabilistic(
    p_NC: np.ndarray, targets_N: np.ndarray, predicted_N: np.ndarray, confidence: float, resamples: int, seed: int
) -> tuple[dict[str, Any], dict[str, Metric]]:
    """Reliability bins; log loss, Brier score and expected calibration error, all from one set of resamples."""
    n, classes = p_NC.shape
    rows = np.arange(n)
    loss_N = -np.log(np.maximum(p_NC[rows, targets_N], _TINY))
    # sum_c (p_c - [c = true])^2, halved for two classes: there it is the usual (p_1 - y)^2
    brier_N = ((p_NC**2).sum(1) - 2 * p_NC[rows, targets_N] + 1) / (2 if classes == 2 else 1)
    top_N, right_N = p_NC[rows, predicted_N], (predicted_N == targets_N).astype(np.float64)
    bin_N = np.clip(np.ceil(top_N * BINS).astype(np.int64) - 1, 0, BINS - 1)
    columns = np.zeros((n, BINS + 2))
    columns[rows, bin_N] = right_N - top_N
    columns[:, BINS], columns[:, BINS + 1] = loss_N, brier_N
    drawn = resample_sums(columns, resamples, generator(seed, "probabilities")) / n
    clipped = int((p_NC[rows, targets_N] < _TINY).sum())
    said = f"{clipped} probabilities below {_TINY:.1e} count as that" if clipped else ""
    brier_about = "mean squared distance of the probabilities from the truth" + (
        ", (p - y)^2" if classes == 2 else ", summed over classes (0 to 2)"
    )
    ece_about = f"mean |accuracy - confidence| over {BINS} equal-width bins of the predicted class's probability"
    gaps = np.array([math.fsum(columns[:, b]) for b in range(BINS)]) / n
    ece = math.fsum(np.abs(gaps))
    interval = absolute_sum_interval(gaps, drawn[:, :BINS], n, confidence, 1.0)
    ece_metric = Metric.bootstrapped(ece, interval, n, "lower", ece_about)
    if interval is not None:
        ece_metric = replace(ece_metric, method="bootstrap over examples, corrected for the bias of |.|")
    losses = {
        "log_loss": Metric.bootstrapped(math.fsum(loss_N) / n, percentile(drawn[:, BINS], confidence), n, "lower", _LOSS_ABOUT, said),
        "brier": Metric.bootstrapped(math.fsum(brier_N) / n, percentile(drawn[:, BINS + 1], confidence), n, "lower", brier_about),
        "ece": ece_metric,
    }
    bins = []
    for b in range(BINS):
        inside = bin_N == b
        size, right = int(inside.sum()), int(right_N[inside].sum())
        row: dict[str, Any] = {"low": b / BINS, "high": (b + 1) / BINS, "n": size}
        ends = wilson(right, size, confidence) if size else (None, None)
        row["confidence"] = math.fsum(top_N[inside]) / size if size else None
        row["accuracy"] = right / size if size else None
        row["accuracy_low"], row["accuracy_high"] = ends
        bins.append(row)
    return {"bins": bins, "about": "confidence: probability of the predicted class; accuracy: how often it was right"}, losses
