"""`evaluate`: a model, a task, a data set in; an `Evaluation` with intervals out.

Iterates over tiles and passes predictions to the task's scorer, which defines the metrics. Chooses no split and loads no weights (the pipeline
does), trains nothing, writes no file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from tauon.data import TargetScale
from tauon.evaluate.config import EvaluateConfig
from tauon.evaluate.evaluation import Evaluation
from tauon.evaluate.tiles import ScoredTask, Where, predict_each
from tauon.metrics import Scoring
from tauon.types import Dataset, DataSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["evaluate"]


def evaluate(
    model: nn.Module,
    task: ScoredTask,
    dataset: Dataset,
    config: EvaluateConfig,
    *,
    seed: int,
    split: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **where: Unpack[Where],
) -> Evaluation:
    """Measure `model` on `dataset`, every metric with an interval at `config.confidence`.

    Examples of weight zero are excluded; all other weights count as one (weights shape the loss in training; the metrics describe the
    data as it is). Values depend neither on `config.batch` nor on earlier runs. `split` is the name of the data in the record (default:
    `config.split`). `where`: `context` is entered around each forward pass; the model must be on `device` already.

    Raises DataError if the data set is empty, all weights are zero, or predictions do not match the targets.
    """
    scoring = Scoring(config.confidence, config.resamples, seed, config.top_k, dataset.spec, dataset.facts, _units(dataset.spec))
    began, scorer = time.perf_counter(), task.scorer(dataset, scoring)
    for outputs, weights in predict_each(model, task, dataset, batch=config.batch, progress=progress, **where):
        scorer.add(outputs, weights)
    found: dict[str, Any] = dict(scorer.finish(time.perf_counter() - began))
    return Evaluation(family=task.family, split=split or config.split, **scoring.how, **found)


def _units(spec: DataSpec) -> Callable[[np.ndarray], np.ndarray]:
    """Convert from the model's target scale to the units of the data."""
    return TargetScale(spec.target_center, spec.target_scale).undo if spec.target_scale else lambda values: values
