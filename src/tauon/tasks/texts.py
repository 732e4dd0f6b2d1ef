"""Classification of texts. Shapes: B batch, T time, C classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Fraction, register
from tauon.metrics import Scores, Scoring, need
from tauon.metrics.classification import classification
from tauon.tasks.answers import Answers, OutputMeaning, class_columns
from tauon.tasks.base import Task
from tauon.types import Batch, DataSpec

__all__ = ["TextClassification"]


@register("text-classification")
class TextClassification(Task):
    """Softmax cross-entropy over classes of whole texts."""

    family = "classification"
    input_kind = "labelled-text"

    label_smoothing: Fraction = Field(0.0, ge=0, lt=1)
    """Label smoothing: share of each target spread evenly over all classes (arXiv:1512.00567)."""

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits_BC = model(batch.inputs, batch.segments).float()
        loss_B = F.cross_entropy(logits_BC, batch.targets, reduction="none", label_smoothing=self.label_smoothing)
        return loss_B * batch.weights, batch.weights

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """scores: BC, probabilities; targets: B."""
        return {"scores": model(batch.inputs, batch.segments).float().softmax(-1), "targets": batch.targets}

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        scores, targets = need(outputs, self.family, "scores"), need(outputs, self.family, "targets").astype(np.int64)
        return classification(scores, targets, scoring.spec.labels, **scoring.how, top_k=scoring.top_k, costs=scoring.costs)

    def answers(self, outputs: Mapping[str, np.ndarray], meaning: OutputMeaning) -> Answers:
        return class_columns(outputs["scores"], meaning.labels)

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        if spec.vocab is None or spec.outputs is None:
            yield (
                "task",
                "text-classification needs texts with labels. Set task: classification for numbers, language-modelling for running text.",
            )
