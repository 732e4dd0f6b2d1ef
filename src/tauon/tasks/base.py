"""What a task is: how a model's outputs become a loss, a prediction, and a list of metrics. Knows no model by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from tauon.config import Registered
from tauon.errors import DataError
from tauon.metrics import Scorer, Scores, Scoring
from tauon.tasks.answers import Answers, OutputMeaning, columns_of_anything
from tauon.tasks.scorers import WholeScorer
from tauon.types import Batch, Dataset, DataSpec

__all__ = ["Task"]


class Task(Registered, family="task"):
    """What is learned."""

    family: ClassVar[str]
    """What kind of figures it has: runs of one family can be compared. classification, regression, language-modelling, ..., or a word of yours."""
    input_kind: ClassVar[str]
    """What the data must be made of: tokens, masked-tokens, arrays, series, signals, labelled-text, chat, pairs (`data/` has a preparation for each)."""

    scales_targets: ClassVar[bool] = False
    """Whether targets are numbers that `data` puts on a scale of order 1 (`DataSpec.target_scale`), and evaluation takes back."""

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss_B, weight_B): each example's weighted sum of losses and its weight (of tokens, or 1). fp32.

        The loss of a batch is loss_B.sum() / weight_B.sum(); gradients of single examples follow from loss_B.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum of losses, sum of weights) of the batch, fp32 scalars: `losses` summed, or a faster way to the same numbers."""
        loss_B, weight_B = self.losses(model, batch)
        return loss_B.sum(), weight_B.sum()

    def weight(self, batch: Batch) -> Tensor:
        """Sum of weights of the batch, without running the model: what microbatches are divided by."""
        return batch.weights.sum()

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What is scored of each example, B first; `metrics` takes it."""
        raise NotImplementedError

    def infer(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What is predicted of examples whose targets nobody knows (the batch's are filler of the right shape): B first."""
        return {name: value for name, value in self.predict(model, batch).items() if name != "targets"}

    def answers(self, outputs: Mapping[str, np.ndarray], meaning: OutputMeaning) -> Answers:
        """The columns that a person reads, from what `infer` gave: predictions, probabilities, quantiles, in the units of the data."""
        return columns_of_anything(outputs, meaning)

    def scorer(self, dataset: Dataset, scoring: Scoring) -> Scorer:
        """What makes metrics of predictions on `dataset`: keeps them all and calls `metrics`. A task whose figures add up gives one of its own."""
        return WholeScorer(self, scoring)

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        """The metrics of the examples that count, with intervals, from all that `predict` gave for them."""
        raise DataError(
            f"no metrics for a task of family {self.family!r}: define `metrics` in {type(self).__name__} (docs/adding-a-task.md)"
        )

    def counted(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which examples count, of those whose weight is not zero."""
        return np.ones(len(next(iter(outputs.values()))), bool)

    def observe(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """What validation logs beside the loss: name to (sum, sum of weights), scalars. Nothing, for most tasks."""
        return {}

    def shape(self, spec: DataSpec) -> DataSpec:
        """What the model is told of the data: where a target takes several outputs (quantiles), `outputs` counts them all."""
        return spec

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        """(key, message) of each reason why this task cannot learn from data of this kind."""
        return iter(())
