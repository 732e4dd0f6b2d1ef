"""Warnings of features that are likely to be the label in another dress: one that equals it, or that alone puts all rows in its order.

A look at the training rows; nothing is changed. What chance could do as well is not told.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lgamma, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["suspects"]

_CHANCE = 1e-6
"""A feature is told of when chance orders the rows of one of all features so with less than this probability."""
_BLOCK, _ROWS = 256, 1000
"""Columns and rows that are looked at first."""


def suspects(
    features_NF: NDArray[Any], targets_N: NDArray[Any], names: Sequence[str], classes: int, coded_F: NDArray[np.bool_] | None = None
) -> list[str]:
    """One warning a column, at most ten. `features_NF`: the training rows, before scaling; `names`: the column that each comes from;
    `classes`: 0 where targets are values; `coded_F`: which features are codes of categories, that have no order.
    """
    if targets_N.ndim != 1 or len(targets_N) < 10:
        return []
    wide = features_NF.shape[1]
    coded_F = np.zeros(wide, bool) if coded_F is None else coded_F
    some = np.unique(np.linspace(0, len(targets_N) - 1, min(_ROWS, len(targets_N))).astype(np.int64))
    found: dict[str, str] = {}
    for a in range(0, wide, _BLOCK):
        block = features_NF[some, a : a + _BLOCK]
        likely = np.flatnonzero(_in_order(block, targets_N[some], classes, wide) & ~coded_F[a : a + _BLOCK])
        for j in (a + likely).tolist():
            if len(some) == len(targets_N) or _in_order(features_NF[:, j : j + 1], targets_N, classes, wide)[0]:
                what = "the label's classes lie apart in it" if classes else "it rises or falls with the label in every row"
                found.setdefault(names[j], what)
        for j in (a + np.flatnonzero(coded_F[a : a + _BLOCK])).tolist():
            if classes and _one_to_one(features_NF[some, j], targets_N[some]) and _one_to_one(features_NF[:, j], targets_N):
                found.setdefault(names[j], "it equals the label, value for value")
    listed = [*found.items()]
    said = [f"column {name!r}: {what}. If it would not be known when predicting, leave it out (drop)" for name, what in listed[:10]]
    return said + ([f"{len(listed) - 10:,} more columns order the label"] if len(listed) > 10 else [])


def _in_order(block_NF: NDArray[Any], targets_N: NDArray[Any], classes: int, wide: int) -> NDArray[np.bool_]:
    """Which columns alone sort the rows by their target: each class in one interval, or values that only rise or only fall."""
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
