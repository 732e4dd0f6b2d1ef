"""Columns of a table -> numbers: numbers, categories and dates; missing values; encodings. Fitted on the training rows alone, saved as
JSON, and applied bit-identically to later rows (`Encoder.from_json`).

Numbers are defined in `numbers.py`, spellings of a category in `spelling.py`, dates in `dates.py`. Scaling is done by `Normalizer` in
`arrays.py`. Encodings follow scikit-learn if it has them: `onehot` is OneHotEncoder
with unknown categories as zeros, `target` is TargetEncoder (Micci-Barreca 2001, empirical Bayes), out of fold for the training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Config, Count
from tauon.data.dates import DatePart, date_parts, is_date, wrong_date_format
from tauon.data.numbers import CANONICAL, NumberForm, all_floats, as_numbers, look_at, stands_for_missing
from tauon.data.spelling import in_recipe, nfc, spelling
from tauon.data.target_encoding import category_means, out_of_fold
from tauon.errors import DataError

__all__ = ["ColumnsConfig", "Encoder", "kind_of_values", "take"]

ColumnKind = Literal["number", "category", "date"]
Floats = NDArray[np.float64]
Values = Sequence[Any] | Floats
"""Values of one column: raw values, None if missing; or numbers, NaN if missing."""


class ColumnsConfig(Config):
    """How columns of a table are encoded as numbers."""

    categories: Literal["codes", "onehot", "ordinal", "target"] = "codes"
    """codes: a number for each category, for models that embed it; onehot: a column for each category; ordinal: its place in
    `order`, as one number; target: the mean target of its training rows, as one number a class (out of fold, so nothing leaks)."""
    min_count: Count = Field(1, ge=1)
    """A category with fewer training rows counts as unseen."""
    order: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """ordinal: categories from low to high, by column. Default for other columns: alphabetical order."""
    smooth: float | None = Field(None, ge=0)
    """target: weight of the overall mean in each category's mean, in training rows. Default: by empirical Bayes."""
    impute: Literal["refuse", "median", "mean", "most_frequent", "constant"] = "refuse"
    """Replacement of a missing number. refuse: an error that names the first. Missing categories have a code of their own."""
    fill: float = 0.0
    """constant: the number."""
    fill_categories: bool = False
    """Replace a missing category by the most frequent one, instead of code 0 (no column, with onehot)."""
    indicators: bool = False
    """Add, for each column with missing values in training, a column that is 1 where they were missing."""
    dates: tuple[DatePart, ...] = ()
    """Encoding of date columns: days (since 1970), year, month, day, weekday (Monday 0), hour. Default: date columns are an error."""

    group: str | None = None
    """Column with the group of each row (a patient, a customer). It is not a feature; all rows of a group are in the same part, intervals
    are computed over groups, and privacy.unit=group protects them together."""
    time: str | None = None
    """Column with the moment of each row: dates, or numbers that grow. The last rows are held out, instead of random ones. It is not a
    feature, except for the parts in `dates`."""

    time_format: str | None = None
    """Format of the dates in the column `time` for `strptime`: "%d.%m.%Y". Default: ISO 8601, or numbers."""

    def problems(self) -> Iterator[tuple[str, str]]:
        how = self.raw_value("categories")
        if self.raw_value("time_format") is not None:
            if self.raw_value("time") is None:
                yield "time_format", "has no effect without time, the column of dates; set time, or remove it"
            if wrong := wrong_date_format(self.raw_value("time_format")):
                yield "time_format", wrong
        if self.raw_value("order") and how != "ordinal":
            yield "order", f"has no effect with categories: {how}; remove it, or set categories: ordinal"
        if self.raw_value("smooth") is not None and how != "target":
            yield "smooth", f"has no effect with categories: {how}; remove it, or set categories: target"
        if self.raw_value("group") is not None and self.raw_value("time") is not None:
            yield "time", "cannot be combined with group: a split by time has rows of one group in several parts. Remove one of the two"
        if self.raw_value("fill") != 0 and self.raw_value("impute") != "constant":
            yield "fill", f"has no effect with impute: {self.raw_value('impute')}; remove it, or set impute: constant"


# ---------------------------------------------------------------------------------------------- raw values


