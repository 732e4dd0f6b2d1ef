"""`evaluate`: a model, a task, a data set in; an `Evaluation` with intervals out.

Chooses no split and loads no weights (the pipeline does), trains nothing, writes no file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from tauon.errors import DataError
from tauon.evaluate.classification import classification
from tauon.evaluate.config import EvaluateConfig
from tauon.evaluate.evaluation import Evaluation
from tauon.evaluate.language import language_modelling
from tauon.evaluate.multilabel import multi_label
from tauon.evaluate.ordinal import ordinal
from tauon.evaluate.regression import regression
from tauon.evaluate.tiles import Predictor, predict_all
from tauon.types import Dataset

if TYPE_CHECKING:
    from torch import device, nn

__all__ = ["evaluate"]


def evaluate(
    model: nn.Module,
    task: Predictor,
    dataset: Dataset,
    config: EvaluateConfig,
    *,
    seed: int,
    split: str | None = None,
    context: Callable[[], AbstractContextManager[Any]] | None = None,
    device: device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure `model` on `dataset`, every metric with an interval at `config.confidence`.

    `task.predict` gives, for each example: classification and ordinal {"scores": B x C probabilities, "targets": B}; multi-label
    {"scores": B x K probabilities of each label, "targets": B x K of 0 and 1}; regression
    {"predictions", "targets": B or B x K}; language-modelling {"nll": nats, "tokens", "bytes": B}. Examples of weight zero count
    nowhere; every other weight counts as one (weights shape the loss in training; the metrics describe the data as they are).
    The values depend neither on `config.batch` nor on what ran before. `split` names the data in the record (default:
    `config.split`). `context` opens around each forward pass; the model must be on `device` already.

    Raises DataError where the data set is empty, all weights are zero, or predictions do not fit the targets.
    """
    outputs, weights = predict_all(model, task, dataset, batch=config.batch, context=context, device=device, progress=progress)
    notes: list[str] = []
    if (weights < 0).any() or not np.isfinite(weights).all():
        raise DataError(
            f"{int((~(weights >= 0)).sum())} of {len(weights)} examples have a weight below zero or not finite; weights are 0 or more"
        )
    keep = weights > 0
    if task.family == "language-modelling":
        keep &= _need(outputs, task.family, "tokens") > 0
    if not keep.any():
        raise DataError(f"all {len(weights)} examples have weight zero: nothing to evaluate on")
    if not keep.all():
        notes.append(f"{int((~keep).sum())} of {len(keep)} examples have weight zero and are left out.")
    if not np.isin(weights, (0.0, 1.0)).all():
        notes.append("Weights other than 0 and 1 shape the loss in training only: here every example counts once.")
    how: dict[str, Any] = {"confidence": config.confidence, "resamples": config.resamples, "seed": seed}
    labels = tuple(dataset.spec.labels)

    def get(name: str) -> np.ndarray:
        return _need(outputs, task.family, name)[keep]

    if task.family == "classification":
        found = classification(get("scores"), get("targets").astype(np.int64), labels, **how, top_k=config.top_k)
    elif task.family == "multi-label":
        found = multi_label(get("scores"), get("targets"), labels, **how)
    elif task.family == "ordinal":
        found = ordinal(get("scores"), get("targets").astype(np.int64), labels, **how)
    elif task.family == "regression":
        found = regression(get("predictions"), get("targets"), labels, **how)
    elif task.family == "language-modelling":
        found = language_modelling(get("nll"), get("tokens"), get("bytes"), dataset.facts, **how)
    else:
        raise DataError(
            f"no metrics for a task of family {task.family!r}; there are: classification, multi-label, ordinal, regression, language-modelling"
        )
    found["notes"] = notes + found.get("notes", [])
    n = int(keep.sum())
    found.setdefault("counts", {"examples": n})
    return Evaluation(family=task.family, split=split or config.split, n=n, **how, **found)


def _need(outputs: dict[str, np.ndarray], family: str, name: str) -> np.ndarray:
    if name not in outputs:
        raise TypeError(f"task.predict of a {family} task must give {name!r}; it gave {sorted(outputs)}")
    return outputs[name]
