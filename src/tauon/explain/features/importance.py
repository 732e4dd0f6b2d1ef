"""Permutation importance: how much worse a metric becomes when a column's values are shuffled between rows (Breiman 2001; Fisher, Rudin &
Dominici 2019, arXiv:1801.01489).

It says what the model uses, not what the world depends on. Of columns that carry the same information each can look unimportant: shuffle them as
one group. Intervals are of the bootstrap over rows, in both of their parts: a pair of a row and the row whose value it gets counts as often as
the draw has both (a statistic of pairs varies more than a mean over rows would).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError
from tauon.explain.features.columns import Feature, Matrix, Predict, answers_of, check_rows
from tauon.metrics.intervals import generator, percentile

__all__ = ["Importance", "Metric", "ShuffleSettings", "permutation_importance"]

Metric = Callable[[NDArray[Any], Matrix], float]
"""(targets (N,), outputs (N, C)) to a number."""


@dataclass(frozen=True)
class ShuffleSettings:
    """How columns are shuffled and intervals drawn."""

    repeats: int = 5
    """Shuffles of each column."""
    resamples: int = 100
    """Bootstrap draws of rows. The metric is called repeats x resamples times a column: what a slow metric's time goes to."""
    confidence: float = 0.95
    higher_is_better: bool = True
    """Of the metric."""
    seed: int = 0


@dataclass(frozen=True)
class Importance:
    """How much worse the metric is without a column, in units of the metric. Around 0: the model does not need it."""

    name: str
    columns: tuple[str, ...]
    value: float
    """Mean over shuffles."""
    low: float
    high: float
    shuffles: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"columns": list(self.columns), "shuffles": list(self.shuffles)}


def permutation_importance(
    predict: Predict, rows_NF: Matrix, targets_N: NDArray[Any], metric: Metric, features: Sequence[Feature], *,
    groups: Mapping[str, Sequence[str]] | None = None, settings: ShuffleSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Importance]:  # fmt: skip
    """Return the importance of each column, or of each of the named `groups` of columns shuffled together; the largest first.

    Use held-out rows: on training rows it shows what was memorized, too. A constant column has importance 0.
    """
    settings = settings or ShuffleSettings()
    rows_NF = check_rows(rows_NF, features)
    if len(rows_NF) < 2:
        raise DataError(f"got {len(rows_NF)} row: shuffling a column needs at least 2")
    if len(targets_N) != len(rows_NF):
        raise DataError(f"got {len(targets_N)} targets for {len(rows_NF)} rows")
    sets = _column_sets(features, groups)
    outputs_NC = answers_of(predict, rows_NF)
    whole = metric(targets_N, outputs_NC)
    rng = generator(settings.seed, "bootstrap of importance")
    count = len(rows_NF)
    draws = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(settings.resamples)]
    drawn = np.array([_metric_of(metric, targets_N, outputs_NC, w) for w in draws])
    sign = 1 if settings.higher_is_better else -1
    found = []
    for done, (name, columns) in enumerate(sets.items()):
        orders = [generator(settings.seed, f"shuffle {name} {r}").permutation(count) for r in range(settings.repeats)]
        shuffled = [_shuffled(predict, rows_NF, columns, order) for order in orders]
        losses = tuple(float(sign * (whole - metric(targets_N, outputs))) for outputs in shuffled)
        pairs = list(zip(shuffled, orders, strict=True))
        spread = np.array([_mean([_metric_of(metric, targets_N, outputs, w * w[order]) for outputs, order in pairs]) for w in draws])
        value, known = float(np.mean(losses)), ~np.isnan(spread)  # of very few rows, a draw may hold no pair
        low, high = percentile(sign * (drawn - spread)[known], settings.confidence) or (value, value) if known.any() else (value, value)
        found.append(Importance(name, tuple(features[j].name for j in columns), value, low, high, losses))
        if progress is not None:
            progress(done + 1, len(sets))
    return sorted(found, key=lambda one: -one.value)


def _column_sets(features: Sequence[Feature], groups: Mapping[str, Sequence[str]] | None) -> dict[str, list[int]]:
    at = {feature.name: j for j, feature in enumerate(features)}
    if groups is None:
        return {name: [j] for name, j in at.items()}
    unknown = sorted({name for names in groups.values() for name in names} - at.keys())
    if unknown:
        raise DataError(f"groups name {unknown[0]!r}, which is not a column: the columns are {', '.join(list(at)[:20])}")
    return {group: [at[name] for name in names] for group, names in groups.items()}


def _metric_of(metric: Metric, targets_N: NDArray[Any], outputs_NC: Matrix, times_N: NDArray[np.int64]) -> float:
    """The metric with each row counted as often as given; NaN where no row is left."""
    rows = np.repeat(np.arange(len(times_N)), times_N)
    return metric(targets_N[rows], outputs_NC[rows]) if len(rows) else float("nan")


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if all are."""
    there = [v for v in values if v == v]
    return sum(there) / len(there) if there else float("nan")


def _shuffled(predict: Predict, rows_NF: Matrix, columns: list[int], order_N: NDArray[np.int64]) -> Matrix:
    """Outputs with the columns of other rows, all of them of the same other row."""
    mixed = rows_NF.copy()
    mixed[:, columns] = rows_NF[order_N][:, columns]
    return answers_of(predict, mixed)
