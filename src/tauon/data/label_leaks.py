"""Warnings about features that probably leak the label: equal to it, or alone sufficient to order all rows by it.

Looks at the training rows; changes nothing. Features that could do so by chance are not reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lgamma, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["suspects"]

_CHANCE = 1e-6
"""Report a feature if random order would do as well in any of all features with less than this probability."""
_BLOCK, _ROWS = 256, 1000
"""Columns and rows that are checked first."""


def suspects(
    features_NF: NDArray[Any], targets_N: NDArray[Any], names: Sequence[str], classes: int, coded_F: NDArray[np.bool_] | None = None
) -> list[str]:
    """Return one warning per column, at most ten. `features_NF`: the training rows, before scaling; `names`: original column of each feature;
    `classes`: 0 if targets are values; `coded_F`: which features are category codes, which have no order.
    """
    if targets_N.ndim != 1 or len(targets_N) < 10:
        return []
    wide = features_NF.shape[1]
    coded_F = np.zeros(wide, bool) if coded_F is None else coded_F
    some = np.unique(np.linspace(0, len(targets_N) - 1, min(_ROWS, len(targets_N))).astype(np.int64))
    leaks: dict[str, str] = {}
    for a in range(0, wide, _BLOCK):
        block = features_NF[some, a : a + _BLOCK]
        likely = np.flatnonzero(_in_order(block, targets_N[some], classes, wide) & ~coded_F[a : a + _BLOCK])
        for j in (a + likely).tolist():
            if len(some) == len(targets_N) or _in_order(features_NF[:, j : j + 1], targets_N, classes, wide)[0]:
                reason = "it separates the label's classes completely" if classes else "it rises or falls with the label in every row"
                leaks.setdefault(names[j], reason)
        for j in (a + np.flatnonzero(coded_F[a : a + _BLOCK])).tolist():
            if classes and _one_to_one(features_NF[some, j], targets_N[some]) and _one_to_one(features_NF[:, j], targets_N):
                leaks.setdefault(names[j], "it equals the label in every row")
    listed = [*leaks.items()]
    warnings = [
        f"column {name!r}: {reason}. If it is not known at prediction time, leave it out with data.source.drop"
        for name, reason in listed[:10]
    ]
    return warnings + ([f"{len(listed) - 10:,} more columns leak the label"] if len(listed) > 10 else [])


def _in_order(block_NF: NDArray[Any], targets_N: NDArray[Any], classes: int, wide: int) -> NDArray[np.bool_]:
    """Return which columns alone sort the rows by target: each class in one interval, or monotonic values."""
    order_NF = np.argsort(block_NF, axis=0, kind="stable")
    x_NF = np.take_along_axis(block_NF, order_NF, axis=0)
    y_NF = targets_N[order_NF]
    tied_NF = np.diff(x_NF, axis=0) == 0
    step_NF = np.diff(y_NF, axis=0)
    n = len(targets_N)
    if classes:
        counts = np.bincount(targets_N, minlength=classes)
        present = int((counts > 0).sum())
        chance = lgamma(present + 1) + sum(lgamma(c + 1) for c in counts) - lgamma(n + 1) + log(wide)
        if chance > log(_CHANCE):
            return np.zeros(block_NF.shape[1], bool)
        apart: NDArray[np.bool_] = ((step_NF != 0).sum(axis=0) == present - 1) & ~(tied_NF & (step_NF != 0)).any(axis=0)
        return apart
    if log(2 * wide) - lgamma(min(n, len(np.unique(targets_N))) + 1) > log(_CHANCE):
        return np.zeros(block_NF.shape[1], bool)
    varied = (~tied_NF).sum(axis=0) >= 9
    even = ~(tied_NF & (step_NF != 0)).any(axis=0)
    found: NDArray[np.bool_] = varied & even & ((step_NF >= 0).all(axis=0) | (step_NF <= 0).all(axis=0))
    return found


def _one_to_one(codes_N: NDArray[Any], targets_N: NDArray[Any]) -> bool:
    pairs = np.unique(np.stack([codes_N, targets_N.astype(np.float64)], axis=1), axis=0)
    return len(pairs) == len(np.unique(codes_N)) == len(np.unique(targets_N))
