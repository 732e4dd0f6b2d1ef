"""Replay of the training preprocessing on JSON records: raw values to the model's inputs, and its outputs back in the units of the data.
Needs only `DataSplits.preprocess`, which is in every checkpoint (`checkpoint.state["preprocess"]`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.arrays import Normalizer
from tauon.data.dates import has_zone, is_date, moments
from tauon.data.numbers import number_of
from tauon.data.pixel_range import PixelRange
from tauon.data.replay.base import Rows
from tauon.data.replay.tables import TableReplay
from tauon.data.spelling import is_missing, nfc
from tauon.data.targets import TargetScale
from tauon.data.window import calendar_columns
from tauon.errors import DataError

__all__ = ["inputs_from_pictures", "inputs_from_records", "named", "outputs_in_units", "rows_of"]

Record = Mapping[str, Any]


def inputs_from_records(preprocess: Mapping[str, Any], records: Sequence[Record]) -> NDArray[np.float32]:
    """Return the model's inputs from raw JSON values: exactly the numbers that the same row had in training.

    For a table, (N, F): one record per row; null is a missing value, and an unseen category is read as missing. For a series,
    (1, context, F): the last time steps in order, with dates if the model reads the calendar. Other keys are ignored. Raises `DataError`
    with the record, the key, and what is wrong with it.
    """
    records = named(records)
    kind = preprocess.get("kind")
    normalizer = Normalizer.from_json(preprocess["normalize"])
    if kind == "table":
        return TableReplay(preprocess).inputs(rows_of(records, TableReplay(preprocess).columns))
    if kind == "arrays" and preprocess.get("features"):
        names = preprocess["features"]
        return normalizer(np.array([[_number(_value(r, n, i), n, i) for n in names] for i, r in enumerate(records)], np.float64))
    if kind == "series":
        return _window(preprocess, records, normalizer)
    raise DataError(f"records of named values cannot be inputs for data of kind {kind!r}, only for tables and series")


def named(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the records with their keys normalised: accented letters as one character."""
    if not records:
        raise DataError("got no records, expected at least one")
    return [{nfc(str(name)): value for name, value in record.items()} for record in records]


def rows_of(records: Sequence[Record], columns: Sequence[str]) -> Rows:
    """Return these columns of the records. `DataError` with the record that lacks one."""
    return Rows({name: [_value(r, name, i, frozenset()) for i, r in enumerate(records)] for name in columns})


def inputs_from_pictures(preprocess: Mapping[str, Any], pictures: NDArray[Any]) -> NDArray[np.float32]:
    """Return the model's inputs (N, C, H, W) from raw image values, at the size that the model was trained on.

    Args:
        preprocess: from the checkpoint.
        pictures: (N, C, H, W) bytes, or values of deeper images, which are scaled to 0 to 255 by the range measured in training.

    Raises:
        DataError: images of another shape, or a model that does not read images.
    """
    shape = tuple(preprocess.get("input_shape", ()))
    if preprocess.get("kind") != "arrays" or len(shape) != 3 or "scattering" in preprocess:
        raise DataError(f"images cannot be inputs for data of kind {preprocess.get('kind')!r} and shape {shape}")
    if pictures.ndim != 4 or pictures.shape[1:] != shape:
        raise DataError(f"images have shape {pictures.shape}, expected (N, {', '.join(map(str, shape))}). Resize them first")
    values = PixelRange.from_json(preprocess["pixel_range"])(pictures) if "pixel_range" in preprocess else pictures
    return Normalizer.from_json(preprocess["normalize"])(values)


def outputs_in_units(preprocess: Mapping[str, Any], outputs: NDArray[Any]) -> NDArray[np.float64]:
    """Return model outputs in the units of the data: forecasts B H K... of a series, predictions B, B K or B K Q of a regression.

    Other outputs (class scores, unscaled targets) are returned unchanged, in float64.
    """
    if "target_scale" in preprocess:
        return TargetScale.from_json(preprocess["target_scale"]).undo(outputs)
    if preprocess.get("kind") != "series":
        return np.asarray(outputs, np.float64)
    normalizer, k = Normalizer.from_json(preprocess["normalize"]), preprocess["targets"]
    shape = (k, *(1 for _ in outputs.shape[3:]))
    scale, center = (np.asarray(a[:k], np.float64).reshape(shape) for a in (normalizer.scale, normalizer.center))
    return np.asarray(outputs, np.float64) * scale + center


def _window(preprocess: Mapping[str, Any], records: Sequence[Record], normalizer: Normalizer) -> NDArray[np.float32]:
    context, names = preprocess["context"], preprocess["columns"]
    if len(records) < context:
        raise DataError(f"got {len(records)} records, but the model reads the last {context}. Give that many, in order of time")
    records = records[-context:]
    values = np.array([[_number(_value(r, n, i), n, i) for n in names] for i, r in enumerate(records)], np.float64)
    columns = [normalizer(values)]
    if preprocess["calendar"]:
        dates = [str(_value(r, preprocess["date"], i)) for i, r in enumerate(records)]
        times = _times(dates, preprocess)
        if (np.diff(times.astype(np.int64)) <= 0).any():
            raise DataError(f"the records' {preprocess['date']!r} are not in order of time. Sort them")
        columns.append(calendar_columns(times, tuple(preprocess["calendar"])))
    return np.concatenate(columns, axis=1)[None]


def _times(dates: Sequence[str], preprocess: Mapping[str, Any]) -> NDArray[np.datetime64]:
    """Parse dates in ISO 8601, or in the format of the training file; with a time zone if that had one."""
    where, zoned = f"the records' {preprocess['date']!r}", preprocess.get("zoned")
    iso = all(map(is_date, dates))
    if zoned is not None and iso and zoned != has_zone(dates[0]):
        raise DataError(
            f"{where}: {dates[0]!r} has {'no time zone' if zoned else 'a time zone'}, but the training data has {'one' if zoned else 'none'}"
        )
    return moments(dates, where, None if iso else preprocess.get("date_format"))


def _value(record: Record, name: str, i: int, missing: frozenset[str] = frozenset({""})) -> Any:
    if name not in record:
        close = get_close_matches(name, [str(k) for k in record], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"record {i} has no {name!r}{hint} Give a value, or null if it is missing")
    value = record[name]
    return None if is_missing(value, missing) else value


def _number(value: Any, name: str, i: int) -> float:
    number = number_of(value)
    if number is None:
        raise DataError(f"record {i}: column {name!r} is {value!r}, expected a number, or null if it is missing")
    return number