def kind_of_values(values: Values, rule: NumberForm | None = None) -> tuple[ColumnKind, str, NumberForm]:
    """Return (kind, reason, how its numbers are written) from the values that are not missing. Spellings of missing values are ignored."""
    if isinstance(values, np.ndarray):
        return "number", "its values are numbers", CANONICAL
    there = [v for v in values if v is not None]
    if not there:
        return "category", "it has no value", CANONICAL
    if all_floats(there) is not None and rule is None:
        return "number", "its values are numbers", CANONICAL
    look = look_at(there, rule)
    if look.mostly:
        every = not look.others and look.numbers == len(there)
        said = f"{look.numbers:,} of {len(there):,} values are numbers" if not every else "its values are numbers"
        return "number", said + (f" ({look.form.words()})" if look.form.words() else ""), look.form
    told = [v for v in there if not (isinstance(v, str) and stands_for_missing(v))]
    if told and all(not isinstance(v, (bool, int, float)) and is_date(str(v)) for v in told[:1000]):
        return "date", "its values are dates", CANONICAL
    return "category", "its values are words", CANONICAL


def take(values: Values, rows: NDArray[np.int64]) -> Values:
    """Return the values of some rows."""
    return values[rows] if isinstance(values, np.ndarray) else [values[i] for i in rows.tolist()]


def _lost(values: Values) -> NDArray[np.bool_]:
    """Return which values are missing."""
    return np.isnan(values) if isinstance(values, np.ndarray) else np.array([v is None for v in values], bool)


# ---------------------------------------------------------------------------------------------- one column, fitted


@dataclass
class Column:
    """The fitted encoding of one column. Fields that its kind does not use stay empty."""

    name: str
    kind: ColumnKind
    why: str
    missing: int
    """Number of missing values among the training rows."""
    fill: float | None = None
    """Replacement of a missing number; None: an error."""
    indicator: bool = False
    categories: tuple[str, ...] = ()
    """Categories seen in training; code i + 1 is categories[i]."""
    most_frequent: int = 0
    """Code of a missing category; 0: a code of its own."""
    encoding: str = ""
    means: tuple[tuple[float, ...], ...] = ()
    """target: mean of the target for code 0 (overall), 1, 2, ..., a number for each class but binary (one) or for the value (one)."""
    parts: tuple[DatePart, ...] = ()
    form: NumberForm = CANONICAL
    """How its numbers are written, if they are text."""

    def codes(self, values: Values) -> NDArray[np.int64]:
        """Return codes; 0 for missing and unseen categories."""
        number = {nfc(c): i + 1 for i, c in enumerate(self.categories)}
        return np.array([self.most_frequent if v is None else number.get(spelling(v), 0) for v in values], np.int64).reshape(len(values))

    def unseen(self, values: Values) -> int:
        """Return which values are neither missing nor known from the training rows (or too rare there)."""
        known = {*map(nfc, self.categories)}
        return sum(v is not None and spelling(v) not in known for v in values)

    def outputs(self) -> list[tuple[str, int, bool]]:
        """(name, number of codes, whether it is scaled) of each encoded column."""
        out: list[tuple[str, int, bool]] = []
        if self.kind == "number":
            out.append((self.name, 0, True))
        elif self.kind == "date":
            out += [(f"{self.name}.{p}", 0, True) for p in self.parts]
        elif self.encoding == "codes":
            out.append((self.name, len(self.categories) + 1, False))
        elif self.encoding == "onehot":
            out += [(f"{self.name}={c}", 0, False) for c in self.categories]
        elif self.encoding == "ordinal":
            out.append((self.name, 0, True))
        else:
            wide = len(self.means[0])
            out += [(self.name if wide == 1 else f"{self.name}.{i}", 0, True) for i in range(wide)]
        return out + ([(f"{self.name} missing", 0, False)] if self.indicator else [])

    def encode(self, values: Values, where: Callable[[int], str]) -> Floats:
        """Return (N, outputs) before scaling."""
        out: Floats
        if self.kind == "number":
            numbers = as_numbers(values, where, self.form)
            out = self._filled(numbers, where)[:, None]
        elif self.kind == "date":
            out = np.stack([self._filled(p, where) for p in date_parts([*values], self.parts, where)], axis=1)
        else:
            codes = self.codes(values)
            if self.encoding == "onehot":
                out = np.zeros((len(codes), len(self.categories) + 1))
                out[np.arange(len(codes)), codes] = 1
                out = out[:, 1:]
            elif self.encoding == "target":
                out = np.array(self.means)[codes]
            else:
                out = codes[:, None].astype(np.float64)
        if self.indicator:
            out = np.concatenate([out, _lost(values).astype(np.float64)[:, None]], axis=1)
        return out

    def _filled(self, numbers: Floats, where: Callable[[int], str]) -> Floats:
        lost = np.isnan(numbers)
        if not lost.any():
            return numbers
        if self.fill is None:
            i = int(np.argmax(lost))
            advice = "set data.table.impute (median, for example), " if self.kind == "number" else ""
            raise DataError(
                f"{where(i)} is missing ({int(lost.sum()):,} of {len(numbers):,} rows). Fill these values in, {advice}"
                "or leave the column out with data.source.drop"
            )
        return np.where(lost, self.fill, numbers)

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "form"} | ({} if self.form == CANONICAL else {"form": self.form.to_json()})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Column:
        plain = dict(data)
        plain["categories"], plain["parts"] = tuple(plain["categories"]), tuple(plain["parts"])
        plain["means"] = tuple(tuple(m) for m in plain["means"])
        return cls(**plain | ({"form": NumberForm(**plain["form"])} if "form" in plain else {}))


