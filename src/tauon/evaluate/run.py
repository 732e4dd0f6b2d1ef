"""`evaluate`: a model, a task, a data set in; an `Evaluation` with intervals out.

Iterates over tiles and passes predictions to the task's scorer, which defines the metrics. Chooses no split and loads no weights (the pipeline
does), trains nothing, writes no file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from tauon.data import TargetScale
from tauon.evaluate.clusters import cluster_intervals, groups_of
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
    """Measure `model` on `dataset`: every metric of the task, with an interval at `config.confidence`.

    If examples belong together (the data set has `groups`), intervals are over groups.

    Examples of weight zero are not counted; every other weight counts as one (weights shape the loss in training; the metrics describe the data as
    they are). The values depend neither on `config.batch` nor on the order of the examples.

    Args:
        model: in any mode; it is put into evaluation mode meanwhile.
        task: says how the model's outputs are scored.
        dataset: the examples.
        config: batch size, intervals, resamples.
        seed: seed of the bootstrap.
        split: name of the data in the record. Left out: `config.split`.
        progress: called with (done, total) examples.
        where: `context`, opened around each forward pass (autocast, say), and `device`, on which the model must be.

    Returns:
        The record that becomes `evaluation.json`.

    Raises:
        DataError: the data set is empty, all weights are zero, or predictions do not fit the targets.

    >>> from tauon.config import parse
    >>> from tauon.data import DataConfig, prepare
    >>> from tauon.evaluate import EvaluateConfig
    >>> from tauon.models import LogisticConfig, materialize
    >>> from tauon.tasks import Classification
    >>> splits = prepare(parse(DataConfig, {"source": {"kind": "sklearn", "name": "iris"}}), seed=0, input_kind="arrays")
    >>> model = materialize(LogisticConfig().resolve(splits.spec), seed=0)
    >>> found = evaluate(model, Classification(), splits.validation, EvaluateConfig(), seed=0, split="validation")
    >>> found.primary, found.metrics["accuracy"].n == len(splits.validation)
    ('accuracy', True)
    """
    costs = None if config.costs is None else {k: getattr(config.costs, k) for k in ("false_positive", "false_negative")}
    scoring = Scoring(config.confidence, config.resamples, seed, config.top_k, dataset.spec, dataset.facts, _units(dataset.spec), costs)
    began, scorer = time.perf_counter(), task.scorer(dataset, scoring)
    groups = groups_of(dataset)
    kept: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
    for outputs, weights in predict_each(model, task, dataset, batch=config.batch, progress=progress, **where):
        scorer.add(outputs, weights)
        if groups is not None:
            kept.append((outputs, weights))
    scores = scorer.finish(time.perf_counter() - began)
    if groups is not None:
        quiet = replace(scoring, resamples=1)
        scores = cluster_intervals(scores, groups, kept, lambda: task.scorer(dataset, quiet), scoring)
    found: dict[str, Any] = dict(scores)
    return Evaluation(family=task.family, split=split or config.split, **scoring.how, **found)


def _units(spec: DataSpec) -> Callable[[np.ndarray], np.ndarray]:
    """Convert from the model's target scale to the units of the data."""
    return TargetScale(spec.target_center, spec.target_scale).undo if spec.target_scale else lambda values: values
