"""Inputs of scoring beside predictions, and its protocol: predictions come tile by tile, and become `Scores` at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tauon.metrics.metric import Scores
from tauon.types import DataSpec

__all__ = ["Scorer", "Scoring", "need"]


def _as_they_are(values: np.ndarray) -> np.ndarray:
    return values


@dataclass(frozen=True)
class Scoring:
    """Settings for computing a task's metrics."""

    confidence: float = 0.95
    """Confidence level of every interval."""
    resamples: int = 1000
    """Number of resamples of each bootstrap interval."""
    seed: int = 0
    top_k: tuple[int, ...] | None = None
    """Classes only: additional top-k accuracies; None: the metric's default."""
    spec: DataSpec = field(default_factory=DataSpec)
    """Facts of the data set."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Labels of the data set."""
    units: Callable[[np.ndarray], np.ndarray] = _as_they_are
    """Conversion from the training scale of targets to the units of the data."""
    costs: Mapping[str, float] | None = None
    """Two classes only: cost of a `false_positive` and of a `false_negative`."""
    seconds: float | None = None
    """Seconds for prediction, including reading; known at the end."""

    @property
    def how(self) -> dict[str, Any]:
        """Keyword arguments for every metric with intervals."""
        return {"confidence": self.confidence, "resamples": self.resamples, "seed": self.seed}


class Scorer(Protocol):
    """Collects predictions. One scorer per set of examples: for a slice, make another and give it the slice's rows."""

    def add(self, outputs: Mapping[str, np.ndarray], weights: np.ndarray) -> None:
        """Add the predictions of some examples, and their weights; in the order of the data set."""
        ...

    def finish(self, seconds: float | None = None) -> Scores:
        """Return the metrics of all that was added. DataError if no example counts."""
        ...


def need(outputs: Mapping[str, np.ndarray], family: str, name: str) -> np.ndarray:
    """Return one output; `TypeError` if the task does not return it."""
    if name not in outputs:
        raise TypeError(f"task.predict of a {family} task must return {name!r}; it returned {sorted(outputs)}")
    return outputs[name]
