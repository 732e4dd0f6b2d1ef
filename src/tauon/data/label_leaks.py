"""Warnings of features that are likely to be the label in another dress: one that equals it, or that alone puts all rows in its order.

A look at the training rows as they are encoded; nothing is changed. What chance could do as well is not told.
"""

from __future__ import annotations

from math import lgamma, log

import numpy as np
from numpy.typing import NDArray

from tauon.data.columns import Encoder

__all__ = ["suspects"]

_CHANCE = 1e-6
"""A feature is told of when chance orders the rows of one of all features so with less than this probability."""
_BLOCK = 256


def suspects(
    features_NF: NDArray[np.float64], targets_N: NDArray[np.int64] | NDArray[np.float64], encoder: Encoder, classes: int
) -> list[str]:
    """One warning a feature, at most ten. `features_NF`: the training rows; `classes`: 0 where targets are values."""
    if targets_N.ndim != 1 or len(targets_N) < 10:
        return []
    coded = np.array([bool(k) for c in encoder.columns for _, k, _ in c.outputs()], bool)
    origin = [c.name for c in encoder.columns for _ in c.outputs()]
    kinds = [c.encoding == "target" for c in encoder.columns for _ in c.outputs()]
    found: dict[str, str] = {}
    for a in range(0, features_NF.shape[1], _BLOCK):
        block = features_NF[:, a : a + _BLOCK]
        order_NF = np.argsort(block, axis=0, kind="stable")
        for j in np.flatnonzero(_in_order(block, order_NF, targets_N, classes, features_NF.shape[1])).tolist():
            if not coded[a + j] and not kinds[a + j]:
                what = "the label's classes lie apart in it" if classes else "it rises or falls with the label in every row"
                found.setdefault(origin[a + j], what)
        for j in np.flatnonzero(coded[a : a + _BLOCK]).tolist():
            if classes and _one_to_one(block[:, j], targets_N):
                found.setdefault(origin[a + j], "it equals the label, value for value")
    listed = [*found.items()]
    said = [f"column {name!r}: {what}. If it would not be known when predicting, leave it out (drop)" for name, what in listed[:10]]
    return said + ([f"{len(listed) - 10:,} more columns order the label"] if len(listed) > 10 else [])


def _in_order(
    block_NF: NDArray[np.float64], order_NF: NDArray[np.int64], targets_N: NDArray[np.int64] | NDArray[np.float64], classes: int, wide: int
) -> NDArray[np.bool_]:
    """Which columns alone sort the rows by their target: each class in one interval, or values that only rise or only fall."""
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


def _one_to_one(codes_N: NDArray[np.float64], targets_N: NDArray[np.int64] | NDArray[np.float64]) -> bool:
    pairs = np.unique(np.stack([codes_N, targets_N.astype(np.float64)], axis=1), axis=0)
    return len(pairs) == len(np.unique(codes_N)) == len(np.unique(targets_N))
