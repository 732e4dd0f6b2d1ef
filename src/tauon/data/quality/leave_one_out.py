"""Class scores of each record from a model that was fitted without it: kernel ridge regression on the classes (a least-squares support vector machine,
Suykens & Vandewalle 1999), whose leave-one-out predictions have a closed form, so that one fit is enough.

With G = (K + lambda I)^-1 and a = G Y, the prediction for the records of a group without that group is Y_g - G_gg^-1 a_g. Rifkin & Lippert 2007.
Costs N^2.. N^3 of a block of records; more records are dealt to several blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.counter import bits, key

__all__ = ["BLOCK", "leave_one_out"]

BLOCK = 2000
"""Records that one model is fitted on."""


def leave_one_out(
    features: Any,
    labels_N: NDArray[np.int64],
    *,
    radial: bool,
    ridge: float,
    groups_N: NDArray[np.int64] | None = None,
    seed: int = 0,
    go_on: Callable[[NDArray[np.float64], NDArray[np.int64]], bool] = lambda scores, labels: True,
) -> NDArray[np.float64]:
    """Return the scores of each class, (N, K), about 1 for the class and 0 for others, by models that saw neither the record nor its group.

    Args:
        features: (N, F) numbers, a sparse matrix, or what makes the rows of some records: (n) places -> (n, F).
        labels_N: classes from 0.
        radial: a Gaussian kernel, whose width is the median distance of records; otherwise the inner product.
        ridge: lambda.
        groups_N: records of one group are left out together.
        seed: which records are in one block, if there are more than one takes.
        go_on: asked once, with scores and labels of the first block, if there are more: no leaves the other scores NaN.

    >>> x = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
    >>> leave_one_out(x, np.array([0, 0, 0, 1, 1, 1]), radial=True, ridge=0.1).argmax(1).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    n, classes = len(labels_N), int(labels_N.max()) + 1
    whose = np.arange(n) if groups_N is None else np.unique(groups_N, return_inverse=True)[1]
    blocks = -(-n // BLOCK)
    drawn = np.argsort(bits(key(seed, "leave one out"), np.arange(int(whose.max()) + 1, dtype=np.uint64)), kind="stable")
    block = np.empty(len(drawn), np.int64)
    block[drawn] = np.arange(len(drawn)) % blocks
    out = np.full((n, classes), np.nan)
    for number in range(blocks):
        rows = np.flatnonzero(block[whose] == number)
        kernel = _kernel(features(rows) if callable(features) else features[rows], radial)
        targets = (labels_N[rows, None] == np.arange(classes)).astype(np.float64)
        mean = targets.mean(0)
        inverse = _inverse(kernel + ridge * np.eye(len(rows), dtype=kernel.dtype))
        coefficients = inverse @ (targets - mean)
        order = np.argsort(whose[rows], kind="stable")
        for together in np.split(order, np.flatnonzero(np.diff(whose[rows][order])) + 1):
            own = inverse[np.ix_(together, together)]
            left = coefficients[together] / own if len(together) == 1 else np.linalg.solve(own, coefficients[together])
            out[rows[together]] = targets[together] - left
        if number == 0 and blocks > 1 and not go_on(out[rows], labels_N[rows]):
            break
    return out


def _inverse(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    import torch

    found: NDArray[np.float64] = torch.linalg.inv(torch.from_numpy(matrix)).numpy().astype(np.float64)  # MKL: half the time of numpy's
    return found


def _kernel(features: Any, radial: bool) -> NDArray[np.float32]:
    if not isinstance(features, np.ndarray):
        sparse: NDArray[np.float32] = (features @ features.T).toarray().astype(np.float32)
        return sparse
    x = features.astype(np.float32) - features.mean(0, dtype=np.float32)
    inner: NDArray[np.float32] = x @ x.T
    if not radial:
        return inner
    norms = inner.diagonal()
    square = np.maximum(norms[:, None] + norms - 2 * inner, 0)
    gauss: NDArray[np.float32] = np.exp(-square / max(float(np.median(square)), 1e-12))
    return gauss
