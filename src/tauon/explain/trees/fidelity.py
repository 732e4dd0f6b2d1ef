"""How far a surrogate may be believed: agreement with the model on rows that neither was fitted on, and what guessing would reach.

Sources: Cohen 1960 (kappa); Wilson 1927 (interval of the agreement); percentile bootstrap over rows for the rest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.explain.features.columns import Matrix
from tauon.metrics.intervals import generator, percentile, wilson

__all__ = ["Fidelity", "cohen_kappa", "measure_fidelity", "r2_of"]

Interval = tuple[float, float]


@dataclass(frozen=True)
class Fidelity:
    """Figures of a surrogate on held-out rows. None where a figure has no meaning (classes of a regression) or no spread to explain."""

    rows: int
    confidence: float
    agreement: float | None
    """Share of the rows with the model's answer (fidelity)."""
    agreement_interval: Interval | None
    majority: float | None
    """Fidelity of always giving the model's most common answer on the training rows: what a tree must beat."""
    kappa: float | None
    """Cohen's kappa against the model: agreement beyond chance, 1 is perfect and 0 is chance."""
    kappa_interval: Interval | None
    r2: float | None
    """Share of the variance of the model's probabilities (or values) that the tree's explain."""
    r2_interval: Interval | None
    mean_error: float
    """Mean absolute difference between the outputs."""
    true_accuracy: float | None = None
    """Share of the TRUE labels that the tree gives: not fidelity. For values: R2 against the true values."""
    model_true_accuracy: float | None = None
    """The same of the model."""

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Fidelity:
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
        return cls(**fields)


def cohen_kappa(one_N: NDArray[np.int64], other_N: NDArray[np.int64]) -> float | None:
    """Return (agreement - chance) / (1 - chance); None where both always give the same answer.

    >>> cohen_kappa(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    0.5
    """
    classes = int(max(one_N.max(), other_N.max())) + 1
    chance = float(np.bincount(one_N, minlength=classes) @ np.bincount(other_N, minlength=classes)) / len(one_N) ** 2
    return None if chance >= 1 else (float((one_N == other_N).mean()) - chance) / (1 - chance)


def r2_of(predicted_NC: Matrix, outputs_NC: Matrix) -> float | None:
    """Return 1 - squared error / variance, summed over outputs; None where the outputs are constant."""
    total = float(((outputs_NC - outputs_NC.mean(0)) ** 2).sum())
    return None if total <= 0 else 1 - float(((predicted_NC - outputs_NC) ** 2).sum()) / total


def measure_fidelity(
    predicted_NC: Matrix, outputs_NC: Matrix, *, classes: bool, majority: int = 0, truth_N: Matrix | None = None,
    confidence: float = 0.95, seed: int = 0, resamples: int = 1000,
) -> Fidelity:  # fmt: skip
    """Compare a tree's outputs with the model's on held-out rows. `majority` is the model's most common answer on the training rows."""
    rows = len(outputs_NC)
    rng = generator(seed, "fidelity of a surrogate")
    draws = [rng.integers(0, rows, rows) for _ in range(resamples)]
    r2s = np.array([_or_nan(r2_of(predicted_NC[d], outputs_NC[d])) for d in draws])
    common: dict[str, Any] = {"rows": rows, "confidence": confidence, "r2": r2_of(predicted_NC, outputs_NC)}
    common |= {"r2_interval": percentile(r2s, confidence), "mean_error": float(np.abs(predicted_NC - outputs_NC).mean())}
    if not classes:
        if truth_N is not None:
            true_N1 = np.asarray(truth_N, np.float64).reshape(rows, -1)
            common |= {"true_accuracy": r2_of(predicted_NC, true_N1), "model_true_accuracy": r2_of(outputs_NC, true_N1)}
        return Fidelity(agreement=None, agreement_interval=None, majority=None, kappa=None, kappa_interval=None, **common)
    tree_N, model_N = predicted_NC.argmax(1), outputs_NC.argmax(1)
    agreed = int((tree_N == model_N).sum())
    kappas = np.array([_or_nan(cohen_kappa(tree_N[d], model_N[d])) for d in draws])
    if truth_N is not None:
        common |= {
            "true_accuracy": float((tree_N == truth_N).mean()),
            "model_true_accuracy": float((model_N == truth_N).mean()),
        }
    return Fidelity(
        agreement=agreed / rows, agreement_interval=wilson(agreed, rows, confidence), majority=float((model_N == majority).mean()),
        kappa=cohen_kappa(tree_N, model_N), kappa_interval=percentile(kappas, confidence), **common,
    )  # fmt: skip


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
