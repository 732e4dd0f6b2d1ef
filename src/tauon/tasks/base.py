"""The base class of tasks: how a model's outputs become a loss, predictions, and metrics. Independent of models."""

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
    """Base class of training objectives."""

    family: ClassVar[str]
    """Family of metrics: runs of one family can be compared. classification, regression, language-modelling, ..., or a new word."""
    input_kind: ClassVar[str]
    """Kind of data: tokens, masked-tokens, arrays, series, signals, labelled-text, chat, pairs (`data/kinds/` has one file for each)."""

    reads_hidden_states: ClassVar[bool] = False
    """Whether the model returns hidden states, and the task applies `model.head` itself (language models)."""

    scales_targets: ClassVar[bool] = False
    """Whether targets are numbers that `data` scales to order 1 (`DataSpec.target_scale`), and evaluation scales back."""

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (loss_B, weight_B): each example's weighted sum of losses and its weight (of tokens, or 1). fp32.

        The loss of a batch is loss_B.sum() / weight_B.sum(); gradients of single examples follow from loss_B.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (sum of losses, sum of weights) of the batch, fp32 scalars: `losses` summed, or a faster way to the same numbers."""
        loss_B, weight_B = self.losses(model, batch)
        return loss_B.sum(), weight_B.sum()

    def weight(self, batch: Batch) -> Tensor:
        """Return the sum of weights of the batch without running the model: the divisor of microbatches."""
        return batch.weights.sum()

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the data that `metrics` needs for each example, B first."""
        raise NotImplementedError

    def infer(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return predictions for examples without known targets (the batch has dummy targets of the right shape): B first."""
        return {name: value for name, value in self.predict(model, batch).items() if name != "targets"}

    def answers(self, outputs: Mapping[str, np.ndarray], meaning: OutputMeaning) -> Answers:
        """Return readable columns from the results of `infer`: predictions, probabilities, quantiles, in the units of the data."""
        return columns_of_anything(outputs, meaning)

    def scorer(self, dataset: Dataset, scoring: Scoring) -> Scorer:
        """Return the scorer of predictions on `dataset`: by default it keeps them all and calls `metrics`. Override if metrics can be summed."""
        return WholeScorer(self, scoring)

    def metrics(self, outputs: Mapping[str, np.ndarray], scoring: Scoring) -> Scores:
        """Return the metrics with intervals, from all results of `predict` for the examples with non-zero weight."""
        raise DataError(
            f"no metrics for a task of family {self.family!r}: define `metrics` in {type(self).__name__} (docs/adding-a-task.md)"
        )

    def counted(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return which examples count, among those whose weight is not zero."""
        return np.ones(len(next(iter(outputs.values()))), bool)

    def observe(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what validation logs beside the loss: name to (sum, sum of weights), scalars. Empty for most tasks."""
        return {}

    def shape(self, spec: DataSpec) -> DataSpec:
        """Return the data spec for the model: if a target takes several outputs (quantiles), `outputs` counts them all."""
        return spec

    def fits(self, spec: DataSpec) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for each reason why this task cannot train on data of this kind."""
        return iter(())
