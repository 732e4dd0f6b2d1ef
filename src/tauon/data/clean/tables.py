"""Filters of tables: types, units, ranges, missing values, outliers. Rows only: columns that give the label away are reported by every
preparation (`label_leaks.py`), and values are imputed, encoded and scaled after the split, on the training rows alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Fraction, register
from tauon.data.clean.base import RowFilter, RowVerdicts
from tauon.data.dates import is_date
from tauon.data.numbers import CANONICAL, number_of, shorten
from tauon.data.sources.base import Arrays, Table
from tauon.errors import DataError

__all__ = ["MissingConfig", "OutliersConfig", "RangeConfig", "TypesConfig", "UnitsConfig", "columns_of"]

Column = Sequence[Any] | NDArray[Any]


def columns_of(data: Table | Arrays) -> dict[str, Column]:
    """Return the columns of a table, or of an array of examples (N, F): x0, x1, ... where they have no names."""
    if isinstance(data, Table):
        return dict(data.columns)
    names = data.feature_names or tuple(f"x{i}" for i in range(data.features.shape[1]))
    return {name: data.features[:, i] for i, name in enumerate(names)}


def _column(data: Table | Arrays, name: str) -> Column:
    columns = columns_of(data)
    if name not in columns:
        listed = ", ".join(list(columns)[:20])
        raise DataError(f"data.clean: there is no column {name!r}. Columns: {listed}{', ...' if len(columns) > 20 else ''}")
    return columns[name]


def numbers_of(data: Table | Arrays, name: str) -> NDArray[np.float64]:
    """Return a column as numbers (N), NaN where a value is missing or not a number, written as `data.source.numbers` says."""
    values = _column(data, name)
    if isinstance(values, np.ndarray):
        return values.astype(np.float64)
    form = (data.numbers if isinstance(data, Table) else None) or CANONICAL
    return np.array([math.nan if v is None or (n := number_of(v, form)) is None else n for v in values], np.float64)


@register("types")
class TypesConfig(RowFilter):
    """Reject rows whose value is not of the type that a column must have. Missing values are of every type."""

    columns: dict[str, Literal["number", "whole", "date", "text"]]
    """Type of each column: {age: whole, since: date}. whole: a whole number; text: not a number."""
    cleans: ClassVar[tuple[str, ...]] = ("table",)

    def apply(self, data: Table) -> RowVerdicts:
        verdicts = RowVerdicts()
        form = getattr(data, "numbers", None) or CANONICAL
        for name, wanted in self.columns.items():
            found = {row: value for row, value in enumerate(_column(data, name)) if not _is_missing(value) and not _is(value, wanted, form)}
            verdicts.reject([*found], f"type_{name}", {row: f"{name} is {shorten(value)}, not a {wanted}" for row, value in found.items()})
        return verdicts


@register("range")
class RangeConfig(RowFilter):
    """Reject rows whose number in a column is outside a range. Missing values stay."""

    column: str
    """The column."""
    low: float | None = None
    """Least value. None: any."""
    high: float | None = None
    """Greatest value. None: any."""
    cleans: ClassVar[tuple[str, ...]] = ("table",)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        low, high = self.raw_value("low"), self.raw_value("high")
        if low is None and high is None:
            yield "low", "is missing, and so is high; set one of them"
        if low is not None and high is not None and low > high:
            yield "high", f"is {high:g}, less than low: {low:g}"

    def apply(self, data: Table | Arrays) -> RowVerdicts:
        verdicts, values = RowVerdicts(), numbers_of(data, self.column)
        for bound, outside, word in ((self.low, np.less, "less than"), (self.high, np.greater, "more than")):
            if bound is not None:
                rows = np.flatnonzero(outside(values, bound))
                reasons = {int(row): f"{self.column} is {values[row]:g}, {word} {bound:g}" for row in rows}
                verdicts.reject(rows, f"range_{self.column}", reasons)
        return verdicts


@register("missing")
class MissingConfig(RowFilter):
    """Reject rows in which values are missing."""

    columns: tuple[str, ...] = ()
    """Columns that must have a value. Default: none must, and `max_share` counts all columns."""
    max_share: Fraction = Field(default=0.5, ge=0, le=1)
    """Largest share of missing values in a row."""
    cleans: ClassVar[tuple[str, ...]] = ("table",)

    def apply(self, data: Table | Arrays) -> RowVerdicts:
        columns = columns_of(data)
        for name in self.columns:
            _column(data, name)
        lost = {name: np.array([_is_missing(v) for v in values], bool) for name, values in columns.items()}
        verdicts = RowVerdicts()
        for name in self.columns:
            verdicts.reject(lost[name], f"missing_{name}", f"{name} is missing")
        number = np.sum([*lost.values()], axis=0) if lost else np.zeros(len(data), np.int64)
        rows = np.flatnonzero(number > self.max_share * len(columns))
        verdicts.reject(
            rows,
            "missing_values",
            {int(r): f"{number[r]} of {len(columns)} values are missing, more than {self.max_share:.0%}" for r in rows},
        )
        return verdicts


@register("outliers")
class OutliersConfig(RowFilter):
    """Find numbers far from the others of their column; by default they are only reported.

    robust-z: |x - median| / (1.4826 MAD) (Iglewicz & Hoaglin 1993); iqr: outside the quartiles by `threshold` times their distance (Tukey 1977).
    A column of which half the values are equal has no spread by either, and is passed over.
    """

    columns: tuple[str, ...] = ()
    """Columns to look at. Default: every column of numbers."""
    method: Literal["robust-z", "iqr"] = "robust-z"
    """How distance is measured."""
    threshold: float = Field(default=6.0, gt=0)
    """Greatest distance."""
    action: Literal["report", "drop"] = "report"
    """report: say how many there are; drop: reject the rows."""
    looks_at_others: ClassVar[bool] = True
    cleans: ClassVar[tuple[str, ...]] = ("table",)

    def apply(self, data: Table | Arrays) -> RowVerdicts:
        verdicts = RowVerdicts()
        for name in self.columns or columns_of(data):
            values = numbers_of(data, name)
            known = values[~np.isnan(values)]
            if len(known) < 10 or (not self.columns and len(known) < len(values) / 2):
                continue
            score = self._score(values, known)
            rows = np.flatnonzero(score > self.threshold)
            if not rows.size:
                continue
            if self.action == "drop":
                reasons = {
                    int(r): f"{name} is {values[r]:g}, {score[r]:.1f} spreads from the others, more than {self.threshold:g}" for r in rows
                }
                verdicts.reject(rows, f"outlier_{name}", reasons)
            else:
                shown = ", ".join(f"{values[r]:g}" for r in rows[np.argsort(-score[rows])][:3])
                verdicts.notes.append(f"column {name!r}: {len(rows):,} outliers ({shown}); leave them out with action: drop")
        return verdicts

    def _score(self, values: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the distance of each value, 0 where it is missing or the column has no spread."""
        q1, middle, q3 = np.percentile(known, [25, 50, 75])
        if self.method == "iqr":
            spread, distance = q3 - q1, np.maximum(q1 - values, values - q3)
        else:
            spread, distance = 1.4826 * np.median(np.abs(known - middle)), np.abs(values - middle)
        return np.zeros(len(values)) if spread == 0 else np.nan_to_num(distance / spread, nan=0.0)


