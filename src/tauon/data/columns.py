"""Columns of a table -> numbers: what is a number, a category, a date; missing values; encodings. Fitted on the training rows alone,
kept as JSON, and done again to the last bit on whatever comes later (`Encoder.from_json`).

Scaling is not its business (`Normalizer` in `arrays.py`). Encodings follow scikit-learn where it has them: `onehot` is OneHotEncoder
with unknown categories as zeros, `target` is TargetEncoder (Micci-Barreca 2001, empirical Bayes), out of fold for the training rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Config, Count
from tauon.data.counter import bits, key
from tauon.data.sources.series import moments
from tauon.errors import DataError

__all__ = ["ColumnsConfig", "Encoder", "as_numbers", "is_date", "is_number", "kind_of_values", "spelling"]

DatePart = Literal["days", "year", "month", "day", "weekday", "hour"]
ColumnKind = Literal["number", "category", "date"]
Floats = NDArray[np.float64]


class ColumnsConfig(Config):
    """How columns of a table become numbers."""

    categories: Literal["codes", "onehot", "ordinal", "target"] = "codes"
    """codes: a number for each category, for models that embed it; onehot: a column for each category; ordinal: its place in
    `order`, as one number; target: the mean target of its training rows, as one number a class (out of fold, so nothing leaks)."""
    min_count: Count = Field(1, ge=1)
    """A category with fewer training rows counts as unseen."""
    order: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """ordinal: categories from low to high, by column. Columns left out: in order of the alphabet."""
    smooth: float | None = Field(None, ge=0)
    """target: training rows' worth of the overall mean mixed into each category's. Left out: by empirical Bayes."""
    impute: Literal["refuse", "median", "mean", "most_frequent", "constant"] = "refuse"
    """What a missing number becomes. refuse: an error that names the first. Missing categories have a code of their own."""
    fill: float = 0.0
    """constant: the number."""
    fill_categories: bool = False
    """A missing category becomes the most frequent one, instead of code 0 (no column, with onehot)."""
    indicators: bool = False
    """Beside each column with values missing in training, a column that says 1 where they were."""
    dates: tuple[DatePart, ...] = ()
    """What columns of dates become: days (since 1970), year, month, day, weekday (Monday 0), hour. None given: they are refused."""

    group: str | None = None
    """Column that says whose a row is (a patient, a customer). It is no feature; all rows of one are held out together, and
    privacy.unit=group protects them together."""

    def problems(self) -> Iterator[tuple[str, str]]:
        how = self.peek("categories")
        if self.peek("order") and how != "ordinal":
            yield "order", f"is for categories: ordinal, and they are {how}; drop it"
        if self.peek("smooth") is not None and how != "target":
            yield "smooth", f"is for categories: target, and they are {how}; drop it"
        if self.peek("fill") != 0 and self.peek("impute") != "constant":
            yield "fill", f"is for impute: constant, and it is {self.peek('impute')}; drop it"


# ---------------------------------------------------------------------------------------------- values as they are found


def is_number(value: Any) -> bool:
    """Whether a value, or the text of it, is a finite number."""
    if isinstance(value, bool):
        return True
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def spelling(value: Any) -> str:
    """One spelling of a category, whatever file or JSON it came from: 1, 1.0 and "1" are the same, so are true and "True"; "01" is another."""
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    head, point, tail = text.partition(".")
    return head if point and tail and not tail.strip("0") and head.lstrip("-").isdigit() else text


def as_numbers(values: Sequence[Any], where: Callable[[int], str]) -> Floats:
    """float64, missing ones (None) as NaN; `DataError` that names the first that is no number."""
    found = _floats(values)
    if found is not None:
        return found
    out = np.empty(len(values))
    for i, value in enumerate(values):
        if value is None:
            out[i] = np.nan
        elif is_number(value):
            out[i] = float(value)
        else:
            raise DataError(
                f"{where(i)} is {_short(value)}, expected a number. If it stands for a missing value, say so (missing: ['', {_short(value)}]); "
                "if the column holds categories, name it under categorical:; or leave the column out with features: [...]"
            )
    return out


def _floats(values: Sequence[Any]) -> Floats | None:
    """All at once, where each is a finite number or None: several times faster than one by one. None: look at each."""
    try:
        found = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if found.shape != (len(values),) or np.isinf(found).any():
        return None
    lost = np.flatnonzero(np.isnan(found))
    return found if all(values[i] is None for i in lost.tolist()) else None


def kind_of_values(values: Sequence[Any]) -> tuple[ColumnKind, str]:
    """(kind, reason) from the values that are there."""
    there = [v for v in values if v is not None]
    if not there:
        return "category", "it has no value"
    if _floats(there) is not None:
        return "number", "its values are numbers"
    numbers = sum(map(is_number, there))
    if 2 * numbers >= len(there):
        return "number", f"{numbers:,} of {len(there):,} values are numbers"
    if all(not isinstance(v, (bool, int, float)) and is_date(str(v)) for v in there[:1000]):
        return "date", "its values are dates"
    return "category", "its values are words"


def is_date(text: str) -> bool:
    """Whether a text begins as ISO 8601 dates do: 2016-07-01."""
    text = text.strip()
    return len(text) >= 10 and text[4] == text[7] == "-" and text[:4].isdigit() and text[5:7].isdigit() and text[8:10].isdigit()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# ---------------------------------------------------------------------------------------------- one column, fitted


@dataclass
class Column:
    """What was learned of one column. Fields that its kind has no use for stay empty."""

    name: str
    kind: ColumnKind
    why: str
    missing: int
    """Missing values among the training rows."""
    fill: float | None = None
    """What a missing number becomes; None: it is refused."""
    indicator: bool = False
    categories: tuple[str, ...] = ()
    """Known ones; code i + 1 is categories[i]."""
    most_frequent: int = 0
    """Code that a missing category becomes; 0: its own."""
    encoding: str = ""
    means: tuple[tuple[float, ...], ...] = ()
    """target: mean of the target for code 0 (overall), 1, 2, ..., a number for each class but binary (one) or for the value (one)."""
    parts: tuple[DatePart, ...] = ()

    def codes(self, values: Sequence[Any]) -> NDArray[np.int64]:
        """0 for missing and unseen."""
        number = {c: i + 1 for i, c in enumerate(self.categories)}
        return np.array([self.most_frequent if v is None else number.get(spelling(v), 0) for v in values], np.int64).reshape(len(values))

    def unseen(self, values: Sequence[Any]) -> int:
        """Values that are there and were not among the training rows' (or too rare)."""
        known = {*self.categories}
        return sum(v is not None and spelling(v) not in known for v in values)

    def outputs(self) -> list[tuple[str, int, bool]]:
        """(name, number of codes, whether it is scaled) of each column that comes out."""
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

    def encode(self, values: Sequence[Any], where: Callable[[int], str]) -> Floats:
        """(N, outputs) before scaling."""
        out: Floats
        if self.kind == "number":
            numbers = as_numbers(values, where)
            out = self._filled(numbers, where)[:, None]
        elif self.kind == "date":
            out = np.stack([self._filled(p, where) for p in _date_parts(values, self.parts, where)], axis=1)
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
            out = np.concatenate([out, np.array([v is None for v in values], np.float64).reshape(-1, 1)], axis=1)
        return out

    def _filled(self, numbers: Floats, where: Callable[[int], str]) -> Floats:
        lost = np.isnan(numbers)
        if not lost.any():
            return numbers
        if self.fill is None:
            i = int(np.argmax(lost))
            raise DataError(
                f"{where(i)} is missing ({int(lost.sum()):,} of {len(numbers):,} rows). Fill these values in, say what they become "
                "(data.table.impute: median), or leave the column out with features: [...]"
            )
        return np.where(lost, self.fill, numbers)

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Column:
        plain = dict(data)
        plain["categories"], plain["parts"] = tuple(plain["categories"]), tuple(plain["parts"])
        plain["means"] = tuple(tuple(m) for m in plain["means"])
        return cls(**plain)


