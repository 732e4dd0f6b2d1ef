"""Linear baselines by scikit-learn: logistic and ridge regression of table columns and pixels, logistic regression on TF-IDF of texts.

Fitted to the inputs that the model gets, categories one-hot. Settings are scikit-learn's defaults but for more iterations: a reference, not a competitor
that is tuned; of texts, words and pairs of words with sublinear counts, as usual.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauon.evaluate.baselines.base import MOST_NUMBERS, MOST_ROWS, Baseline, Training
from tauon.types import Batch, DataSpec

__all__ = ["class_scores", "fitted_logistic", "has_sklearn", "logistic_regression", "ridge_regression", "tfidf_logistic_regression"]

_MOST_FEATURES = 4096


def features(spec: DataSpec, inputs: Tensor) -> np.ndarray:
    """Return flat features N x F in float64: numbers as they are, the code of each category one-hot."""
    flat = torch.nan_to_num(inputs.double().flatten(1))
    if not any(spec.categories):
        return flat.numpy()
    columns = []
    for k, codes in enumerate(spec.categories):
        columns.append(torch.nn.functional.one_hot(flat[:, k].long().clamp(0, codes - 1), codes).double() if codes else flat[:, k : k + 1])
    return torch.cat(columns, 1).numpy()


def _rows(spec: DataSpec) -> int:
    """Number of examples to fit to; 0: too wide."""
    width = sum(max(1, c) for c in spec.categories) or int(np.prod(spec.input_shape or (0,)))
    return 0 if not 0 < width <= _MOST_FEATURES else min(MOST_ROWS, MOST_NUMBERS // width)


def logistic_regression(training: Training) -> Baseline | None:
    """Logistic regression; None where scikit-learn is missing, the inputs are too wide, or the sample has one class."""
    rows, spec = _rows(training.spec), training.spec
    if not rows or not has_sklearn():
        return None
    batch = training.batch(rows)
    targets = batch.targets.numpy()
    if len(np.unique(targets)) < 2:
        return None
    fitted = fitted_logistic(features(spec, batch.inputs), targets)

    def predict(batch: Batch) -> dict[str, Tensor]:
        return class_scores(fitted, features(spec, batch.inputs), batch, spec.outputs or 0)

    what = "columns, categories one-hot" if any(spec.categories) else "input numbers"
    about = f"scikit-learn's LogisticRegression of the {what}, on {len(targets):,} training examples."
    return Baseline("logistic regression", about, predict)


def ridge_regression(training: Training) -> Baseline | None:
    """Ridge regression; None where scikit-learn is missing or the inputs are too wide."""
    rows, spec = _rows(training.spec), training.spec
    if not rows or not has_sklearn():
        return None
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    batch = training.batch(rows)
    targets = batch.targets.double().reshape(len(batch), -1).numpy()
    fitted = _fit(make_pipeline(StandardScaler(), Ridge()), features(spec, batch.inputs), targets)

    def predict(batch: Batch) -> dict[str, Tensor]:
        values = torch.from_numpy(fitted.predict(features(spec, batch.inputs))).float().reshape(len(batch), -1)
        return {"predictions": values, "targets": batch.targets.float().view_as(values)}

    what = "columns, categories one-hot" if any(spec.categories) else "input numbers"
    return Baseline("ridge regression", f"scikit-learn's Ridge of the {what}, on {len(targets):,} training examples.", predict)


def tfidf_logistic_regression(training: Training) -> Baseline | None:
    """Logistic regression on TF-IDF of words and pairs of words; None where scikit-learn is missing or the sample has one class."""
    if not has_sklearn() or training.tokenizer is None:
        return None
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    batch, tokenizer = training.batch(), training.tokenizer
    targets = batch.targets.numpy()
    if len(np.unique(targets)) < 2:
        return None
    words = r"(?u)\b\w+\b|[^\w\s]"
    least = 2 if len(targets) >= 200 else 1
    steps = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=least, token_pattern=words), LogisticRegression(max_iter=300, C=10.0)
    )
    try:
        fitted = _fit(steps, texts(batch, tokenizer), targets)
    except ValueError:  # no word is there twice
        return None

    def predict(batch: Batch) -> dict[str, Tensor]:
        return class_scores(fitted, texts(batch, tokenizer), batch, training.spec.outputs or 0)

    about = (
        f"scikit-learn's LogisticRegression on TF-IDF of words and pairs of words, on {len(targets):,} training texts, cut as the model's."
    )
    return Baseline("TF-IDF and logistic regression", about, predict)


def texts(batch: Batch, tokenizer: Any) -> list[str]:
    """Return the texts of a batch of tokens, without padding and the token at the beginning."""
    there = torch.ones_like(batch.inputs, dtype=torch.bool) if batch.segments is None else batch.segments >= 0
    return [tokenizer.decode(row[keep][1:].tolist()) for row, keep in zip(batch.inputs, there, strict=True)]


def fitted_logistic(inputs: np.ndarray, targets: np.ndarray) -> Any:
    """Return scikit-learn's logistic regression of standardised columns."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return _fit(make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)), inputs, targets)


def has_sklearn() -> bool:
    """Return whether the extra is installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        return False
    return True


def _fit(steps: Any, inputs: np.ndarray | Sequence[str], targets: np.ndarray) -> Any:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return steps.fit(inputs, targets)


def class_scores(fitted: Any, inputs: np.ndarray | Sequence[str], batch: Batch, classes: int) -> dict[str, Tensor]:
    """Probabilities of all classes: those that the sample lacked get nothing."""
    found = np.zeros((len(batch), max(classes, int(fitted.classes_.max()) + 1)))
    found[:, fitted.classes_.astype(int)] = fitted.predict_proba(inputs)
    return {"scores": torch.from_numpy(found).float(), "targets": batch.targets}