@register("units")
class UnitsConfig(RowFilter):
    """Convert values that are written with a unit to numbers in one unit: "154 lb" and "70 kg" to 69.85 and 70."""

    column: str
    """The column."""
    units: dict[str, float]
    """What one of each unit is in the unit of the result: {kg: 1, lb: 0.45359237}. "" is a number without a unit."""
    cleans: ClassVar[tuple[str, ...]] = ("table",)

    def apply(self, data: Table) -> RowVerdicts:
        verdicts, values = RowVerdicts(), _column(data, self.column)
        if isinstance(values, np.ndarray):
            return verdicts
        form = data.numbers or CANONICAL
        converted: list[Any] = list(values)
        for row, value in enumerate(values):
            found = _WITH_UNIT.match(value) if isinstance(value, str) else None
            if found is None:
                continue
            unit, number = found.group(2), form.value(found.group(1))
            if unit not in self.units or number is None:
                verdicts.reject(
                    [row], f"unit_{self.column}", f"{self.column} is {shorten(value)}, in none of the units {', '.join(self.units)}"
                )
                continue
            converted[row] = number * self.units[unit]
            if unit:
                verdicts.changed_rows.append(row)
        verdicts.changed = len(verdicts.changed_rows)
        verdicts.data = replace(data, columns=_with(data.columns, self.column, converted))
        return verdicts


_WITH_UNIT = re.compile(r"\s*([+-]?[\d.,' ]*\d)\s*([^\d\s.,]*)\s*\Z")


def _with(columns: Mapping[str, Any], name: str, values: list[Any]) -> dict[str, Any]:
    return {key: values if key == name else column for key, column in columns.items()}


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))


def _is(value: Any, wanted: str, form: Any) -> bool:
    number = number_of(value, form)
    if wanted == "date":
        return isinstance(value, str) and is_date(value)
    if wanted == "text":
        return number is None
    return number is not None and (wanted == "number" or number == int(number))