def _date_parts(values: Sequence[Any], parts: Sequence[DatePart], where: Callable[[int], str]) -> list[Floats]:
    lost = np.array([v is None for v in values], bool)
    texts = ["1970-01-01" if v is None else str(v).strip() for v in values]
    try:
        days = moments(texts, "")
    except DataError:
        for i, text in enumerate(texts):
            try:
                moments([text], "")
            except DataError:
                raise DataError(f"{where(i)} is {_short(values[i])}, expected a date (2016-07-01 or 2016-07-01 00:00:00)") from None
        raise
    day = days.astype("datetime64[D]")
    month, year = day.astype("datetime64[M]"), day.astype("datetime64[Y]")
    found: dict[str, Any] = {
        "days": days.astype(np.int64) / 86400,
        "year": year.astype(np.int64) + 1970,
        "month": (month - year).astype(np.int64) + 1,
        "day": (day - month).astype(np.int64) + 1,
        "weekday": (day.astype(np.int64) + 3) % 7,
        "hour": (days - day).astype(np.int64) // 3600,
    }
    return [np.where(lost, np.nan, found[p].astype(np.float64)) for p in parts]


# ---------------------------------------------------------------------------------------------- the whole table


@dataclass
class Encoder:
    """Raw columns -> (N, F) numbers, before scaling."""

    columns: tuple[Column, ...]
    dropped: dict[str, str]
    """Columns that the training rows say nothing with, and why."""

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
        """Which columns that come out are numbers to be scaled: not codes, zeros and ones."""
        return np.array([s for c in self.columns for _, _, s in c.outputs()], bool)

    @classmethod
    def fit(
        cls, columns: Mapping[str, Sequence[Any]], targets: NDArray[Any], settings: ColumnsConfig, *, declared: Sequence[str] = (),
        classes: int = 0, where: Callable[[int, str], str], seed: int = 0,
    ) -> tuple[Encoder, Floats]:  # fmt: skip
        """(encoder, the training rows encoded). `columns` and `targets` are the training rows'; `classes`: 0 where targets are values.

        The training rows of a target encoding are encoded out of fold, so that no row's own target is in its features.
        """
        found: list[Column] = []
        dropped: dict[str, str] = {}
        blocks: list[Floats] = []
        for name, values in columns.items():
            column = _fit_column(name, values, settings, name in declared, lambda i, name=name: where(i, name))  # type: ignore[misc]
            if isinstance(column, str):
                dropped[name] = column
                continue
            if column.kind == "category" and column.encoding == "target":
                codes, smooth = column.codes(values), settings.smooth
                column.means = _means(codes, targets, len(column.categories), classes, smooth)
                block = _out_of_fold(codes, targets, len(column.categories), classes, smooth, seed)
                if column.indicator:
                    block = np.concatenate([block, np.array([[v is None] for v in values], np.float64)], axis=1)
            else:
                block = column.encode(values, lambda i, name=name: where(i, name))  # type: ignore[misc]
            found.append(column)
            blocks.append(block)
        if not found:
            raise DataError(f"no column is left to predict from: {'; '.join(f'{k} {v}' for k, v in dropped.items())}. Give other columns")
        return cls(tuple(found), dropped), np.concatenate(blocks, axis=1)

    def __call__(self, columns: Mapping[str, Sequence[Any]], where: Callable[[int, str], str]) -> Floats:
        """(N, F) of rows that the encoder was not fitted on."""
        blocks = [c.encode(columns[c.name], lambda i, name=c.name: where(i, name)) for c in self.columns]  # type: ignore[misc]
        return np.concatenate(blocks, axis=1)

    def unseen(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, int]:
        """Values of each column whose category the training rows did not have: they get code 0."""
        counts = {c.name: c.unseen(columns[c.name]) for c in self.columns if c.kind == "category"}
        return {k: n for k, n in counts.items() if n}

    def facts(self) -> list[dict[str, Any]]:
        """For the report: one row a column, those that were dropped too."""
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
        """All that `from_json` needs; JSON values only."""
        return {"columns": [c.to_json() for c in self.columns], "dropped": self.dropped}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Encoder:
        return cls(tuple(Column.from_json(c) for c in data["columns"]), dict(data["dropped"]))


