"""The readable feature matrix that explanations of tables work on: names, kinds, categories and the range seen in training.

X is (N, F) float64: numbers as they are, categories as codes 0..n-1, flags as 0 and 1. The model is a function from such rows to (N, C)
outputs: probabilities of classes, or values. Nothing here reads a data set or a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError
from tauon.report.text import figure

__all__ = [
    "Condition",
    "Feature",
    "Matrix",
    "OutOfRange",
    "Predict",
    "answers_of",
    "check_rows",
    "describe_features",
    "number_text",
    "outside_range",
    "shortest_between",
    "value_text",
]

Matrix = NDArray[np.float64]
Predict = Callable[[Matrix], Matrix]
"""(M, F) rows to (M, C) outputs."""


@dataclass(frozen=True)
class Feature:
    """One readable column."""

    name: str
    kind: Literal["number", "category", "flag"] = "number"
    categories: tuple[str, ...] = ()
    """Name of each code, in order. In Tauon's tables code 0 is "missing or unseen". Of a flag: how 0 and 1 read after the name, where
    "is no" and "is yes" would not do: ("is not in the text", "is in the text")."""
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    """Range of the training rows."""
    changeable: bool = True
    """Whether a person could change it (an age cannot be changed): counterfactuals leave the others as they are."""
    integer: bool = False
    """Whether every training row has a whole number."""
    seen: tuple[int, ...] = ()
    """Codes that training rows have. Empty: all of them."""

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        return plain | {key: plain[key] if math.isfinite(plain[key]) else None for key in ("low", "high")}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Feature:
        ends = {key: bound if plain[key] is None else plain[key] for key, bound in (("low", -math.inf), ("high", math.inf))}
        return cls(**(dict(plain) | ends | {"categories": tuple(plain["categories"]), "seen": tuple(plain["seen"])}))

    def possible_codes(self) -> tuple[int, ...]:
        """Return the codes that a row may have: those seen in training."""
        return self.seen or tuple(range(len(self.categories)))


def describe_features(
    train_NF: Matrix, names: Sequence[str], *, categories: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None, fixed: Collection[str] = (),
) -> tuple[Feature, ...]:  # fmt: skip
    """Describe each column of the training rows. `categories` names the codes of category columns; `fixed` are the columns that cannot change.

    A column of zeros and ones alone is a flag.

    >>> [f.kind for f in describe_features(np.array([[1.5, 0.0], [2.0, 1.0]]), ["size", "paid"])]
    ['number', 'flag']
    """
    if train_NF.ndim != 2 or train_NF.shape[1] != len(names):
        raise DataError(f"the feature matrix has shape {train_NF.shape}, but there are {len(names)} names: expected (rows, {len(names)})")
    if not len(train_NF):
        raise DataError("the feature matrix has no row: ranges and categories come from training rows")
    features = []
    for j, name in enumerate(names):
        column = train_NF[:, j]
        _refuse_not_finite(column, name, "the training rows")
        ends = {"low": float(column.min()), "high": float(column.max())}
        common: dict[str, Any] = ends | {"unit": (units or {}).get(name, ""), "changeable": name not in fixed}
        if categories and name in categories:
            seen = tuple(int(code) for code in np.unique(column))
            features.append(Feature(name, "category", tuple(categories[name]), seen=seen, **common))
        elif set(np.unique(column).tolist()) <= {0.0, 1.0}:
            features.append(Feature(name, "flag", integer=True, **common))
        else:
            features.append(Feature(name, integer=bool((column == np.round(column)).all()), **common))
    check_rows(train_NF, features, "the training rows")
    return tuple(features)


def _refuse_not_finite(column: Matrix, name: str, what: str) -> None:
    lost = np.flatnonzero(~np.isfinite(column))
    if len(lost):
        row = int(lost[0])
        raise DataError(
            f"{what}: column {name!r} is {column[row]} in row {row} ({len(lost):,} such rows). Explanations need finite numbers: "
            "fill in missing values first (data.table.impute)"
        )


def check_rows(rows_NF: Matrix, features: Sequence[Feature], what: str = "the rows") -> Matrix:
    """Return the rows as a float64 matrix; DataError for a wrong shape, numbers that are not finite, codes without a category."""
    rows_NF = np.atleast_2d(np.asarray(rows_NF, dtype=np.float64))
    if rows_NF.ndim != 2 or rows_NF.shape[1] != len(features):
        raise DataError(f"{what}: shape {rows_NF.shape}, expected (rows, {len(features)}): one column for each feature")
    for j, feature in enumerate(features):
        column = rows_NF[:, j]
        _refuse_not_finite(column, feature.name, what)
        if feature.kind == "category":
            bad = column[(column < 0) | (column >= len(feature.categories)) | (column != np.round(column))]
            if len(bad):
                raise DataError(f"{what}: column {feature.name!r} has code {bad[0]:g}, expected 0 to {len(feature.categories) - 1}")
    return rows_NF


def answers_of(predict: Predict, rows_NF: Matrix) -> Matrix:
    """Return the model's (N, C) outputs; DataError where their shape is wrong or one is not finite."""
    outputs_NC = np.asarray(predict(rows_NF), dtype=np.float64)
    if outputs_NC.ndim != 2 or len(outputs_NC) != len(rows_NF):
        raise DataError(f"predict returned shape {outputs_NC.shape} for {len(rows_NF)} rows, expected ({len(rows_NF)}, outputs)")
    if not np.isfinite(outputs_NC).all():
        row = int(np.flatnonzero(~np.isfinite(outputs_NC).all(1))[0])
        raise DataError(f"predict returned {outputs_NC[row].tolist()} for row {row}: expected finite numbers")
    return outputs_NC


