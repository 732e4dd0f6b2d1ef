"""What compression costs: the paired relative drop of quality, with an interval whose upper end has to keep the promise.

Each example is predicted by both models, so that the interval is that of the difference: much narrower than two intervals side by side.

Shapes: N examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from tauon.compress.base import Progress, no_progress
from tauon.errors import DataError
from tauon.evaluate.tiles import predict_each
from tauon.metrics.intervals import generator, percentile, resample_sums, z_score
from tauon.tasks import Task
from tauon.types import Batch, Dataset

__all__ = ["Drop", "Quality", "paired_drop", "quality_of"]

MetricKind = Literal["accuracy", "perplexity", "mean absolute error", "loss"]


@dataclass(frozen=True)
class Quality:
    """One metric of a model, example by example."""

    metric: MetricKind
    sums_N: np.ndarray
    """What each example adds: right or wrong, nats, absolute error, loss."""
    weights_N: np.ndarray
    """Its weight: 1, or its tokens."""

    @property
    def value(self) -> float:
        """The metric."""
        mean = float(self.sums_N.sum() / self.weights_N.sum())
        return math.exp(min(mean, 700.0)) if self.metric == "perplexity" else mean


@dataclass(frozen=True)
class Drop:
    """How much worse a model is, as a share of the first one's metric. Negative: it is better."""

    metric: MetricKind
    before: float
    after: float
    value: float
    low: float
    high: float
    """Upper end: the promise is on this number."""
    n: int
    method: str
    confidence: float = 0.95

    def keeps(self, max_drop: float) -> bool:
        """Whether the upper end is at most `max_drop`."""
        return self.high <= max_drop

    def to_json(self) -> dict[str, Any]:
        return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in asdict(self).items()}


class _WithLoss:
    """A task whose predictions include the loss, for tasks whose metric has no sum over examples."""

    def __init__(self, task: Task) -> None:
        self.task, self.family = task, task.family

    def predict(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        loss_B, weight_B = self.task.losses(model, batch)
        return {"loss": loss_B.double(), "weight": weight_B.double()}


def quality_of(model: nn.Module, task: Task, dataset: Dataset, *, batch: int = 64, progress: Progress = no_progress) -> Quality:
    """Return the metric that compression is judged by: accuracy, perplexity, mean absolute error, or else the task's loss.

    `model`: anything that the task can call: also a model in another runtime.
    """
    known = task.family in ("classification", "language-modelling", "regression", "forecasting")
    predictor: Any = task if known else _WithLoss(task)
    sums, weights = [], []
    done = 0
    metric: MetricKind = "loss"
    for outputs, weight in predict_each(model, predictor, dataset, batch=batch):
        metric, sum_N, weight_N = _parts(task.family, outputs)
        counts = weight > 0
        sums.append(sum_N[counts])
        weights.append(weight_N[counts])
        done += len(weight)
        progress("evaluate", done, len(dataset))
    found = Quality(metric, np.concatenate(sums).astype(np.float64), np.concatenate(weights).astype(np.float64))
    if not found.weights_N.sum() > 0:
        raise DataError("no example of the data set counts (all weights are 0): quality cannot be measured")
    return found


def _parts(family: str, outputs: Mapping[str, np.ndarray]) -> tuple[MetricKind, np.ndarray, np.ndarray]:
    if family == "classification":
        right = outputs["scores"].argmax(1) == outputs["targets"]
        return "accuracy", right, np.ones(len(right))
    if family == "language-modelling":
        return "perplexity", outputs["nll"], outputs["tokens"]
    if "loss" in outputs:
        return "loss", outputs["loss"], outputs["weight"]
    predictions, targets = outputs["predictions"], outputs["targets"]
    error = np.abs(predictions.reshape(len(targets), -1) - targets.reshape(len(targets), -1)).mean(1)
    return "mean absolute error", error, np.ones(len(error))


def paired_drop(before: Quality, after: Quality, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Drop:
    """Return how much worse `after` is, relative to `before`, on the same examples.

    Accuracy: (a - b) / a, with the interval of Agresti & Min (2005, Stat. Med. 24) for paired proportions, which is not empty where both models agree
    everywhere. Others: (b - a) / a, with the percentile bootstrap over examples.

    Raises:
        DataError: the two are not of the same examples.

    >>> ones, zeros = np.ones(100), np.r_[np.zeros(2), np.ones(98)]
    >>> drop = paired_drop(Quality("accuracy", ones, ones), Quality("accuracy", zeros, ones))
    >>> round(drop.value, 3), round(drop.high, 3)
    (0.02, 0.053)
    """
    if before.metric != after.metric or not np.array_equal(before.weights_N, after.weights_N):
        raise DataError("the two models were not evaluated on the same examples with the same metric")
    a, b, n = before.value, after.value, len(before.sums_N)
    if before.metric == "accuracy":
        if a == 0:
            raise DataError("the model to compress predicts no example correctly: a relative drop is not defined")
        lost, won = (float(((x.sums_N > 0) & (y.sums_N == 0)).sum()) for x, y in ((before, after), (after, before)))
        total = n + 2
        middle = (lost - won) / total
        spread = math.sqrt(max(0.0, (lost + 0.5) + (won + 0.5) - (lost - won) ** 2 / total)) / total
        half = z_score(confidence) * spread
        return Drop("accuracy", a, b, (a - b) / a, (middle - half) / a, (middle + half) / a, n, "Agresti-Min, paired", confidence)
    drawn = resample_sums(np.stack([before.sums_N, after.sums_N, before.weights_N], 1), resamples, generator(seed, "compress drop"))
    with np.errstate(over="ignore"):
        if before.metric == "perplexity":
            ratios = np.exp((drawn[:, 1] - drawn[:, 0]) / drawn[:, 2]) - 1
        else:
            ratios = (drawn[:, 1] - drawn[:, 0]) / np.maximum(drawn[:, 0], 1e-300)
    value = (b - a) / max(a, 1e-300)
    low, high = percentile(ratios, confidence) or (value, value)
    return Drop(before.metric, a, b, value, low, high, n, "percentile bootstrap, paired", confidence)