# ---------------------------------------------------------------------------------------------- the whole table


@dataclass
class Encoder:
    """The fitted encoder of a table: raw columns -> (N, F) numbers, before scaling."""

    columns: tuple[Column, ...]
    dropped: dict[str, str]
    """Columns that are constant in training and were dropped, with the reason."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(n for c in self.columns for n, _, _ in c.outputs())

    @property
    def codes(self) -> tuple[int, ...]:
        """`DataSpec.categories`."""
        counts = tuple(k for c in self.columns for _, k, _ in c.outputs())
        return counts if any(counts) else ()

    @property
    def scaled(self) -> NDArray[np.bool_]:
        """Which encoded columns are numbers to scale: not codes, zeros and ones."""
        return np.array([s for c in self.columns for _, _, s in c.outputs()], bool)

    @classmethod
    def fit(
        cls, columns: Mapping[str, Values], targets: NDArray[Any], settings: ColumnsConfig, *, declared: Sequence[str] = (),
        classes: int = 0, where: Callable[[int, str], str], seed: int = 0, forms: Mapping[str, NumberForm] | None = None,
    ) -> tuple[Encoder, Floats]:  # fmt: skip
        """Return (encoder, the encoded training rows). `columns` and `targets` are the training rows'; `classes`: 0 if targets are values.
        `forms`: how numbers are written in columns that are numbers already.

        The training rows of a target encoding are encoded out of fold, so that no row's own target is in its features.
        """
        found: list[Column] = []
        dropped: dict[str, str] = {}
        blocks: list[Floats] = []
        categorical = frozenset(declared)
        for name, values in columns.items():
            column = _fit_column(name, values, settings, name in categorical, lambda i, name=name: where(i, name))  # type: ignore[misc]
            if isinstance(column, str):
                dropped[name] = column
                continue
            if column.kind == "category" and column.encoding == "target":
                codes, smooth = column.codes(values), settings.smooth
                column.means = category_means(codes, targets, len(column.categories), classes, smooth)
                block = out_of_fold(codes, targets, len(column.categories), classes, smooth, seed)
                if column.indicator:
                    block = np.concatenate([block, _lost(values).astype(np.float64)[:, None]], axis=1)
            else:
                block = column.encode(values, lambda i, name=name: where(i, name))  # type: ignore[misc]
            if forms and name in forms:
                column.form, column.why = forms[name], f"{column.why} ({forms[name].words()})"
            found.append(column)
            blocks.append(block)
        if not found:
            raise DataError(f"no column is left to predict from: {'; '.join(f'{k} {v}' for k, v in dropped.items())}. Use other columns")
        return cls(tuple(found), dropped), np.concatenate(blocks, axis=1)

    def __call__(self, columns: Mapping[str, Values], where: Callable[[int, str], str]) -> Floats:
        """Return (N, F) for rows outside training."""
        blocks = [c.encode(columns[c.name], lambda i, name=c.name: where(i, name)) for c in self.columns]  # type: ignore[misc]
        return np.concatenate(blocks, axis=1)

    def unseen(self, columns: Mapping[str, Values]) -> dict[str, int]:
        """Return the number of values in each column with a category unseen in training: they get code 0."""
        counts = {c.name: c.unseen(columns[c.name]) for c in self.columns if c.kind == "category"}
        return {k: n for k, n in counts.items() if n}

    def facts(self) -> list[dict[str, Any]]:
        """Return one row per column for the report, including dropped ones."""
        rows = [
            {
                "column": c.name,
                "kind": c.kind,
                "why": c.why,
                "missing": c.missing,
                "becomes": c.encoding if c.kind == "category" else "number" if c.kind == "number" else ", ".join(c.parts),
                "categories": len(c.categories) if c.kind == "category" else None,
            }
            for c in self.columns
        ]
        gone: dict[str, Any] = {"kind": "dropped", "missing": None, "becomes": "nothing", "categories": None}
        return rows + [{"column": k, "why": v} | gone for k, v in self.dropped.items()]

    def to_json(self) -> dict[str, Any]:
        """Return all that `from_json` needs; JSON values only."""
        return {"columns": [c.to_json() for c in self.columns], "dropped": self.dropped}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Encoder:
        return cls(tuple(Column.from_json(c) for c in data["columns"]), dict(data["dropped"]))


def _fit_column(name: str, values: Values, settings: ColumnsConfig, declared: bool, where: Callable[[int], str]) -> Column | str:
    """Return the fitted column, or the reason why it is dropped."""
    lost = int(_lost(values).sum())
    if lost == len(values):
        raise DataError(
            f"column {name!r}: all {len(values):,} training rows have no value. "
            f"Leave it out (data.source.drop: [{in_recipe(name)}]), or check data.source.missing"
        )
    kind: ColumnKind
    kind, why, form = ("category", "declared", CANONICAL) if declared else kind_of_values(values)
    column = Column(name, kind, why, lost, form=form)
    if kind == "number":
        numbers = as_numbers(values, where, form)
        there = numbers[~np.isnan(numbers)]
        if not lost and (there == there[0]).all():
            return f"is {there[0]:g} in every training row"
        column.fill = _fill(there, settings) if settings.impute != "refuse" else None
        column.indicator = settings.indicators and lost > 0
    elif kind == "date":
        column.parts = settings.dates
        if not column.parts:
            raise DataError(
                f"column {name!r} has dates. Set their encoding (data.table.dates: [month, weekday]), or leave it out (data.source.drop: [{in_recipe(name)}])"
            )
        column.indicator = settings.indicators and lost > 0
        if lost and settings.impute != "refuse":
            raise DataError(
                f"column {name!r}: {lost:,} dates are missing, and dates cannot be imputed. Leave it out (data.source.drop: [{in_recipe(name)}])"
            )
    else:
        spelt = [spelling(v) for v in values if v is not None]
        counts: dict[str, int] = {}
        for word in spelt:
            counts[word] = counts.get(word, 0) + 1
        if len(counts) == 1 and not lost:
            return f"is {spelt[0]!r} in every training row"
        if not declared and len(counts) > 50 and 2 * len(counts) > len(values):
            raise DataError(
                f"column {name!r} looks like an identifier or free text: {len(counts):,} different values in {len(values):,} rows. "
                f"Leave it out (data.source.drop: [{in_recipe(name)}]), or list it in data.source.categorical"
            )
        column.categories = tuple(sorted(c for c, n in counts.items() if n >= settings.min_count))
        column.encoding = settings.categories
        if column.encoding == "ordinal" and (order := _order(settings, name)):
            new = sorted({*counts} - {*order})
            if new:
                raise DataError(f"data.table.order of {name!r} lacks {new[0]!r}, which the training rows have. Add it")
            column.categories = order
        column.indicator = settings.indicators and lost > 0
        if settings.fill_categories:
            top = max(column.categories, key=lambda c: counts.get(c, 0), default="")
            column.most_frequent = column.categories.index(top) + 1 if top else 0
    return column


def _order(settings: ColumnsConfig, column: str) -> tuple[str, ...]:
    return next((tuple(map(spelling, order)) for name, order in settings.order.items() if nfc(name) == column), ())


def _fill(there: Floats, settings: ColumnsConfig) -> float:
    how = settings.impute
    if how == "constant":
        return settings.fill
    if how == "most_frequent":  # ties: the smallest, like scikit-learn's SimpleImputer
        values, counts = np.unique(there, return_counts=True)
        return float(values[np.argmax(counts)])
    return float(np.median(there) if how == "median" else there.mean())