# ---------------------------------------------------------------------------------------------- values as text


def number_text(value: float) -> str:
    """Write a number with up to 4 significant digits and no zeros at the end.

    >>> number_text(16.8), number_text(12345.0), number_text(0.25)
    ('16.8', '12,345', '0.25')
    """
    if value == round(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    text = figure(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def value_text(feature: Feature, value: float) -> str:
    """Write a feature's value: the category's name, yes or no, or the number with its unit."""
    if feature.kind == "category":
        return feature.categories[int(value)]
    if feature.kind == "flag":
        return "yes" if value > 0.5 else "no"
    return f"{number_text(value)} {feature.unit}".strip()


def shortest_between(low: float, high: float) -> float:
    """Return the number with the fewest digits in [low, high), near the middle: thresholds that a person can read.

    >>> shortest_between(16.7712, 16.8953), shortest_between(-0.3, 0.2), shortest_between(2.0, 3.0)
    (16.8, 0.0, 2.0)
    """
    if not low < high:
        return low
    first = -math.floor(math.log10(max(abs(low), abs(high))))
    for digits in range(first - 1, first + 17):
        step = 10.0**-digits
        for candidate in (round((low + high) / 2 / step), math.ceil(low / step)):
            value = round(candidate * step, digits) + 0.0
            if low <= value < high:
                return value
    return low


@dataclass(frozen=True)
class OutOfRange:
    """A value of a row that no training row has."""

    name: str
    value: str
    expected: str

    @property
    def text(self) -> str:
        return f"{self.name} is {self.value}, outside of what the training rows have ({self.expected})"


def outside_range(row_F: Matrix, features: Sequence[Feature]) -> list[OutOfRange]:
    """Return the features of one row (F,) whose value is outside of the training range, or a category that no training row has."""
    row_F = check_rows(row_F, features, "the row")[0]
    outside = []
    for value, feature in zip(row_F.tolist(), features, strict=True):
        if feature.kind == "category":
            if int(value) not in feature.possible_codes():
                kept = [feature.categories[code] for code in feature.possible_codes()]
                outside.append(OutOfRange(feature.name, value_text(feature, value), ", ".join(kept)))
        elif not feature.low <= value <= feature.high:
            expected = f"{number_text(feature.low)} to {value_text(feature, feature.high)}" if feature.kind == "number" else "yes or no"
            shown = value_text(feature, value) if feature.kind == "number" else number_text(value)
            outside.append(OutOfRange(feature.name, shown, expected))
    return outside


# ---------------------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Condition:
    """low < value <= high of a number, or a set of codes of a category."""

    column: int
    low: float = -math.inf
    high: float = math.inf
    codes: tuple[int, ...] = ()

    def mask(self, rows_NF: Matrix) -> NDArray[np.bool_]:
        """Return which rows meet it, (N,)."""
        column = rows_NF[:, self.column]
        found: NDArray[np.bool_] = np.isin(column, self.codes) if self.codes else (column > self.low) & (column <= self.high)
        return found

    def text(self, features: Sequence[Feature]) -> str:
        """Write it in words: "age is above 25 and at most 40", "purpose is one of {car, furniture}"."""
        feature = features[self.column]
        if feature.kind == "category":
            return f"{feature.name} is {_one_of(feature, self.codes)}"
        if feature.kind == "flag" and not (self.low >= 1 or self.high < 0):
            phrases = feature.categories or ("is no", "is yes")
            return f"{feature.name} {phrases[int(self.low >= 0)]}"
        ends = [f"above {value_text(feature, self.low)}"] if math.isfinite(self.low) else []
        ends += [f"at most {value_text(feature, self.high)}"] if math.isfinite(self.high) else []
        return f"{feature.name} is {' and '.join(ends) or 'any number'}"


def _one_of(feature: Feature, codes: Sequence[int]) -> str:
    possible = feature.possible_codes()
    others = [code for code in possible if code not in codes]
    inside = [code for code in possible if code in codes] or list(codes)
    if len(inside) == 1:
        return feature.categories[inside[0]]
    if 0 < len(others) < len(inside):
        names = [feature.categories[code] for code in others]
        return f"not {names[0]}" if len(names) == 1 else f"none of {{{', '.join(names)}}}"
    return f"one of {{{', '.join(feature.categories[code] for code in inside)}}}"
