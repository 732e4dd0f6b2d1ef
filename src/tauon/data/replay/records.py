"""What was done to the training data, done again to what comes later: raw values in, a model's inputs out, and its outputs back in the
units of the data. Needs nothing but `DataSplits.preprocess`, which every checkpoint holds (`checkpoint.state["preprocess"]`).
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
    """The model's inputs from raw values, as JSON has them: the very numbers that the same row had in training.

    Of a table, (N, F): a record a row; null is a missing value, and a category that training never saw counts as such. Of a series,
    (1, context, F): the last moments in order of time, with their dates where the model reads the calendar. Keys that the model does
    not read are passed over. Raises `DataError` that names the record, the key, and what is wrong with it.
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
    raise DataError(f"records of named values make no inputs for data of kind {kind!r}")


def named(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The records with their keys as columns are compared: letters with accents as one character."""
    if not records:
        raise DataError("no record was given, expected at least one")
    return [{nfc(str(name)): value for name, value in record.items()} for record in records]


def rows_of(records: Sequence[Record], columns: Sequence[str]) -> Rows:
    """These columns of the records. `DataError` that names the record which lacks one."""
    return Rows({name: [_value(r, name, i, frozenset()) for i, r in enumerate(records)] for name in columns})


def inputs_from_pictures(preprocess: Mapping[str, Any], pictures: NDArray[Any]) -> NDArray[np.float32]:
    """The model's inputs (N, C, H, W) from the values of pictures as files hold them, at the size that the model was trained on.

    Args:
        preprocess: of the checkpoint.
        pictures: (N, C, H, W) bytes, or values of deeper pictures, which are brought to 0 to 255 by the range that training measured.

    Raises:
        DataError: pictures of another shape, or a model that does not read pictures.
    """
    shape = tuple(preprocess.get("input_shape", ()))
    if preprocess.get("kind") != "arrays" or len(shape) != 3 or "scattering" in preprocess:
        raise DataError(f"pictures make no inputs for data of kind {preprocess.get('kind')!r} and shape {shape}")
    if pictures.ndim != 4 or pictures.shape[1:] != shape:
        raise DataError(f"pictures have shape {pictures.shape}, expected (N, {', '.join(map(str, shape))}): bring them to this size first")
    values = PixelRange.from_json(preprocess["pixel_range"])(pictures) if "pixel_range" in preprocess else pictures
    return Normalizer.from_json(preprocess["normalize"])(values)


def outputs_in_units(preprocess: Mapping[str, Any], outputs: NDArray[Any]) -> NDArray[np.float64]:
    """What a model computes, in the units of the data: forecasts B H K... of a series, predictions B, B K or B K Q of a regression.

    Other outputs (of classes, of targets that were learned as they are) come back as they are, in float64.
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
        raise DataError(f"{len(records)} records, and the model reads the last {context}. Give as many, in order of time")
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
    """ISO 8601, or in the form of the training file; with a zone where that had one."""
    where, zoned = f"the records' {preprocess['date']!r}", preprocess.get("zoned")
    iso = all(map(is_date, dates))
    if zoned is not None and iso and zoned != has_zone(dates[0]):
        raise DataError(
            f"{where}: {dates[0]!r} has {'no zone' if zoned else 'a zone'}, and the training data has {'one' if zoned else 'none'}"
        )
    return moments(dates, where, None if iso else preprocess.get("date_format"))


def _value(record: Record, name: str, i: int, missing: frozenset[str] = frozenset({""})) -> Any:
    if name not in record:
        close = get_close_matches(name, [str(k) for k in record], n=1)
        hint = f"; did you mean it by {close[0]!r}?" if close else ""
        raise DataError(f"record {i} has no {name!r}{hint} Give a value, or null where it is missing")
    value = record[name]
    return None if is_missing(value, missing) else value


def _number(value: Any, name: str, i: int) -> float:
    number = number_of(value)
    if number is None:
        raise DataError(f"record {i}: column {name!r} is {value!r}, expected a number, or null where it is missing")
    return number
