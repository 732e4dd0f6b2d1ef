"""What scoring needs to know beside predictions, and how it goes: predictions come tile by tile, and become `Scores` at the end."""

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
    """How a task's metrics are made."""

    confidence: float = 0.95
    """Confidence level of every interval."""
    resamples: int = 1000
    """Of each bootstrap interval."""
    seed: int = 0
    top_k: tuple[int, ...] | None = None
    """Classes only: which top-k accuracies, too; None: as the metric chooses."""
    spec: DataSpec = field(default_factory=DataSpec)
    """Of the data set."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Of the data set."""
    units: Callable[[np.ndarray], np.ndarray] = _as_they_are
    """From the scale on which targets are learned to the units of the data."""
    seconds: float | None = None
    """What predicting took, reading included; known at the end."""

    @property
    def how(self) -> dict[str, Any]:
        """Keyword arguments that every metric with intervals takes."""
        return {"confidence": self.confidence, "resamples": self.resamples, "seed": self.seed}


class Scorer(Protocol):
    """Takes predictions as they come. One scorer a set of examples: for a slice, make another and give it the slice's rows."""

    def add(self, outputs: Mapping[str, np.ndarray], weights: np.ndarray) -> None:
        """The predictions of some examples, and their weights; in the order of the data set."""
        ...

    def finish(self, seconds: float | None = None) -> Scores:
        """The metrics of all that was added. Raises DataError where nothing counts."""
        ...


def need(outputs: Mapping[str, np.ndarray], family: str, name: str) -> np.ndarray:
    """One output; `TypeError` for a task that does not give it."""
    if name not in outputs:
        raise TypeError(f"task.predict of a {family} task must give {name!r}; it gave {sorted(outputs)}")
    return outputs[name]
