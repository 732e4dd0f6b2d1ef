"""Predictions as readable columns: class names, probabilities, numbers in the units of the data. Runs no model.

Shapes: B examples, C classes, K targets, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Answers", "OutputMeaning", "class_columns", "columns_of_anything", "label_columns", "named_columns", "names_of", "quantile_columns", "value_columns",
]  # fmt: skip

Answers = dict[str, Any]
"""Columns by name, one value per example: arrays, or lists of text."""


def _as_they_are(outputs: np.ndarray) -> np.ndarray:
    return np.asarray(outputs, np.float64)


@dataclass(frozen=True)
class OutputMeaning:
    """Meaning of a model's outputs."""

    labels: tuple[str, ...] = ()
    """Names of the classes, or of the targets."""
    units: Callable[[np.ndarray], np.ndarray] = _as_they_are
    """Conversion from the model's scale to the units of the data."""


def names_of(labels: Sequence[str], n: int) -> list[str]:
    """Return the labels, or numbers if there are none."""
    return [str(label) for label in labels] if len(labels) == n else [str(i) for i in range(n)]


def class_columns(scores_BC: np.ndarray, labels: Sequence[str], predicted_B: np.ndarray | None = None) -> Answers:
    """prediction: the most probable class (the first of ties), or the given one; probability_<class> of each.

    >>> class_columns(np.array([[0.25, 0.75]]), ("no", "yes"))["prediction"].tolist()
    ['yes']
    """
    names = names_of(labels, scores_BC.shape[1])
    predicted_B = scores_BC.argmax(1) if predicted_B is None else predicted_B
    chosen = np.array(names, object)[predicted_B]
    return {"prediction": chosen} | {f"probability_{name}": scores_BC[:, c] for c, name in enumerate(names)}


def label_columns(scores_BK: np.ndarray, labels: Sequence[str]) -> Answers:
    """prediction_<label>: 1 if its probability is above one half, else 0; probability_<label>."""
    names = names_of(labels, scores_BK.shape[1])
    found: Answers = {f"prediction_{name}": (scores_BK[:, k] >= 0.5).astype(np.int64) for k, name in enumerate(names)}
    return found | {f"probability_{name}": scores_BK[:, k] for k, name in enumerate(names)}


def named_columns(name: str, values_BK: np.ndarray, labels: Sequence[str]) -> Answers:
    """Return one column for one target, else one per target, named after it."""
    K = values_BK.shape[1]
    return {name: values_BK[:, 0]} if K == 1 else {f"{name}_{label}": values_BK[:, k] for k, label in enumerate(names_of(labels, K))}


def value_columns(values_BK: np.ndarray, meaning: OutputMeaning) -> Answers:
    """Return the prediction of each target, in the units of the data."""
    return named_columns("prediction", meaning.units(values_BK), meaning.labels)


def quantile_columns(quantiles_BKQ: np.ndarray, levels: Sequence[float], meaning: OutputMeaning) -> Answers:
    """prediction: the median, if it is among the quantiles; quantile_<level> of each target. In the units of the data."""
    found: Answers = {}
    values = meaning.units(quantiles_BKQ)
    middle = next((q for q, level in enumerate(levels) if abs(level - 0.5) < 1e-6), None)
    if middle is not None:
        found |= named_columns("prediction", values[:, :, middle], meaning.labels)
    for q, level in enumerate(levels):
        found |= named_columns(f"quantile_{level:g}", values[:, :, q], meaning.labels)
    return found


def columns_of_anything(outputs: Mapping[str, np.ndarray], meaning: OutputMeaning) -> Answers:
    """Default for tasks that do not define `answers`: each output by its name, numbered if there are several numbers."""
    found: Answers = {}
    for name, value in outputs.items():
        flat = value.reshape(len(value), -1)
        found |= named_columns(name, flat, meaning.labels)
    return found
