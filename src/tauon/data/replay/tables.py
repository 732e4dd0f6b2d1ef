"""Rows of a table -> features, as `kinds/tables.py` made them. Vectorised by column: each distinct spelling of a category is handled once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.arrays import Normalizer
from tauon.data.columns import Column, Encoder
from tauon.data.numbers import CANONICAL, NumberForm, all_floats, number_of, shorten
from tauon.data.replay.base import Replay, Rows, float_batch, register_replay
from tauon.data.spelling import is_missing, nfc, spelling
from tauon.errors import DataError
from tauon.types import Batch

__all__ = ["TableReplay", "numbers_in", "python_values"]

Floats = NDArray[np.float64]
Where = Callable[[int], str]


@register_replay("table")
@dataclass
class TableReplay(Replay):
    """Columns of numbers, categories and dates."""

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder.from_json(self.preprocess["columns"])

    @cached_property
    def normalizer(self) -> Normalizer:
        return Normalizer.from_json(self.preprocess["normalize"])

    @cached_property
    def missing(self) -> frozenset[str]:
        return frozenset(self.preprocess["missing"])

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.encoder.columns)

    def batch(self, rows: Rows) -> Batch:
        return float_batch(self, self.inputs(rows))

    def inputs(self, rows: Rows) -> NDArray[np.float32]:
        """Return (N, F), scaled."""
        rows.need(self.columns)
        blocks = [self._encoded(c, rows.columns[c.name], lambda i, name=c.name: rows.where(i, name)) for c in self.encoder.columns]  # type: ignore[misc]
        features = np.concatenate(blocks, axis=1)
        with np.errstate(over="ignore"):
            wide = ~np.isfinite(features.astype(np.float32))
        if wide.any():
            i, j = (int(k) for k in np.argwhere(wide)[0])
            name = self.encoder.names[j]
            raise DataError(f"{rows.where(i, name)} is {features[i, j]:g}, which is too large for float32")
        return self.normalizer(features)

    def _encoded(self, column: Column, values: Any, where: Where) -> Floats:
        if column.kind == "number":
            numbers = numbers_in(values, where, column.form, self.missing)
            return replace(column, form=CANONICAL).encode(numbers, where)
        if column.kind == "date":
            return column.encode(_cleaned(python_values(values), where, self.missing), where)
        distinct, index, first = _distinct(values)
        words = _cleaned(distinct, lambda i: where(int(first[i])), self.missing)
        known = {*map(nfc, column.categories)}
        unseen = np.array([w is not None and spelling(w) not in known for w in words], bool)
        self.say(f"values of {column.name!r} that were not in the training data", int(unseen[index].sum()))
        return column.encode(words, lambda i: where(int(first[i])))[index]


# ---------------------------------------------------------------------------------------------- raw values


def python_values(values: Any) -> list[Any]:
    """Return cells as Python values; timestamps as ISO 8601 text, like the reader of Parquet files."""
    if isinstance(values, list):
        return values
    if hasattr(values, "to_pylist"):
        from tauon.data.sources.table_files import python_values

        return python_values(values)
    found: list[Any] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return found


def _cleaned(values: Sequence[Any], where: Where, missing: frozenset[str]) -> list[Any]:
    """Return None for a missing value. `DataError` for a value that is neither number nor text."""
    for i, v in enumerate(values):
        if isinstance(v, (list, dict, bytes)):
            raise DataError(f"{where(i)} is {shorten(v)}, expected a number or a word")
    return [None if is_missing(v, missing) else v for v in values]


def _distinct(values: Any) -> tuple[list[Any], NDArray[np.int64], NDArray[np.int64]]:
    """Return (distinct values, index of each row's value, first row of each)."""
    if hasattr(values, "dictionary_encode"):
        coded = values if hasattr(values, "indices") else values.dictionary_encode(null_encoding="encode")
        index = np.asarray(coded.indices.to_numpy(zero_copy_only=False), np.int64)
        words = python_values(coded.dictionary)
    else:
        number: dict[Any, int] = {}
        cells = python_values(values)
        keys = [(v.__class__, v if not isinstance(v, (list, dict)) else repr(v)) for v in cells]
        index = np.array([number.setdefault(k, len(number)) for k in keys], np.int64)
        words = [None] * len(number)
        for cell, i in zip(cells, index.tolist(), strict=True):
            words[i] = cell
    first = np.full(len(words), len(index), np.int64)
    np.minimum.at(first, index, np.arange(len(index)))
    return words, index, first


def numbers_in(values: Any, where: Where, form: NumberForm = CANONICAL, missing: frozenset[str] = frozenset({""})) -> Floats:
    """Return a column as float64, NaN if missing. `DataError` with the first cell that is not a number."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu" and not np.isinf(values).any():
        return values.astype(np.float64)
    fast = _arrow_floats(values, missing) if form == CANONICAL and hasattr(values, "type") else None
    if fast is not None:
        return fast
    cells = _cleaned(python_values(values), where, missing)
    found = all_floats(cells) if form == CANONICAL else None
    if found is not None:
        return found
    out = np.empty(len(cells))
    for i, value in enumerate(cells):
        number = np.nan if value is None else number_of(value, form)
        if number is None:
            written = f" ({form.words()})" if form.words() else ""
            raise DataError(f"{where(i)} is {value!r}, expected a number{written}, or null if it is missing")
        out[i] = number
    return out


def _arrow_floats(values: Any, missing: frozenset[str]) -> Floats | None:
    """Convert all at once if each is a canonical number or missing; otherwise None. Bit-identical to Python's `float`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if text:
        if missing != {""} or pc.any(pc.equal(pc.binary_length(values), 0)).as_py():
            gone = pc.is_in(values, value_set=pa.array(sorted(missing), values.type))
            values = pc.if_else(gone, pa.scalar(None, values.type), values)
    elif missing - {""} or not (pa.types.is_integer(values.type) or pa.types.is_float32(values.type) or pa.types.is_float64(values.type)):
        return None
    try:
        found = pc.cast(values, pa.float64(), safe=text)
    except pa.ArrowInvalid:
        return None
    out: Floats = found.to_numpy(zero_copy_only=False)
    lost = int((~np.isfinite(out)).sum())
    if lost > found.null_count and (text or np.isinf(out).any()):
        return None  # the words nan and inf, or a number beyond float64
    return out
