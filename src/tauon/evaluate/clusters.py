"""Intervals when examples belong together (six visits of one patient): groups are drawn again, not examples.

The bootstrap over clusters (Davison & Hinkley 1997, section 3.8): whole groups are drawn with replacement, and every metric is computed again.
With G groups its percentile interval is too narrow by about the factor of Student's t over the normal quantile and sqrt(G / (G - 1)), by which
it is widened, on the side of 0 to 1 where the metric stays in it (Cameron, Gelbach & Miller 2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tauon.metrics import Metric, Scorer, Scores, Scoring
from tauon.metrics.intervals import generator, percentile, z_score

__all__ = ["cluster_intervals", "groups_of"]

_AT_MOST = 300
"""Resamples: each computes every metric again."""
_FEWEST = 3
"""Groups below which there is no interval."""


def groups_of(dataset: Any) -> np.ndarray | None:
    """Return the group of each example, if the data set has groups."""
    groups = getattr(dataset, "groups", None)
    return groups if groups is not None and len(groups) == len(dataset) else None


def cluster_intervals(
    found: Scores,
    groups_N: np.ndarray,
    tiles: Sequence[tuple[Mapping[str, np.ndarray], np.ndarray]],
    scorer: Callable[[], Scorer],
    scoring: Scoring,
) -> Scores:
    """Return the metrics with intervals over groups instead of examples, and a note.

    Args:
        found: the metrics, with intervals over examples.
        groups_N: group of each example.
        tiles: what was predicted for the examples, and their weights, in order.
        scorer: makes a scorer that draws nothing itself.
        scoring: confidence level, number of resamples, seed.
    """
    outputs = {name: np.concatenate([tile[name] for tile, _ in tiles]) for name in tiles[0][0]}
    weights_N = np.concatenate([weights for _, weights in tiles])
    confidence, resamples = scoring.confidence, scoring.resamples
    members = [np.flatnonzero(groups_N == g) for g in np.unique(groups_N[weights_N > 0])]
    count = len(members)
    drawn: dict[tuple[Any, ...], list[float]] = {}
    rng = generator(scoring.seed, "clusters")
    for _ in range(min(resamples, _AT_MOST) if count >= _FEWEST else 0):
        index = np.concatenate([members[g] for g in rng.integers(0, count, count)])
        one = scorer()
        one.add({name: value[index] for name, value in outputs.items()}, weights_N[index])
        for key, metric in _metrics(one.finish()):
            if metric.value is not None:
                drawn.setdefault(key, []).append(metric.value)
    factor = _factor(count, confidence)
    made = {key: _widened(metric, drawn.get(key, []), count, confidence, factor) for key, metric in _metrics(found)}
    rows = [
        {name: made.get(("per_class", i, name), value) for name, value in row.items()} for i, row in enumerate(found.get("per_class") or [])
    ]
    metrics = {name: made[("metrics", name)] for name in found["metrics"]}
    few = "; with so few groups they are uncertain themselves" if count < 10 else ""
    note = f"Intervals are over {count:,} groups of examples that belong together, not over the {len(groups_N):,} examples{few}."
    changed: Scores = {**found, "metrics": metrics, "notes": [*found.get("notes", []), note]}
    if rows:
        changed["per_class"] = rows
    return changed


def _metrics(scores: Scores) -> Iterator[tuple[tuple[Any, ...], Metric]]:
    for name, metric in scores["metrics"].items():
        yield ("metrics", name), metric
    for i, row in enumerate(scores.get("per_class") or []):
        for name, value in row.items():
            if isinstance(value, Metric):
                yield ("per_class", i, name), value


def _widened(metric: Metric, drawn: list[float], groups: int, confidence: float, factor: float) -> Metric:
    if metric.value is None or (metric.low is None and metric.method == "none"):
        return metric
    interval = percentile(np.array(drawn), confidence) if drawn else None
    if interval is None:
        few = (
            f"no interval: {groups} groups are too few"
            if groups < _FEWEST
            else "no interval: every resample of groups gives the same value"
        )
        return replace(metric, low=None, high=None, method="none", reason="; ".join(filter(None, (metric.reason, few))))
    low, high = metric.value - factor * (metric.value - interval[0]), metric.value + factor * (interval[1] - metric.value)
    if metric.low is not None and metric.low >= 0:
        low = max(low, 0.0)
    if metric.high is not None and metric.high <= 1 and metric.better == "higher":
        high = min(high, 1.0)
    return replace(metric, low=min(low, metric.value), high=max(high, metric.value), method=f"bootstrap over {groups} groups")


def _factor(groups: int, confidence: float) -> float:
    """Return Student's t quantile over the normal one times sqrt(G / (G - 1)), for G groups (Hill's expansion of the quantile, 1970)."""
    if groups < 2:
        return 1.0
    z, df = z_score(confidence), groups - 1
    t = (
        z
        + (z**3 + z) / (4 * df)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
    )
    return t / z * math.sqrt(groups / df)
