"""A category as the mean target of its training rows, shrunk by empirical Bayes (Micci-Barreca 2001), as scikit-learn's TargetEncoder.

Independent of tables: `columns.py` decides which column is encoded this way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.counter import bits, key

__all__ = ["category_means", "out_of_fold"]

Floats = NDArray[np.float64]


def category_means(
    codes: NDArray[np.int64], targets: NDArray[Any], known: int, classes: int, smooth: float | None
) -> tuple[tuple[float, ...], ...]:
    """Return the mean target of code 0 (overall), 1, ..., `known`, shrunk towards the overall mean; one column, or one for each of > 2 classes.

    Empirical Bayes (Micci-Barreca 2001): lambda = n v / (n v + v_c), v the variance of the targets, v_c that within the category.
    """
    wanted = [targets == c for c in range(classes)] if classes > 2 else [targets == 1] if classes else [targets]
    columns = []
    for y in (np.asarray(w, np.float64) for w in wanted):
        mean, variance = y.mean(), y.var()
        n = np.bincount(codes, minlength=known + 1).astype(np.float64)
        total = np.bincount(codes, weights=y, minlength=known + 1)
        own = np.divide(total, n, out=np.full(known + 1, mean), where=n > 0)
        if smooth is not None:
            encoded = (total + smooth * mean) / np.where(n + smooth > 0, n + smooth, 1.0)
            encoded = np.where(n + smooth > 0, encoded, mean)
        else:
            squares = np.bincount(codes, weights=(y - own[codes]) ** 2, minlength=known + 1)
            within = np.divide(squares, n, out=np.zeros(known + 1), where=n > 0)
            weight = np.divide(n * variance, n * variance + within, out=np.zeros(known + 1), where=n * variance + within > 0)
            encoded = weight * own + (1 - weight) * mean
        encoded[0] = mean
        columns.append(encoded)
    return tuple(tuple(row) for row in np.stack(columns, axis=1).tolist())


_FOLDS = 5


def out_of_fold(
    codes: NDArray[np.int64], targets: NDArray[Any], known: int, classes: int, smooth: float | None, seed: int
) -> Floats:  # fmt: skip
    """Return each row encoded from the rows of the other four folds."""
    fold = np.empty(len(codes), np.int64)
    fold[np.argsort(bits(key(seed, "target encoding"), np.arange(len(codes), dtype=np.uint64)), kind="stable")] = (
        np.arange(len(codes)) % _FOLDS
    )
    out: Floats | None = None
    for k in range(min(_FOLDS, len(codes))):
        mine = fold == k
        encoded = np.array(category_means(codes[~mine], targets[~mine], known, classes, smooth))[codes[mine]]
        out = np.empty((len(codes), encoded.shape[1])) if out is None else out
        out[mine] = encoded
    assert out is not None
    return out
