"""An example as a person sees it: the picture, the row, the words, the curve. Made from the model's inputs and the record of preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data import Normalizer
from tauon.explain.base import Cases
from tauon.explain.features.columns import Feature, outside_range, value_text
from tauon.explain.subject import Subject, look_of
from tauon.metrics.ordinal import median_class
from tauon.report.text import figure
from tauon.types import Batch

__all__ = ["answer_text", "in_units", "name_of", "outside_training", "show_example", "target_text", "values_in_units", "visible"]

Shown = tuple[dict[str, Any], NDArray[Any] | None]
"""(JSON facts, an array to store beside them or None)."""
_MOST_TEXT = 400


def show_example(subject: Subject, cases: Cases, batch: Batch, i: int, features: tuple[Feature, ...] = ()) -> Shown:
    """Return example i of a batch for display. `features`: of a table, with the ranges of training."""
    if cases.kind == "image":
        return {"kind": "image", "outside": outside_training(subject, batch, i)}, _pixels(subject, batch.inputs[i].cpu().numpy())
    if cases.kind == "table" and subject.table is not None:
        return _row(subject, batch.inputs[i : i + 1].cpu().numpy(), features), None
    if cases.kind == "text":
        return _text(subject, batch, i), None
    if cases.kind == "audio":
        rate, samples = subject.spec.sample_rate or 1, batch.inputs.shape[1]
        seconds = (samples if batch.lengths is None else int(batch.lengths[i])) / rate
        return {"kind": "audio", "seconds": seconds, "rate": rate, "width_s": samples / rate}, cases.inputs[i].cpu().numpy().astype(
            np.float32
        )
    if cases.kind == "series":
        return _window(subject, batch, i)
    return {"kind": "array", "shape": list(batch.inputs.shape[1:])}, batch.inputs[i].cpu().numpy()


def _normalizer(subject: Subject) -> Normalizer | None:
    kept = subject.preprocess.get("normalize")
    return None if kept is None else Normalizer.from_json(dict(kept))


def _pixels(subject: Subject, inputs_CHW: NDArray[Any]) -> NDArray[np.uint8]:
    normalizer = _normalizer(subject)
    values = inputs_CHW if normalizer is None or normalizer.kind == "none" else inputs_CHW * normalizer.scale + normalizer.center
    if values.min() < -1 or values.max() > 256 or values.max() <= 1.01:  # not bytes: stretched to them
        values = (values - values.min()) * (255 / max(float(values.max() - values.min()), 1e-30))
    pixels = np.clip(np.round(values), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(pixels if pixels.shape[2] in (1, 3) else pixels.mean(2, keepdims=True).astype(np.uint8))


def _row(subject: Subject, inputs_1F: NDArray[Any], features: tuple[Feature, ...]) -> dict[str, Any]:
    assert subject.table is not None
    row_1K = subject.table.read(inputs_1F)
    known = features or subject.table.features(row_1K)
    columns = [{"name": f.name, "value": value_text(f, float(v))} for f, v in zip(known, row_1K[0], strict=True)]
    outside = [o.text for o in outside_range(row_1K[0], features)] if features else []
    return {"kind": "table", "columns": columns, "outside": outside}


def _text(subject: Subject, batch: Batch, i: int) -> dict[str, Any]:
    ids = batch.inputs[i].tolist()
    if batch.segments is not None:
        ids = [t for t, s in zip(ids, batch.segments[i].tolist(), strict=True) if s >= 0]
    elif batch.lengths is not None:
        ids = ids[: int(batch.lengths[i])]
    tokenizer = subject.tokenizer
    words = [str(t) for t in ids] if tokenizer is None else [tokenizer.decode([t]) for t in ids]
    return {"kind": "text", "tokens": words[:_MOST_TEXT], "more": max(0, len(words) - _MOST_TEXT)}


def _window(subject: Subject, batch: Batch, i: int) -> Shown:
    names = list(subject.preprocess.get("columns") or ())
    context_TK = batch.inputs[i].cpu().numpy().astype(np.float64)
    names = names if len(names) == context_TK.shape[1] else [f"column {k}" for k in range(context_TK.shape[1])]
    outside = outside_training(subject, batch, i, names)
    shown = {"kind": "series", "names": names, "targets": len(subject.spec.labels) or 1, "outside": outside}
    return shown, values_in_units(subject, context_TK).astype(np.float32)


def outside_training(subject: Subject, batch: Batch, i: int, names: Sequence[str] = ("brightness", "contrast")) -> list[str]:
    """Return a sentence for each way in which an image or a window differs from every training example that was looked at."""
    low, high = subject.training_range
    look = look_of(batch.inputs[i : i + 1].cpu().numpy())[0]
    said = []
    for k, name in enumerate(names[: len(low)]):
        a, b = float(look[k].min()), float(look[k].max())
        margin = 1e-6 * max(abs(low[k]), abs(high[k]), 1.0)
        if a < low[k] - margin or b > high[k] + margin:
            values, limits = (
                (f"{name} is {figure(a, 3)}", f"{figure(low[k], 3)} to {figure(high[k], 3)}")
                if look.shape[1] == 1
                else (
                    f"{name} goes from {figure(_column(subject, a, k), 4)} to {figure(_column(subject, b, k), 4)}",
                    f"{figure(_column(subject, low[k], k), 4)} to {figure(_column(subject, high[k], k), 4)}",
                )
            )
            said.append(
                f"{values}, outside of what training examples have ({limits})" + (", in the model's scale" if look.shape[1] == 1 else "")
            )
    return said


def _column(subject: Subject, value: float, k: int) -> float:
    row = np.zeros((1, (subject.spec.input_shape or (1, 1))[1]))
    row[0, k] = value
    return float(values_in_units(subject, row)[0, k])


def values_in_units(subject: Subject, values_TK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return columns of a series in the units of the data, where the scale is known."""
    normalizer = _normalizer(subject)
    if normalizer is None or normalizer.kind == "none" or normalizer.quantiles is not None or normalizer.scale.size > values_TK.shape[-1]:
        return values_TK
    found, n = values_TK.astype(np.float64), normalizer.scale.size
    found[..., :n] = (
        found[..., :n] * normalizer.scale.ravel() + normalizer.center.ravel()
    )  # behind them is the calendar, which is not scaled
    return found