def _fit_column(name: str, values: Sequence[Any], settings: ColumnsConfig, declared: bool, where: Callable[[int], str]) -> Column | str:
    """The column, or why it is dropped."""
    lost = sum(v is None for v in values)
    if lost == len(values):
        raise DataError(
            f"column {name!r}: all {len(values):,} training rows have no value, so there is nothing to learn from it. "
            f"Leave it out (drop: [{name}]), or check how missing values are spelt"
        )
    kind: ColumnKind
    kind, why = ("category", "declared") if declared else kind_of_values(values)
    column = Column(name, kind, why, lost)
    if kind == "number":
        numbers = as_numbers(values, where)
        there = numbers[~np.isnan(numbers)]
        if not lost and (there == there[0]).all():
            return f"is {there[0]:g} in every training row"
        column.fill = _fill(there, settings) if settings.impute != "refuse" else None
        column.indicator = settings.indicators and lost > 0
    elif kind == "date":
        column.parts = settings.dates
        if not column.parts:
            raise DataError(
                f"column {name!r} holds dates. Say what they become (data.table.dates: [month, weekday]), or leave it out (drop: [{name}])"
            )
        column.indicator = settings.indicators and lost > 0
        if lost and settings.impute != "refuse":
            raise DataError(f"column {name!r}: {lost:,} dates are missing, and no date can be made up. Leave it out (drop: [{name}])")
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
                f"Leave it out (drop: [{name}]), or name it under categorical:"
            )
        column.categories = tuple(sorted(c for c, n in counts.items() if n >= settings.min_count))
        column.encoding = settings.categories
        if column.encoding == "ordinal" and (order := settings.order.get(name)):
            new = sorted({*counts} - {*order})
            if new:
                raise DataError(f"data.table.order of {name!r} does not have {new[0]!r}, which the training rows have. Complete it")
            column.categories = order
        column.indicator = settings.indicators and lost > 0
        if settings.fill_categories:
            top = max(column.categories, key=lambda c: counts.get(c, 0), default="")
            column.most_frequent = column.categories.index(top) + 1 if top else 0
    return column


