"""Ordinal regression: ordered classes, where errors are worse the further off they are.

The model's C outputs are a softmax over the classes. The loss compares its cumulative distribution F(k) = P(class <= k) with that of
the true class, at each of the C - 1 steps between classes:

    rps          sum_k (F(k) - 1[y <= k])^2                 ranked probability score, Epstein 1969; squared earth mover's distance
                                                            (Hou, Yu & Samaras 2016, arXiv:1611.05916)
    cumulative   sum_k -log of F(k), or of 1 - F(k)         the C - 1 binary questions "is it above k?" (Frank & Hall 2001)

Both are strictly proper: the true distribution minimises them. The predicted class is the median, which minimises the expected distance.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauon.config import register
from tauon.metrics import Scores, Scoring, need
from tauon.metrics.ordinal import median_class, ordinal
from tauon.tasks.answers import Answers, OutputMeaning, class_columns
from tauon.tasks.base import Task
from tauon.tasks.members import mean_of_members, members_as_examples
from tauon.types import Batch, DataSpec

__all__ = ["Ordinal"]


@register("ordinal")
class Ordinal(Task):
    """Ordered classes: a loss that grows with the distance from the true one. Set the order with data.label_order."""

    family = "ordinal"
    input_kind = "arrays"

    loss_kind: Literal["cumulative", "rps"] = "cumulative"
    """cumulative: binary cross-entropy of each step between classes; rps: ranked probability score, milder on outliers."""

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits_BC, targets = members_as_examples(model(batch.inputs).float(), batch.targets)
        share_BC = targets if targets.is_floating_point() else F.one_hot(targets, logits_BC.shape[1]).float()
        below = share_BC.cumsum(1)[:, :-1]  # 1[y <= k]
        if self.loss_kind == "rps":
            loss_B = (logits_BC.softmax(1).cumsum(1)[:, :-1] - below).square().sum(1)
        else:
            total = logits_BC.logsumexp(1, keepdim=True)
            log_below = torch.logcumsumexp(logits_BC, 1)[:, :-1] - total
            log_above = torch.logcumsumexp(logits_BC.flip(1), 1).flip(1)[:, 1:] - total
            loss_B = -(below * log_below + (1 - below) * log_above).sum(1)
        return mean_of_members(loss_B, len(batch)) * batch.weights, batch.weights

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """scores: BC, probabilities in the order of the classes; targets: B."""
        return {"scores": model(batch.inputs).float().softmax(-1), "targets": batch.targets}

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        scores, targets = need(outputs, self.family, "scores"), need(outputs, self.family, "targets").astype(np.int64)
        return ordinal(scores, targets, scoring.spec.labels, **scoring.how)

    def answers(self, outputs: Mapping[str, np.ndarray], meaning: OutputMeaning) -> Answers:
        scores_BC = outputs["scores"]
        return class_columns(scores_BC, meaning.labels, median_class(scores_BC.astype(np.float64)))

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        if spec.outputs is None:
            yield "task", "ordinal needs examples with classes, but this data source provides text. Set task: language-modelling."
        elif spec.outputs < 2:
            yield "task", "ordinal needs at least two classes. If the target is a number, set task: regression."
