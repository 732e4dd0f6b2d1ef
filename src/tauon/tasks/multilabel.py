"""Multi-label classification: any number of labels per example. Shapes: B batch, K labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Fraction, register
from tauon.metrics import Scores, Scoring, need
from tauon.metrics.multilabel import multi_label
from tauon.tasks.answers import Answers, OutputMeaning, label_columns
from tauon.tasks.base import Task
from tauon.tasks.members import mean_of_members, members_as_examples
from tauon.types import Batch, DataSpec

__all__ = ["MultiLabel"]


@register("multi-label")
class MultiLabel(Task):
    """A sigmoid for each label: binary cross-entropy, the mean over labels, averaged over examples. Targets are columns of 0 and 1."""

    family = "multi-label"
    input_kind = "arrays"

    label_smoothing: Fraction = Field(0.0, ge=0, lt=1)
    """Label smoothing: targets are moved towards 1/2 by this share."""

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits_BK, targets = members_as_examples(model(batch.inputs).float(), batch.targets)
        target_BK = targets.float().view_as(logits_BK)
        if self.label_smoothing:
            target_BK = target_BK * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        loss_B = F.binary_cross_entropy_with_logits(logits_BK, target_BK, reduction="none").mean(1)
        return mean_of_members(loss_B, len(batch)) * batch.weights, batch.weights

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """scores: BK, probability of each label; targets: BK of 0 and 1."""
        scores_BK = model(batch.inputs).float().sigmoid()
        return {"scores": scores_BK, "targets": batch.targets.float().view_as(scores_BK)}

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        scores, targets = need(outputs, self.family, "scores"), need(outputs, self.family, "targets")
        return multi_label(scores, targets, scoring.spec.labels, **scoring.how)

    def answers(self, outputs: Mapping[str, np.ndarray], meaning: OutputMeaning) -> Answers:
        return label_columns(outputs["scores"], meaning.labels)

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        if spec.outputs is None:
            yield "task", "multi-label needs examples with labels, but this data source provides text. Set task: language-modelling."
