"""Classification and regression of arrays: images, table rows. Shapes: B batch, C classes, K targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Fraction, register
from tauon.metrics import Scores, Scoring, need
from tauon.metrics.classification import classification
from tauon.metrics.regression import regression
from tauon.tasks.answers import Answers, OutputMeaning, class_columns, value_columns
from tauon.tasks.base import Task
from tauon.tasks.members import mean_of_members, members_as_examples
from tauon.types import Batch, DataSpec

__all__ = ["Classification", "Regression"]


@register("classification")
class Classification(Task):
    """Softmax cross-entropy over classes, averaged over examples. Targets are classes, or shares of classes if examples are mixed."""

    family = "classification"
    input_kind = "arrays"

    label_smoothing: Fraction = Field(0.0, ge=0, lt=1)
    """Label smoothing: share of each target spread evenly over all classes (arXiv:1512.00567)."""

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits_BC, targets = members_as_examples(model(batch.inputs).float(), batch.targets)
        loss_B = F.cross_entropy(logits_BC, targets, reduction="none", label_smoothing=self.label_smoothing)
        return mean_of_members(loss_B, len(batch)) * batch.weights, batch.weights

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """scores: BC, probabilities; targets: B."""
        return {"scores": model(batch.inputs).float().softmax(-1), "targets": batch.targets}

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        scores, targets = need(outputs, self.family, "scores"), need(outputs, self.family, "targets").astype(np.int64)
        return classification(scores, targets, scoring.spec.labels, **scoring.how, top_k=scoring.top_k, costs=scoring.costs)

    def answers(self, outputs: Mapping[str, np.ndarray], meaning: OutputMeaning) -> Answers:
        return class_columns(outputs["scores"], meaning.labels)

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        if spec.outputs is None:
            yield "task", "classification needs examples with labels, but this data source provides text. Set task: language-modelling."
        elif not spec.labels and spec.outputs < 2:
            yield "task", "classification needs at least two classes. If the target is a number, set task: regression."


@register("regression")
class Regression(Task):
    """Predict numbers: squared or absolute error, averaged over examples (and summed over targets)."""

    family = "regression"
    input_kind = "arrays"
    scales_targets = True

    loss_kind: Literal["mse", "mae", "huber"] = "mse"
    """`mse` squared error, `mae` absolute error, `huber` squared near zero and absolute beyond 1, on the scale of `data.normalize_targets`:
    beyond one standard deviation of the target."""

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        out_BK, targets = members_as_examples(model(batch.inputs).float(), batch.targets)
        target_BK = targets.float().view_as(out_BK)
        error: Any = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}[self.loss_kind]
        loss_B = error(out_BK, target_BK, reduction="none").sum(1)
        return mean_of_members(loss_B, len(batch)) * batch.weights, batch.weights

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """predictions: BK; targets: BK, on the scale of `DataSpec.target_scale`."""
        out_BK = model(batch.inputs).float()
        return {"predictions": out_BK, "targets": batch.targets.float().view_as(out_BK)}

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        predictions, targets = (scoring.units(need(outputs, self.family, k)) for k in ("predictions", "targets"))
        return regression(predictions, targets, scoring.spec.labels, **scoring.how)

    def answers(self, outputs: Mapping[str, np.ndarray], meaning: OutputMeaning) -> Answers:
        return value_columns(outputs["predictions"], meaning)

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        if spec.outputs is None:
            yield "task", "regression needs examples with targets, but this data source provides text. Set task: language-modelling."
