"""Focal classification (Lin et al. 2017, arXiv:1708.02002): examples that are right already weigh less. Scored by Matthews' correlation (1975) too.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import register
from tauon.metrics import Metric, Scores, Scoring
from tauon.metrics.classification import classification
from tauon.metrics.intervals import generator, percentile, resample_cells
from tauon.tasks import Task
from tauon.tasks.answers import Answers, OutputMeaning, class_columns
from tauon.types import Batch

__all__ = ["Focal", "matthews"]


@register("focal")
class Focal(Task):
    """(1 - p)^gamma times cross-entropy, p the probability of the true class."""

    family = "classification"
    input_kind = "arrays"

    gamma: float = Field(2.0, ge=0)
    """How much less an example weighs that is right already; 0: cross-entropy."""

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        log_p_B = model(batch.inputs).float().log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
        return -((1 - log_p_B.exp()) ** self.gamma) * log_p_B * batch.weights, batch.weights

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"scores": F.softmax(model(batch.inputs).float(), -1), "targets": batch.targets}

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        scores_BC, targets_B = outputs["scores"], outputs["targets"].astype(np.int64)
        found = classification(scores_BC, targets_B, scoring.spec.labels, **scoring.how)
        C = scores_BC.shape[1]
        counts_CC = np.bincount(targets_B * C + scores_BC.argmax(1), minlength=C * C)
        drawn = resample_cells(counts_CC, scoring.resamples, generator(scoring.seed, "matthews")).reshape(-1, C, C)
        value, ends = matthews(counts_CC.reshape(1, C, C))[0], percentile(matthews(drawn), scoring.confidence)
        metric = Metric.bootstrapped(float(value), ends, len(targets_B), "higher", "correlation of true and predicted classes, -1 to 1")
        found["metrics"] = {"matthews": metric, **found["metrics"]}
        found["primary"] = "matthews"
        return found

    def answers(self, outputs: Mapping[str, np.ndarray], meaning: OutputMeaning) -> Answers:
        return class_columns(outputs["scores"], meaning.labels)


def matthews(counts_RCC: np.ndarray) -> np.ndarray:
    """Of each confusion matrix, rows the truth; 0 where all are of one class."""
    counts = counts_RCC.astype(np.float64)
    n, right = counts.sum((1, 2)), counts.diagonal(axis1=1, axis2=2).sum(1)
    true, guess = counts.sum(2), counts.sum(1)
    above = right * n - (true * guess).sum(1)
    below = np.sqrt((n**2 - (true**2).sum(1)) * (n**2 - (guess**2).sum(1)))
    found: np.ndarray = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return found
