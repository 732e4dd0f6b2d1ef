"""`Evaluation`, the result that becomes `runs/<name>/evaluation.json`; `compare` puts two of them side by side. Computes no metric and
writes no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tauon.errors import DataError
from tauon.metrics import Metric

__all__ = ["Difference", "Evaluation", "compare"]


@dataclass(frozen=True)
class Evaluation:
    """Every metric of one model on one split."""

    family: str
    """classification | regression | quantile-regression | forecasting | language-modelling"""
    split: str
    n: int
    """Number of examples with non-zero weight."""
    primary: str
    """The main metric."""
    metrics: dict[str, Metric]
    confidence: float
    resamples: int
    seed: int
    counts: dict[str, int] = field(default_factory=dict)
    """Totals behind the metrics: examples, tokens, bytes, words, ..."""
    per_class: list[dict[str, Any]] = field(default_factory=list)
    """One row per class (or regression target): its label, counts, and metrics."""
    confusion: dict[str, Any] | None = None
    """`labels`, and `counts[true][predicted]`."""
    calibration: dict[str, Any] | None = None
    """`bins` of the reliability diagram: confidence against accuracy."""
    notes: list[str] = field(default_factory=list)
    forecasts: list[dict[str, Any]] = field(default_factory=list)
    """For series: a few complete windows to plot: `origin`, and for each target `context`, `truth`, `forecast`, `low`, `high`."""

    by_horizon: dict[str, Any] = field(default_factory=dict)
    """For series: `mae` of each step ahead, the mean over windows and targets; `unit`: whether in the unit of the series or normalised."""
    curves: dict[str, Any] | None = None
    """For two classes: ROC and precision-recall curves, KS, Gini, and a table of thresholds."""
    baselines: list[dict[str, Any]] = field(default_factory=list)
    """Naive references on the same examples: `name`, `about`, `metrics`, and `difference`, by how much the model is better (`tauon.evaluate.baselines`)."""
    verdict: dict[str, Any] | None = None
    """How the model stands against the strongest baseline: better, no better, worse, uncertain."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, without NaN and infinity (an undefined number is null with a reason)."""
        return {
            "family": self.family,
            "split": self.split,
            "n": self.n,
            "primary": self.primary,
            "metrics": {k: m.to_json() for k, m in self.metrics.items()},
            "confidence": self.confidence,
            "resamples": self.resamples,
            "seed": self.seed,
            "counts": dict(self.counts),
            "per_class": [{k: v.to_json() if isinstance(v, Metric) else v for k, v in row.items()} for row in self.per_class],
            "confusion": self.confusion,
            "calibration": self.calibration,
            "notes": list(self.notes),
        } | {k: v for k in ("forecasts", "by_horizon", "curves", "baselines", "verdict") if (v := getattr(self, k))}

    @classmethod
    def from_json(cls, data: Any) -> Evaluation:
        """Return the evaluation from `to_json`. Raises `DataError` if `data` is not an evaluation."""
        try:
            plain = dict(data)
            plain["metrics"] = {k: Metric.from_json(m) for k, m in plain["metrics"].items()}
            plain["per_class"] = [
                {k: Metric.from_json(v) if isinstance(v, Mapping) and "method" in v else v for k, v in row.items()}
                for row in plain.get("per_class", [])
            ]
            return cls(**plain)
        except (TypeError, ValueError, KeyError, AttributeError) as err:
            raise DataError(f"not an evaluation record ({type(err).__name__}: {err}). Write a new one: tauon evaluate RUN") from None


@dataclass(frozen=True)
class Difference:
    """One metric of two evaluations: `b - a`; None if either is undefined."""

    name: str
    a: Metric
    b: Metric
    difference: float | None
    overlap: bool | None
    """Whether the intervals overlap. If not, the difference is significant at (at least) the intervals' level. If so, it may still be,
    because both were measured on the same examples and this comparison is not paired."""
    winner: Literal["a", "b", "even"] | None
    """Which of the two is better: even if the intervals overlap."""


def compare(a: Evaluation, b: Evaluation) -> list[Difference]:
    """Return the metrics that both evaluations have, in `a`'s order. Raises `DataError` if their tasks are of different families."""
    if a.family != b.family:
        raise DataError(f"cannot compare {a.family} with {b.family}: choose two runs of one task")
    return [_difference(name, m, b.metrics[name]) for name, m in a.metrics.items() if name in b.metrics]


def _difference(name: str, a: Metric, b: Metric) -> Difference:
    difference = None if a.value is None or b.value is None else b.value - a.value
    overlap = None
    if a.low is not None and a.high is not None and b.low is not None and b.high is not None:
        overlap = a.low <= b.high and b.low <= a.high
    winner: Literal["a", "b", "even"] | None = None
    if difference is not None and overlap is not None:
        winner = "even" if overlap or difference == 0 else ("b" if (difference > 0) == (a.better == "higher") else "a")
    return Difference(name, a, b, difference, overlap, winner)