def answer_text(subject: Subject, outputs_C: NDArray[Any], target: int) -> dict[str, Any]:
    """Return the model's answer, and what is explained about it."""
    labels = subject.labels
    if subject.classes:
        best = int(median_class(outputs_C[None])[0]) if subject.task.family == "ordinal" else int(outputs_C.argmax())
        return {
            "answer": name_of(subject, best), "probability": float(outputs_C[best]), "explained": name_of(subject, target),
            "explained_probability": float(outputs_C[target]),
        }  # fmt: skip
    if subject.task.family == "multi-label":
        return {
            "answer": _set_of(subject, outputs_C >= 0.5), "explained": labels[target], "explained_probability": float(outputs_C[target]),
        }  # fmt: skip
    value = in_units(subject, float(outputs_C[target]), target)
    name = labels[target] if target < len(labels) else f"output {target}"
    return {"answer": value, "explained": f"mean forecast of {name}" if subject.spec.horizon is not None else name}


def target_text(subject: Subject, target: Any, explained: int = 0) -> str | float | None:
    """Return the true class or value of an example; of a forecast, the mean of the target that is explained."""
    if subject.classes:
        return name_of(subject, int(target))
    values = np.asarray(target, np.float64)
    if subject.task.family == "multi-label":
        return _set_of(subject, values >= 0.5)
    if subject.spec.horizon is not None:
        return in_units(subject, float(values[:, explained].mean()), explained)
    return in_units(subject, float(values.ravel()[explained]), explained) if explained < values.size else None


def _set_of(subject: Subject, there_K: NDArray[Any]) -> str:
    return ", ".join(name for name, yes in zip(subject.labels, there_K.tolist(), strict=True) if yes) or "none of the labels"


def name_of(subject: Subject, output: int) -> str:
    """Return the name of a class, or of a token with its blanks made visible."""
    return visible(subject, output) if subject.input_kind == "tokens" else subject.labels[output]


def visible(subject: Subject, token: int) -> str:
    """Return a token as text, with blanks that can be seen."""
    text = str(token) if subject.tokenizer is None else subject.tokenizer.decode([token])
    return text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")


def in_units(subject: Subject, value: float, target: int) -> float:
    """Return an output of the model in the units of the data."""
    spec = subject.spec
    if spec.horizon is not None:
        row = np.zeros((1, (spec.input_shape or (1, 1))[1]))
        row[0, target] = value
        return float(values_in_units(subject, row)[0, target])
    if target < len(spec.target_scale):
        return value * spec.target_scale[target] + spec.target_center[target]
    return value
