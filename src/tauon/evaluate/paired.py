"""How much better one set of predictions is than another on the same examples, with an interval of the difference.

Both models are judged on the same examples, so their errors rise and fall together: the interval of the difference is much narrower than two separate
intervals suggest. Each tile of predictions is reduced to a few numbers an example (`PairedTerms`), so that nothing grows with classes or horizon.

Sources: DeLong, DeLong & Clarke-Pearson 1988 for areas under a curve; Efron & Tibshirani 1993, the bootstrap over examples, for the rest (blocks of
neighbouring windows of a series). Runs no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tauon.evaluate.clusters import groups_of
from tauon.metrics import Metric, Scorer, Scores, Scoring
from tauon.metrics.classification import placements, variance
from tauon.metrics.intervals import generator, percentile, resample_sums, z_score
from tauon.metrics.ordinal import median_class
from tauon.types import Dataset

__all__ = ["PairedTerms", "RecordingTask", "improvement"]

Outputs = Mapping[str, np.ndarray]
_TINY = float(np.finfo(np.float32).tiny)
_BLOCKS = 8
"""Fewer blocks of windows cannot say how much another period would differ."""


@dataclass
class PairedTerms:
    """Numbers of each example that counts: what differences are made of. Examples x columns."""

    family: str
    scoring: Scoring
    block: int = 1
    """Neighbouring examples that depend on one another: overlapping windows of a series."""
    groups: np.ndarray | None = None
    """Group of each example of the data set: a patient, a speaker. Whole groups are then drawn again."""
    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)
    seen: int = 0
    """Examples of the data set that were added."""

    def add(self, outputs: Outputs, weights: np.ndarray, counted: np.ndarray) -> None:
        """Reduce one tile; tiles come in the order of the data set."""
        extract = _EXTRACT.get(self.family)
        keep = (weights > 0) & counted
        at, self.seen = self.seen, self.seen + len(weights)
        if extract is None or not keep.any():
            return
        if self.groups is not None:
            self.parts.setdefault("group", []).append(self.groups[at : self.seen][keep])
        for name, values in extract({k: v[keep] for k, v in outputs.items()}, self.scoring).items():
            self.parts.setdefault(name, []).append(np.asarray(values, np.float64))

    def members(self) -> np.ndarray | None:
        """Return the number, from 0, of the group of each example that counts; None without groups."""
        parts = self.parts.get("group")
        return np.unique(np.concatenate(parts), return_inverse=True)[1] if parts else None

    def column(self, name: str) -> np.ndarray | None:
        """Return a column, or None if this family has no such column."""
        parts = self.parts.get(name)
        return np.asarray(np.concatenate(parts)) if parts else None


class RecordingTask:
    """A task whose scorer also keeps `PairedTerms`; otherwise the task itself."""

    def __init__(self, task: Any) -> None:
        self.task, self.family = task, task.family
        self.terms: PairedTerms | None = None

    def predict(self, model: Any, batch: Any) -> Any:
        return self.task.predict(model, batch)

    def scorer(self, dataset: Dataset, scoring: Scoring) -> Scorer:
        """Return the task's scorer; the first one also records. (Intervals over groups ask for more, for resampled examples.)"""
        if self.terms is not None:
            again: Scorer = self.task.scorer(dataset, scoring)
            return again
        horizon, reach = dataset.spec.horizon, (dataset.spec.input_shape or (0,))[0]
        block = 1 if horizon is None else -(-(horizon + reach) // dataset.facts.get("every", 1))
        self.terms = PairedTerms(self.family, scoring, block, groups_of(dataset))
        counted = getattr(getattr(self.task, "task", self.task), "counted", _all)
        return _Recorder(self.task.scorer(dataset, scoring), self.terms, counted)


def _all(outputs: Outputs) -> np.ndarray:
    return np.ones(len(next(iter(outputs.values()))), bool)


class _Recorder:
    def __init__(self, scorer: Scorer, terms: PairedTerms, counted: Callable[[Outputs], np.ndarray]) -> None:
        self.inner, self.terms, self.counted = scorer, terms, counted

    def add(self, outputs: Outputs, weights: np.ndarray) -> None:
        self.inner.add(outputs, weights)
        self.terms.add(outputs, weights, self.counted(outputs))

    def finish(self, seconds: float | None = None) -> Scores:
        return self.inner.finish(seconds)


def improvement(model: PairedTerms, baseline: PairedTerms, metric: str) -> Metric | None:
    """Return by how much `model` is better in `metric` (above 0: better, in the metric's own unit), with the interval of the difference.

    None if the family has no such comparison, or a prediction is not finite.

    Args:
        model: terms of one set of predictions.
        baseline: terms of another on the same examples, in the same order.
        metric: name of the metric, as in the evaluation.
    """
    if metric == "roc_auc":
        return _area(model, baseline)
    found = _SUMS.get("masked_accuracy" if model.family.startswith("masked") and metric == "accuracy" else metric)
    if found is None:
        return None
    names, value = found
    both = [[terms.column(name) for name in names] for terms in (model, baseline)]
    if any(c is None for columns in both for c in columns) or any(
        len(a) != len(b) for a, b in zip(both[0], both[1], strict=True) if a is not None and b is not None
    ):
        return None
    n = len(both[0][0])  # type: ignore[arg-type]
    rows = np.concatenate([np.asarray(c).reshape(n, -1) for columns in both for c in columns], axis=1)
    if not np.isfinite(rows).all():
        return None
    members = model.members()
    rows = _blocks(rows, model.block) if members is None else _sums(rows, members)
    middle = rows.shape[1] // 2

    def difference(sums_RC: np.ndarray) -> np.ndarray:
        return np.asarray(value(sums_RC[:, :middle]) - value(sums_RC[:, middle:]))

    how, about = model.scoring, f"{metric.replace('_', ' ')}: by how much better than the baseline on the same examples"
    point = float(difference(rows.sum(0, keepdims=True))[0])
    if len(rows) < _BLOCKS and members is not None:
        why = f"no interval: {len(rows)} groups are too few to resample"
        return Metric(point, None, None, n, "none", "higher", about, why)
    if model.block > 1 and len(rows) < _BLOCKS:
        why = f"no interval: {n} windows make {len(rows)} blocks that do not overlap, too few to resample"
        return Metric(point, None, None, n, "none", "higher", about, why)
    drawn = difference(resample_sums(rows, how.resamples, generator(how.seed, f"paired:{metric}")))
    unit = (
        f"{len(rows)} groups" if members is not None else "examples" if model.block == 1 else f"{len(rows)} blocks of {model.block} windows"
    )
    return Metric.bootstrapped(point, percentile(drawn, how.confidence), n, "higher", about, unit=f"pairs of {unit}")


def _blocks(rows: np.ndarray, size: int) -> np.ndarray:
    """Sums of neighbouring rows."""
    if size <= 1:
        return rows
    return np.asarray(np.add.reduceat(rows, np.arange(0, len(rows), size), axis=0))


def _sums(rows: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Sums of each group's rows."""
    total = np.zeros((int(members.max()) + 1, rows.shape[1]))
    np.add.at(total, members, rows)
    return total


def _area(model: PairedTerms, baseline: PairedTerms) -> Metric | None:
    """Difference of two areas under the ROC curve on the same examples, with DeLong's variance of the difference."""
    mine, theirs, true = model.column("score"), baseline.column("score"), model.column("class")
    if mine is None or theirs is None or true is None or len(mine) != len(theirs):
        return None
    positive = true == 1
    if positive.all() or not positive.any():
        return None
    (area, a), (other, b) = placements(mine, positive), placements(theirs, positive)
    members = model.members()
    if members is None:
        spread = variance(a - b, positive.astype(np.int64), 2)
    else:  # influences add up within a group, which are independent (Obuchowski 1997)
        each = _sums((a - b)[:, None], members)
        spread = float(np.square(each).sum()) * len(each) / max(1, len(each) - 1)
    about = "ROC-AUC: by how much better than the baseline on the same examples"
    if not math.isfinite(spread) or spread <= 0:
        return Metric(
            area - other, None, None, len(mine), "none", "higher", about, "no interval: DeLong's variance of the difference is zero"
        )
    half = z_score(model.scoring.confidence) * math.sqrt(spread)
    method = "DeLong, paired" if members is None else f"DeLong, paired, over {int(members.max()) + 1} groups"
    return Metric(area - other, area - other - half, area - other + half, len(mine), method, "higher", about)


# ---------------------------------------------------------------------------------------------- what each family records


def _classification(outputs: Outputs, scoring: Scoring) -> dict[str, np.ndarray]:
    p_NC, true = outputs["scores"].astype(np.float64), outputs["targets"].astype(np.int64)
    rows = np.arange(len(true))
    found = {
        "right": p_NC.argmax(1) == true,
        "nats": -np.log(np.maximum(p_NC[rows, true], _TINY)),
        "n": np.ones(len(true)),
    }
    return found | ({"score": p_NC[:, 1], "class": true} if p_NC.shape[1] == 2 else {})


def _multi_label(outputs: Outputs, scoring: Scoring) -> dict[str, np.ndarray]:
    p, t = (np.asarray(outputs[k], np.float64).reshape(len(outputs["targets"]), -1) for k in ("scores", "targets"))
    p = p.clip(_TINY, 1 - 1e-7)
    return {"nats": -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(1), "n": np.ones(len(t))}


def _ordinal(outputs: Outputs, scoring: Scoring) -> dict[str, np.ndarray]:
    true = outputs["targets"].astype(np.int64)
    return {"off": np.abs(median_class(outputs["scores"].astype(np.float64)) - true), "n": np.ones(len(true))}


def _regression(outputs: Outputs, scoring: Scoring) -> dict[str, np.ndarray]:
    p, t = (np.asarray(scoring.units(outputs[k]), np.float64).reshape(len(outputs[k]), -1) for k in ("predictions", "targets"))
    return {"absolute": np.abs(p - t).mean(1), "squared": np.square(p - t), "true": t, "true_squared": t * t, "n": np.ones(len(t))}


def _quantiles(outputs: Outputs, scoring: Scoring) -> dict[str, np.ndarray]:
    t, q = (np.asarray(scoring.units(outputs[k]), np.float64) for k in ("targets", "quantiles"))
    error, level = t[..., None] - q, outputs["levels"][0].astype(np.float64)
    return {"pinball": np.maximum(level * error, (level - 1) * error).reshape(len(t), -1).mean(1), "n": np.ones(len(t))}


def _forecasting(outputs: Outputs, scoring: Scoring) -> dict[str, np.ndarray]:
    error = np.asarray(outputs["predictions"], np.float64) - np.asarray(outputs["targets"], np.float64)
    return {"squared": np.square(error).mean((1, 2)), "absolute": np.abs(error).mean((1, 2)), "n": np.ones(len(error))}


def _language(outputs: Outputs, scoring: Scoring) -> dict[str, np.ndarray]:
    found = {"nats": outputs["nll"], "tokens": outputs["tokens"]}
    return found | ({"bytes": outputs["bytes"]} if "bytes" in outputs else {"correct": outputs["correct"]} if "correct" in outputs else {})


def _preference(outputs: Outputs, scoring: Scoring) -> dict[str, np.ndarray]:
    margin = outputs["rewards"][:, 0].astype(np.float64) - outputs["rewards"][:, 1]
    return {"right": np.where(margin == 0, 0.5, margin > 0), "n": np.ones(len(margin))}


_EXTRACT: dict[str, Callable[[Outputs, Scoring], dict[str, np.ndarray]]] = {
    "classification": _classification, "multi-label": _multi_label, "ordinal": _ordinal, "regression": _regression,
    "quantile-regression": _quantiles, "forecasting": _forecasting, "language-modelling": _language,
    "masked-language-modelling": _language, "preference": _preference,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- values of a metric from sums, higher is better


def _mean(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[:, 0] / sums[:, -1])


def _minus_mean(sums: np.ndarray) -> np.ndarray:
    return np.asarray(-sums[:, 0] / sums[:, -1])


def _r2(sums: np.ndarray) -> np.ndarray:
    """Columns: squared errors K, values K, squared values K, number."""
    K, n = (sums.shape[1] - 1) // 3, sums[:, -1:]
    spread = sums[:, 2 * K : 3 * K] - sums[:, K : 2 * K] ** 2 / n
    return np.asarray((1 - sums[:, :K] / np.where(spread > 0, spread, np.nan)).mean(1))


def _bits(sums: np.ndarray) -> np.ndarray:
    return np.asarray(-sums[:, 0] / math.log(2) / sums[:, 1])


_SUMS: dict[str, tuple[tuple[str, ...], Callable[[np.ndarray], np.ndarray]]] = {
    "accuracy": (("right", "n"), _mean), "reward_accuracy": (("right", "n"), _mean), "log_loss": (("nats", "n"), _minus_mean),
    "rank_mae": (("off", "n"), _minus_mean), "r2": (("squared", "true", "true_squared", "n"), _r2),
    "pinball": (("pinball", "n"), _minus_mean), "mse": (("squared", "n"), _minus_mean), "mae": (("absolute", "n"), _minus_mean),
    "bits_per_byte": (("nats", "bytes"), _bits), "loss": (("nats", "tokens"), _minus_mean),
    "masked_accuracy": (("correct", "tokens"), _mean),
}  # fmt: skip
