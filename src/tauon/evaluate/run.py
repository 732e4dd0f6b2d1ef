"""`evaluate`: a model, a task, a data set in; an `Evaluation` with intervals out.

Chooses no split and loads no weights (the pipeline does), trains nothing, writes no file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from tauon.data import TargetScale
from tauon.errors import DataError
from tauon.evaluate.classification import classification
from tauon.evaluate.config import EvaluateConfig
from tauon.evaluate.evaluation import Evaluation
from tauon.evaluate.forecasting import ForecastSums
from tauon.evaluate.language import language_modelling
from tauon.evaluate.masked import masked_language_modelling
from tauon.evaluate.multilabel import multi_label
from tauon.evaluate.ordinal import ordinal
from tauon.evaluate.preference import preference
from tauon.evaluate.quantiles import quantile_regression
from tauon.evaluate.regression import regression
from tauon.evaluate.speech import speech_recognition
from tauon.tasks.tiles import Predictor, predict_all, predict_each
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
    {"predictions", "targets": B or B x K}; quantile-regression {"quantiles": B x K x Q, "targets", "levels", "crossed"}; forecasting
    {"predictions", "targets": B x H x K, and perhaps quantiles}; language-modelling {"nll": nats, "tokens", "bytes": B};
    speech-recognition errors and lengths in characters and words; preference {"rewards": B x 2, "loss"}. Examples of weight zero count
    nowhere; every other weight counts as one (weights shape the loss in training; the metrics describe the data as they are).
    The values depend neither on `config.batch` nor on what ran before. `split` names the data in the record (default:
    `config.split`). `context` opens around each forward pass; the model must be on `device` already.

    Raises DataError where the data set is empty, all weights are zero, or predictions do not fit the targets.
    """
    if task.family == "forecasting":
        return forecasts(
            model, task, dataset, config, seed=seed, split=split or config.split, context=context, device=device, progress=progress
        )
    began = time.perf_counter()
    outputs, weights = predict_all(model, task, dataset, batch=config.batch, context=context, device=device, progress=progress)
    seconds = time.perf_counter() - began
    notes: list[str] = []
    if (weights < 0).any() or not np.isfinite(weights).all():
        raise DataError(
            f"{int((~(weights >= 0)).sum())} of {len(weights)} examples have a weight below zero or not finite; weights are 0 or more"
        )
    keep = weights > 0
    if task.family in ("language-modelling", "masked-language-modelling"):
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

    def in_units(name: str) -> np.ndarray:
        """On the scale of the data, not on that which the model learns."""
        spec = dataset.spec
        return TargetScale(spec.target_center, spec.target_scale).undo(get(name)) if spec.target_scale else get(name)

    if task.family == "classification":
        found = classification(get("scores"), get("targets").astype(np.int64), labels, **how, top_k=config.top_k)
    elif task.family == "multi-label":
        found = multi_label(get("scores"), get("targets"), labels, **how)
    elif task.family == "ordinal":
        found = ordinal(get("scores"), get("targets").astype(np.int64), labels, **how)
    elif task.family == "regression":
        found = regression(in_units("predictions"), in_units("targets"), labels, **how)
    elif task.family == "quantile-regression":
        values = {k: in_units(k) for k in ("quantiles", "targets")} | {k: get(k) for k in ("levels", "crossed")}
        found = quantile_regression(values, labels, **how)
    elif task.family == "masked-language-modelling":
        found = masked_language_modelling(get("nll"), get("tokens"), get("correct"), **how)
    elif task.family == "language-modelling":
        found = language_modelling(get("nll"), get("tokens"), get("bytes"), dataset.facts, **how)
    elif task.family == "preference":
        found = preference(get("rewards"), get("loss"), **how)
    elif task.family == "speech-recognition":
        names = ("character_errors", "characters", "word_errors", "words", "samples")
        found = speech_recognition({k: get(k) for k in names}, seconds=seconds, rate=dataset.spec.sample_rate, **how)
    else:
        raise DataError(
            f"no metrics for a task of family {task.family!r}; there are: classification, multi-label, ordinal, regression, "
            "quantile-regression, forecasting, language-modelling, masked-language-modelling, speech-recognition, preference"
        )
    found["notes"] = notes + found.get("notes", [])
    n = int(keep.sum())
    found.setdefault("counts", {"examples": n})
    return Evaluation(family=task.family, split=split or config.split, n=n, **how, **found)


def forecasts(
    model: nn.Module,
    task: Predictor,
    dataset: Dataset,
    config: EvaluateConfig,
    *,
    seed: int,
    split: str,
    context: Callable[[], AbstractContextManager[Any]] | None,
    device: device | str,
    progress: Callable[[int, int], None] | None,
) -> Evaluation:
    """Forecasts from every origin of `dataset`, added up as they come; a few are kept whole, to be drawn."""
    spec = dataset.spec
    how: dict[str, Any] = {"confidence": config.confidence, "resamples": config.resamples, "seed": seed}
    horizon, reach = spec.horizon or 1, (spec.input_shape or (0,))[0]
    sums = ForecastSums(spec.labels, dataset.facts, length=-(-(horizon + reach) // dataset.facts.get("every", 1)))
    drawn = sorted({round(i * (len(dataset) - 1) / max(1, _SHOWN - 1)) for i in range(_SHOWN)})
    kept: list[dict[str, Any]] = []
    at = 0
    for outputs, weights in predict_each(model, task, dataset, batch=config.batch, context=context, device=device, progress=progress):
        if not (weights == 1).all():
            raise DataError("windows of a series have weight 1; weights other than that have no meaning here")
        _need(outputs, task.family, "predictions")
        sums.add(outputs)
        for i in (j for j in drawn if at <= j < at + len(weights)):
            if all(np.isfinite(v[i - at]).all() for v in outputs.values()):
                kept.append(_window(dataset, i, {k: v[i - at] for k, v in outputs.items()}, spec.labels))
        at += len(weights)
    return Evaluation(family=task.family, split=split, n=sums.windows, forecasts=kept, **how, **sums.finish(**how))


_SHOWN = 3
_DRAWN = 8  # targets that are drawn


def _window(dataset: Dataset, i: int, outputs: dict[str, np.ndarray], labels: Sequence[str]) -> dict[str, Any]:
    """One window as plain numbers, on the normalised scale: its end of context, what came, what was forecast."""
    inputs = dataset.batch(np.array([i])).inputs[0].numpy()
    T, H = len(inputs), len(outputs["targets"])
    shown = min(T, 2 * H)
    origin: Any = getattr(dataset, "origin", None)
    rows = []
    for k, label in enumerate(labels[:_DRAWN]):
        row = {
            "label": label, "context": inputs[T - shown :, k].tolist(), "truth": outputs["targets"][:, k].tolist(),
            "forecast": outputs["predictions"][:, k].tolist(),
        }  # fmt: skip
        if "quantiles" in outputs and outputs["quantiles"].shape[-1] > 1:
            row |= {"low": outputs["quantiles"][:, k, 0].tolist(), "high": outputs["quantiles"][:, k, -1].tolist()}
            row["levels"] = [round(float(v), 6) for v in outputs["levels"][[0, -1]]]
        rows.append(row)
    return {"origin": origin(i) if origin is not None else str(i), "targets": rows}


def _need(outputs: dict[str, np.ndarray], family: str, name: str) -> np.ndarray:
    if name not in outputs:
        raise TypeError(f"task.predict of a {family} task must give {name!r}; it gave {sorted(outputs)}")
    return outputs[name]
