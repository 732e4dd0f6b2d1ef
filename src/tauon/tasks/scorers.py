"""How a task's predictions are collected: all of them, if metrics need them; or summed up one by one. Runs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from tauon.errors import DataError
from tauon.metrics import Scores, Scoring, need
from tauon.metrics.forecasting import ForecastSums
from tauon.types import Dataset

__all__ = ["ForecastScorer", "Measured", "WholeScorer"]


class Measured(Protocol):
    """The part of a task that scorers use."""

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        """Metrics of the examples with non-zero weight."""
        ...

    def counted(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which examples count, among those whose weight is not zero."""
        ...


class WholeScorer:
    """Keeps every prediction, and calls `task.metrics` at the end. Examples of weight zero are excluded; all other weights count as one."""

    def __init__(self, task: Measured, scoring: Scoring) -> None:
        self.task, self.scoring = task, scoring
        self.parts: dict[str, list[np.ndarray]] = {}
        self.weights: list[np.ndarray] = []

    def add(self, outputs: Mapping[str, np.ndarray], weights: np.ndarray) -> None:
        for name, value in outputs.items():
            self.parts.setdefault(name, []).append(value)
        self.weights.append(weights)

    def finish(self, seconds: float | None = None) -> Scores:
        outputs = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        weights = np.concatenate(self.weights)
        if (weights < 0).any() or not np.isfinite(weights).all():
            raise DataError(
                f"{int((~(weights >= 0)).sum())} of {len(weights)} examples have a negative or non-finite weight. Weights must be 0 or more"
            )
        keep = (weights > 0) & self.task.counted(outputs)
        if not keep.any():
            raise DataError(f"all {len(weights)} examples have weight zero, so there is nothing to evaluate")
        notes: list[str] = []
        if not keep.all():
            notes.append(f"{int((~keep).sum())} of {len(keep)} examples have weight zero and are left out.")
        if not np.isin(weights, (0.0, 1.0)).all():
            notes.append("Weights other than 0 and 1 shape the loss in training only: here every example counts once.")
        found = self.task.metrics({name: value[keep] for name, value in outputs.items()}, replace(self.scoring, seconds=seconds))
        found["notes"] = notes + found.get("notes", [])
        found["n"] = int(keep.sum())
        found.setdefault("counts", {"examples": found["n"]})
        return found


class ForecastScorer:
    """Sums up forecasts from every origin of a data set; keeps a few complete ones to plot."""

    def __init__(self, family: str, dataset: Dataset, scoring: Scoring) -> None:
        self.family, self.dataset, self.scoring = family, dataset, scoring
        spec, facts = dataset.spec, dataset.facts
        horizon, reach = spec.horizon or 1, (spec.input_shape or (0,))[0]
        self.sums = ForecastSums(spec.labels, facts, length=-(-(horizon + reach) // facts.get("every", 1)))
        self.drawn = sorted({round(i * (len(dataset) - 1) / max(1, _SHOWN - 1)) for i in range(_SHOWN)})
        self.kept: list[dict[str, Any]] = []
        self.at = 0

    def add(self, outputs: Mapping[str, np.ndarray], weights: np.ndarray) -> None:
        if not (weights == 1).all():
            raise DataError("windows of a series must have weight 1; other weights are not supported")
        need(outputs, self.family, "predictions")
        self.sums.add(dict(outputs))
        for i in (j for j in self.drawn if self.at <= j < self.at + len(weights)):
            window = {k: v[i - self.at] for k, v in outputs.items()}
            if all(np.isfinite(v).all() for v in window.values()):
                self.kept.append(_window(self.dataset, i, window, self.dataset.spec.labels))
        self.at += len(weights)

    def finish(self, seconds: float | None = None) -> Scores:
        found = self.sums.finish(**self.scoring.how)
        found["n"], found["forecasts"] = self.sums.windows, self.kept
        return found


_SHOWN = 3
_DRAWN = 8  # targets that are plotted


def _window(dataset: Dataset, i: int, outputs: dict[str, np.ndarray], labels: Sequence[str]) -> dict[str, Any]:
    """Return one window as plain numbers, in the unit of the series where it is known: end of its context, true values, forecast, dates."""
    inputs = dataset.batch(np.array([i])).inputs[0].numpy()
    T, H = len(inputs), len(outputs["targets"])
    shown = min(T, 2 * H)
    origin, times = (getattr(dataset, name, None) for name in ("origin", "times"))
    scales, centers = (dataset.facts.get(k) for k in ("scale", "center"))
    known = bool(scales) and bool(centers)
    rows = []
    for k, label in enumerate(labels[:_DRAWN]):
        scale, center = (scales[k], centers[k]) if known and scales and centers else (1.0, 0.0)

        def plain(values: np.ndarray, scale: float = scale, center: float = center) -> list[float]:
            return [float(v) for v in values.astype(np.float64) * scale + center]

        row = {
            "label": label, "context": plain(inputs[T - shown :, k]), "truth": plain(outputs["targets"][:, k]),
            "forecast": plain(outputs["predictions"][:, k]),
        }  # fmt: skip
        if "quantiles" in outputs and outputs["quantiles"].shape[-1] > 1:
            row |= {"low": plain(outputs["quantiles"][:, k, 0]), "high": plain(outputs["quantiles"][:, k, -1])}
            row["levels"] = [round(float(v), 6) for v in outputs["levels"][[0, -1]]]
        rows.append(row)
    found = {"origin": origin(i) if origin is not None else str(i), "targets": rows, "unit": "series" if known else "normalised"}
    return found | ({"times": times(i)[T - shown :]} if times is not None else {})