def _fill(there: Floats, settings: ColumnsConfig) -> float:
    how = settings.impute
    if how == "constant":
        return settings.fill
    if how == "most_frequent":  # the smallest of equals, as scikit-learn's SimpleImputer
        values, counts = np.unique(there, return_counts=True)
        return float(values[np.argmax(counts)])
    return float(np.median(there) if how == "median" else there.mean())


# ---------------------------------------------------------------------------------------------- target encoding


def _means(
    codes: NDArray[np.int64], targets: NDArray[Any], known: int, classes: int, smooth: float | None
) -> tuple[tuple[float, ...], ...]:
    """Mean target of code 0 (overall), 1, ..., `known`, shrunk towards the overall mean; one column, or one for each of > 2 classes.

    Empirical Bayes (Micci-Barreca 2001): lambda = n v / (n v + v_c), v the variance of the targets, v_c that within the category.
    """
    wanted = [targets == c for c in range(classes)] if classes > 2 else [targets == 1] if classes else [targets]
    columns = []
    for y in (np.asarray(w, np.float64) for w in wanted):
        mean, variance = y.mean(), y.var()
        n = np.bincount(codes, minlength=known + 1).astype(np.float64)
        total = np.bincount(codes, weights=y, minlength=known + 1)
        own = np.divide(total, n, out=np.full(known + 1, mean), where=n > 0)
        if smooth is not None:
            encoded = (total + smooth * mean) / np.where(n + smooth > 0, n + smooth, 1.0)
            encoded = np.where(n + smooth > 0, encoded, mean)
        else:
            squares = np.bincount(codes, weights=(y - own[codes]) ** 2, minlength=known + 1)
            within = np.divide(squares, n, out=np.zeros(known + 1), where=n > 0)
            weight = np.divide(n * variance, n * variance + within, out=np.zeros(known + 1), where=n * variance + within > 0)
            encoded = weight * own + (1 - weight) * mean
        encoded[0] = mean
        columns.append(encoded)
    return tuple(tuple(row) for row in np.stack(columns, axis=1).tolist())


_FOLDS = 5


def _out_of_fold(
    codes: NDArray[np.int64], targets: NDArray[Any], known: int, classes: int, smooth: float | None, seed: int
) -> Floats:  # fmt: skip
    """Each row encoded by the rows of the other four folds."""
    fold = np.empty(len(codes), np.int64)
    fold[np.argsort(bits(key(seed, "target encoding"), np.arange(len(codes), dtype=np.uint64)), kind="stable")] = (
        np.arange(len(codes)) % _FOLDS
    )
    out: Floats | None = None
    for k in range(min(_FOLDS, len(codes))):
        mine = fold == k
        encoded = np.array(_means(codes[~mine], targets[~mine], known, classes, smooth))[codes[mine]]
        out = np.empty((len(codes), encoded.shape[1])) if out is None else out
        out[mine] = encoded
    assert out is not None
    return out
