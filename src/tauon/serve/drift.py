"""Drift: how far requests differ from the training data, by column and in the answers, as the population stability index (PSI).

PSI = sum over bins of (p - q) log(p / q), p the share of requests, q that of training examples; a common reading: below 0.1 alike, above 0.25
moved. Sampling alone makes it about (bins - 1) / requests, so nothing is said of fewer than 100 requests.

The columns are the model's inputs: of tables each column, of images brightness and contrast, of texts the length, of recordings length and
level, of series the level and the spread of each column. Numbers have ten bins of equal training share.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.types import Batch, Dataset

__all__ = ["Drift", "Reference", "features_of_batch", "psi"]

BINS = 10
FEWEST = 100
EXAMPLES = 5_000
COLUMNS = 200


def psi(expected: NDArray[Any], counted: NDArray[Any]) -> float:
    """Return the population stability index of counts against expected shares; half a count stands in for an empty bin.

    >>> psi(np.array([0.5, 0.5]), np.array([50, 50])), round(psi(np.array([0.5, 0.5]), np.array([90, 10])), 3)
    (0.0, 0.879)
    """
    q = np.maximum(expected, 1e-4)
    p = np.maximum(counted / counted.sum(), 0.5 / max(1, counted.sum()))
    return float(((p - q) * np.log(p / q)).sum())


def features_of_batch(batch: Batch, names: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Return numbers that describe each example of a batch, N by name. `names` are those of a table's columns."""
    x = batch.inputs.detach().float() if batch.inputs.is_floating_point() else batch.inputs
    if not x.is_floating_point():
        length = (batch.segments >= 0).sum(1) if batch.segments is not None else (x >= 0).sum(1)
        return {"length in tokens": length.numpy()}
    if x.ndim == 2 and batch.lengths is None:
        own = names if len(names) == x.shape[1] else [f"column {j}" for j in range(x.shape[1])]
        return {str(name): x[:, j].numpy() for j, name in enumerate(own[:COLUMNS])}
    if x.ndim == 2 and batch.lengths is not None:
        return {"length": batch.lengths.numpy(), "level": x.square().mean(1).sqrt().numpy()}
    if x.ndim == 3:
        own = names if len(names) == x.shape[2] else [f"column {j}" for j in range(x.shape[2])]
        level = {f"level of {name}": x[:, :, j].mean(1).numpy() for j, name in enumerate(own[:COLUMNS])}
        return level | {f"spread of {name}": x[:, :, j].std(1).numpy() for j, name in enumerate(own[:COLUMNS])}
    flat = x.flatten(1)
    return {"brightness": flat.mean(1).numpy(), "contrast": flat.std(1).numpy()}


@dataclass(frozen=True)
class Reference:
    """Bins of the training data."""

    edges: Mapping[str, NDArray[np.float64]]
    """Inner edges of the bins of each feature; of few distinct values the values themselves."""
    shares: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(cls, dataset: Dataset, names: Sequence[str] = ()) -> Reference:
        """Return the reference of a data set, from at most 5,000 examples spread over it."""
        n = len(dataset)
        chosen = np.unique(np.linspace(0, n - 1, min(n, EXAMPLES)).astype(np.int64))
        parts = [features_of_batch(dataset.batch(chosen[i : i + 256]), names) for i in range(0, len(chosen), 256)]
        values = {name: np.concatenate([p[name] for p in parts]).astype(np.float64) for name in parts[0]}
        edges = {name: _edges(v) for name, v in values.items()}
        return cls(edges, {name: _counts(v, edges[name]) / len(v) for name, v in values.items()})

    def to_json(self) -> dict[str, Any]:
        return {name: {"edges": self.edges[name].tolist(), "shares": self.shares[name].tolist()} for name in self.edges}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Reference:
        edges = {name: np.array(f["edges"], np.float64) for name, f in found.items()}
        return cls(edges, {name: np.array(f["shares"], np.float64) for name, f in found.items()})


def _edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return edges between bins: between distinct values where there are few, else the deciles."""
    distinct = np.unique(values)
    if len(distinct) <= BINS:
        return (distinct[1:] + distinct[:-1]) / 2
    return np.unique(np.quantile(values, np.arange(1, BINS) / BINS))


def _counts(values: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)


@dataclass
class Drift:
    """Counts of the requests since the start, in the bins of the training data."""

    reference: Reference
    names: Sequence[str] = ()
    seen: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    """How often each class was answered."""
    _counts: dict[str, NDArray[np.int64]] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def add(self, batch: Batch, answers: Mapping[str, Any]) -> None:
        """Count the examples of a batch and their answers."""
        found = features_of_batch(batch, self.names)
        predicted = answers.get("prediction")
        words = [str(v) for v in predicted] if predicted is not None and len(predicted) and isinstance(predicted[0], str) else []
        with self._lock:
            self.seen += len(batch)
            for name, values in found.items():
                if name in self.reference.edges:
                    new = _counts(values, self.reference.edges[name])
                    self._counts[name] = new if name not in self._counts else self._counts[name] + new
            for word in words:
                self.answers[word] = self.answers.get(word, 0) + 1

    def psi(self) -> dict[str, float]:
        """Return the index of each feature; empty for fewer than 100 requests."""
        with self._lock:
            if self.seen < FEWEST:
                return {}
            return {name: psi(self.reference.shares[name], counts) for name, counts in self._counts.items()}
