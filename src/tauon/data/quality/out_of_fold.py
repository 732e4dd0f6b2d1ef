"""Class probabilities of each example from a cheap model that was fitted on other examples: logistic regression on numbers or on TF-IDF of words, the
nearest neighbours by principal components of images. Needs `pip install 'tauon[sklearn]'`. Not a model to serve: a second opinion on labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tauon.data.counter import bits, key
from tauon.errors import DataError, MissingExtra

__all__ = ["out_of_fold"]

_COMPONENTS, _NEIGHBOURS, _WORDS = 64, 15, 20_000


def out_of_fold(
    examples: NDArray[Any] | Sequence[str],
    labels: NDArray[np.int64],
    *,
    folds: int = 5,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return the probabilities of each class, (N, K), of models that did not see the example or any of its group.

    Args:
        examples: (N, F) numbers, (N, C, H, W) images, or N texts. Missing numbers (NaN) count as the mean.
        labels: (N) classes from 0; every number up to the largest is a class.
        folds: models; each is fitted without its share of every class.
        seed: decides which examples are in one fold.
        groups: (N) examples of one group are in one fold.

    Raises:
        DataError: a class with fewer than two examples (or groups), so that a model without the example would not know it.
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.base import clone
        from threadpoolctl import threadpool_limits  # comes with scikit-learn
    except ImportError as err:
        raise MissingExtra("a cheap model's class probabilities", "sklearn") from err
    labels = np.asarray(labels)
    fold = _folds(labels, folds, seed, groups)
    out = np.zeros((len(labels), int(labels.max()) + 1))
    texts = not isinstance(examples, np.ndarray)
    rows: Any = np.array(examples, object) if texts else np.asarray(examples).reshape(len(examples), -1)
    model = _model("texts" if texts else "images" if examples.ndim == 4 else "numbers", 0 if texts else min(rows.shape))  # type: ignore[union-attr]
    for number in range(int(fold.max()) + 1):
        train, held = fold != number, fold == number
        unseen = np.setdiff1d(labels[held], labels[train])
        if len(unseen):
            raise DataError(
                f"class {unseen[0]} has examples in one fold only, so a model without them does not know it. Remove the class, or add examples"
            )
        with threadpool_limits(1):  # two threads on a busy machine make a small regression ten times slower
            fitted = clone(model).fit(rows[train], labels[train])
            out[np.ix_(held, fitted.classes_)] = fitted.predict_proba(rows[held])
    return out


def _folds(labels: NDArray[np.int64], folds: int, seed: int, groups: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return the fold of each example: each class dealt in turn, in an order by the seed; or groups dealt in turn."""
    whose = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    first = np.unique(whose, return_index=True)[1]  # a group goes with the class of its first example
    order = np.argsort(bits(key(seed, "out of fold"), np.arange(len(first), dtype=np.uint64)), kind="stable")
    order = order[np.argsort(labels[first][order], kind="stable")]
    fold = np.empty(len(first), np.int64)
    fold[order] = np.arange(len(first)) % folds
    found: NDArray[np.int64] = fold[whose]
    return found


def _model(kind: Literal["texts", "images", "numbers"], smaller: int) -> Any:
    """Return an unfitted model. `smaller`: the smaller of examples and features, which bounds the number of components."""
    from sklearn.decomposition import PCA
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "texts":
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=_WORDS)
        return make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000))
    if kind == "images":
        components = PCA(min(_COMPONENTS, smaller // 2), random_state=0)
        return make_pipeline(components, KNeighborsClassifier(_NEIGHBOURS, weights="distance"))
    return make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression(max_iter=1000))
