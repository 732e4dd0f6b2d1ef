"""Labels that are probably wrong, by confident learning (Northcutt, Jiang & Chuang 2021, arXiv:1911.00068).

The count of label i whose true class is j is estimated from how often the probability of j reaches the mean that examples labelled j have; then of each
label the examples with the largest margin are taken, as many as were counted (prune by noise rate). The same result as cleanlab's `find_label_issues`.
Does not make the probabilities: they must come from models that did not see the example (`out_of_fold`).

Shape legend: N examples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError

__all__ = ["LabelErrors", "find_label_errors"]

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class LabelErrors:
    """Examples whose labels are probably wrong, the least plausible label first."""

    examples: NDArray[np.int64]
    """Their numbers."""
    suggested: NDArray[np.int64]
    """The most probable class of each."""
    plausible: NDArray[np.float64]
    """Probability of the given label of each."""
    joint: NDArray[np.int64]
    """(K, K) estimated count of each given label (row) and true class (column)."""


def find_label_errors(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> LabelErrors:
    """Return the examples whose labels are probably wrong.

    Args:
        labels: (N) classes from 0.
        probabilities: (N, K) of each class, from models that were not fitted on the example.

    Raises:
        DataError: shapes that do not fit, a label that is no class, a value that is no probability, or one class alone.

    >>> labels = np.array([0] * 5 + [1] * 5)
    >>> probability = np.array([.1, .2, .1, .2, .9, .8, .9, .9, .8, .9])  # of class 1
    >>> find_label_errors(labels, np.stack([1 - probability, probability], 1)).examples.tolist()
    [4]
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    _check(labels, probabilities)
    joint = _confident_joint(labels, probabilities)
    counts = _kept_in_every_class(joint.T)
    wrong = np.zeros(len(labels), bool)
    for label in range(probabilities.shape[1]):
        mine = np.flatnonzero(labels == label)
        if len(mine) <= 1:
            continue
        for true in range(probabilities.shape[1]):
            if true != label and counts[true, label] > 0:
                margin = probabilities[mine, true] - probabilities[mine, label]
                wrong[mine[np.argsort(-margin)[: counts[true, label]]]] = True
    given = probabilities[np.arange(len(labels)), labels]
    raised = probabilities.copy()
    raised[np.arange(len(labels)), labels] += _TOLERANCE
    wrong &= raised.argmax(axis=1) != labels  # the most probable class is no error
    found = np.flatnonzero(wrong)
    found = found[np.argsort(given[found], kind="stable")]
    return LabelErrors(found, probabilities[found].argmax(axis=1), given[found], joint)


def _check(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> None:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise DataError(f"labels have shape {labels.shape} and probabilities {probabilities.shape}; expected (N) and (N, K)")
    classes = probabilities.shape[1]
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"labels are {labels.dtype} from {labels.min()} to {labels.max()}; expected whole numbers from 0 to {classes - 1}")
    bad = np.flatnonzero(~np.isfinite(probabilities).all(axis=1) | (probabilities < 0).any(axis=1) | (probabilities > 1).any(axis=1))
    if len(bad):
        raise DataError(f"row {bad[0]} of the probabilities is {probabilities[bad[0]].tolist()}; expected values from 0 to 1")
    if len(np.unique(labels)) < 2:
        raise DataError("all labels are one class: there is nothing that could be wrong")


def _confident_joint(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return (K, K) counts of given label and true class, scaled so that labels have their real counts."""
    K = probabilities.shape[1]
    sizes = np.bincount(labels, minlength=K)
    mean = [float(np.mean(probabilities[labels == k, k])) if sizes[k] else 2.0 for k in range(K)]
    thresholds = np.maximum(mean, 2 * _TOLERANCE)
    confident = probabilities >= thresholds - _TOLERANCE
    number = confident.sum(axis=1)
    guess = np.where(number > 1, probabilities.argmax(axis=1), confident.argmax(axis=1))
    some = number > 0
    joint = np.bincount(labels[some] * K + guess[some], minlength=K * K).reshape(K, K).astype(np.float64)
    np.fill_diagonal(joint, joint.diagonal().clip(min=1))
    joint = np.asfortranarray(joint)  # sums in cleanlab's order: which of two equal counts is rounded up depends on the last bit
    scaled = (joint.T / joint.sum(axis=1) * sizes).T
    return _rounded(scaled / scaled.sum() * sizes.sum())


def _kept_in_every_class(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (true, given) counts of which each class keeps at least one right label, at the cost of the wrong ones."""
    diagonal = np.maximum(counts.diagonal(), 1)
    wrong_kinds = np.maximum(np.count_nonzero(counts, axis=0) - 1.0, 1.0)
    left = np.maximum(counts - (diagonal - counts.diagonal()) / wrong_kinds, 0)
    np.fill_diagonal(left, diagonal)
    whole: NDArray[np.int64] = left.astype(np.int64)
    return whole


def _rounded(counts: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return whole numbers with the (rounded) sums of the rows, changing those that rounding changed most."""
    out = counts.round()
    for row, values in zip(out, counts, strict=True):
        missing = round(float(values.sum())) - round(float(row.sum()))
        while missing:
            step = 1 if missing > 0 else -1
            places = np.argsort(values - row)[::-step][: min(abs(missing), len(row))]
            row[places] += step
            missing = round(float(values.sum())) - round(float(row.sum()))
    return out.astype(np.int64)
