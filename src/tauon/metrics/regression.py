"""Metrics of a regression: mean absolute error, root mean squared error, R2, for each target and averaged over targets.

Averages over targets are plain means of the targets' metrics (scikit-learn's "uniform_average"). Runs no model.

Legend: N examples, K targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tauon.errors import DataError
from tauon.metrics.intervals import generator, percentile, resample_sums
from tauon.metrics.metric import Better, Metric, Scores

__all__ = ["regression"]

_ABOUT: dict[str, tuple[Better, str]] = {
    "mae": ("lower", "mean |prediction - truth|, in the unit of the targets"),
    "rmse": ("lower", "square root of the mean squared error, in the unit of the targets"),
    "r2": ("higher", "1 - squared error / squared distance of the truth from its mean"),
}


def regression(
    predictions: np.ndarray, targets: np.ndarray, labels: Sequence[str], *, confidence: float, resamples: int, seed: int
) -> Scores:
    """Return the fields of an `Evaluation` for a regression. predictions, targets: N or N x K. Raises DataError for targets
    that are not finite.
    """
    p_NK, t_NK = (np.asarray(a, dtype=np.float64).reshape(len(a), -1) for a in (predictions, targets))
    if p_NK.shape != t_NK.shape:
        raise DataError(f"the model predicts {p_NK.shape[1]} values per example, but the data set has {t_NK.shape[1]}")
    n, outputs = p_NK.shape
    if not np.isfinite(t_NK).all():
        raise DataError(
            f"{int((~np.isfinite(t_NK)).any(1).sum())} of {n} examples have targets that are not finite numbers; clean the data"
        )
    broken = int((~np.isfinite(p_NK)).any(1).sum())
    if broken:
        reason = f"{broken} of {n} predictions are not finite"
        metrics = {k: Metric.undefined(reason, n=n, better=b, about=a) for k, (b, a) in _ABOUT.items()}
        return {"primary": "r2", "metrics": metrics, "notes": [reason]}
    measured = [_one_target(p_NK[:, k], t_NK[:, k]) for k in range(outputs)]
    drawn = _resampled(p_NK, t_NK, resamples, generator(seed, "regression"))
    per_target: list[dict[str, Any]] = []
    for k in range(outputs):
        row = {m: _metric(m, measured[k][m], drawn[m][:, k], n, confidence) for m in _ABOUT}
        per_target.append({"label": labels[k] if len(labels) == outputs else str(k)} | row)
    metrics = {m: _metric(m, _mean([one[m] for one in measured]), drawn[m].mean(1), n, confidence, outputs) for m in _ABOUT}
    return {"primary": "r2", "metrics": metrics, "per_class": per_target if outputs > 1 else []}


def _one_target(p_N: np.ndarray, t_N: np.ndarray) -> dict[str, float | None]:
    n, error = len(p_N), p_N - t_N
    squared = math.fsum(error**2)
    mean = math.fsum(t_N) / n
    spread = math.fsum((t_N - mean) ** 2)
    return {"mae": math.fsum(np.abs(error)) / n, "rmse": math.sqrt(squared / n), "r2": 1 - squared / spread if spread > 0 else None}


def _resampled(p_NK: np.ndarray, t_NK: np.ndarray, resamples: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return each metric of each target, resamples x K; NaN if R2 is undefined."""
    n, outputs = p_NK.shape
    centred = t_NK - t_NK.mean(0)  # centred values reduce cancellation in the difference of squares below
    error = p_NK - t_NK
    sums = resample_sums(np.concatenate([np.abs(error), error**2, centred, centred**2], axis=1), resamples, rng)
    absolute, squared, first, second = (sums[:, i * outputs : (i + 1) * outputs] for i in range(4))
    spread = second - first**2 / n
    constant = spread <= 1e-12 * (centred**2).sum(0)
    r2 = 1 - np.divide(squared, spread, out=np.full_like(squared, np.nan), where=~constant)
    return {"mae": absolute / n, "rmse": np.sqrt(squared / n), "r2": r2}


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _metric(name: str, value: float | None, drawn: np.ndarray, n: int, confidence: float, outputs: int = 1) -> Metric:
    better, about = _ABOUT[name]
    about += f"; mean over {outputs} targets" if outputs > 1 else ""
    if value is None:
        return Metric.undefined("the true values of a target are all the same", n=n, better=better, about=about)
    return Metric.bootstrapped(value, percentile(drawn, confidence), n, better, about)
