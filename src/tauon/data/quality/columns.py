"""Tables, column by column: broken numbers, values far outside, missing values, constants, identifiers, columns that give the label away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.label_leaks import suspects
from tauon.data.numbers import CANONICAL, look_at, number_of, stands_for_missing
from tauon.data.quality.base import DataView, Finding, QualityCheck, counted, cut, examples_of

__all__ = ["ColumnGiveaways", "ColumnOutliers", "ColumnValues"]

MOSTLY = 0.8
"""Share of a column's values that are numbers, from which on the others are called broken."""
FAR, BEYOND = 5.0, 3.0
"""A value is far outside from this many robust standard deviations on, and from this many times the distance that 5% of the values exceed."""


def numbers_of(values: Sequence[Any] | NDArray[np.float64], missing: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return (numbers with NaN, which values are neither a number nor missing), read in the form that the column's numbers have."""
    if isinstance(values, np.ndarray):
        return values.astype(np.float64), np.zeros(len(values), bool)
    texts = [None if v is None or (isinstance(v, str) and (v.strip() in missing or stands_for_missing(v))) else v for v in values]
    look = look_at(texts)
    form = look.form if look.mostly else CANONICAL
    out, broken = np.full(len(values), np.nan), np.zeros(len(values), bool)
    for i, value in enumerate(texts):
        if value is None:
            continue
        number = form.value(value) if isinstance(value, str) else number_of(value)
        if number is None:
            broken[i] = True
        else:
            out[i] = number
    return out, broken


def number_columns(view: DataView) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.bool_]]]:
    """Yield (name, numbers, which are broken) of each column that has mostly numbers."""
    for name, values in view.columns.items():
        numbers, broken = numbers_of(values, view.missing)
        known = int(np.isfinite(numbers).sum())
        if known and known >= MOSTLY * (known + int(broken.sum())):
            yield name, numbers, broken


def word_columns(view: DataView) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield (name, values) of each column that has not mostly numbers."""
    numeric = view.once("numeric", lambda: {name for name, _, _ in number_columns(view)})
    for name, values in view.columns.items():
        if name not in numeric and not isinstance(values, np.ndarray):
            yield name, values


@register("column-values")
class ColumnValues(QualityCheck):
    """Values that are no numbers in a column of numbers; columns that are mostly missing, constant, or a number for each row."""

    kinds = ("table",)
    title = "Values of columns"

    def find(self, view: DataView) -> Iterator[Finding]:
        places = [(i, name) for name, _, broken in number_columns(view) for i in np.flatnonzero(broken).tolist()]
        if places:
            rows = tuple((i,) for i in dict.fromkeys(i for i, _ in places))
            named = Counter(name for _, name in places)
            message = (
                f"{len(places):,} values in columns of numbers are no numbers ({_counts(named)}). Correct them, or, if they stand for a missing value, name "
                "them under data.source.missing"
            )
            shown = [f"{name}: {view.columns[name][i]!r}" for i, name in places]
            by_row = {i: s for (i, _), s in reversed(list(zip(places, shown, strict=True)))}
            yield Finding("broken values", "warn", message, rows, examples_of(view, rows, lambda i: by_row[i]), tuple(named))
        empty, constant, identifiers = [], [], []
        for name, values in view.columns.items():
            texts = ["" if v is None or v != v else str(v) for v in (values.tolist() if isinstance(values, np.ndarray) else values)]
            known = [t for t in texts if t.strip() not in view.missing and t]
            distinct = len(set(known))
            if len(known) < 0.5 * len(texts):
                empty.append((name, 1 - len(known) / max(1, len(texts))))
            if known and distinct == 1:
                constant.append(name)
            if (
                len(known) > 50
                and distinct == len(known)
                and not any("." in t for t in known[:50])
                and all(len(t.split()) == 1 for t in known[:50])
            ):
                identifiers.append(name)
        if empty:
            message = f"{counted(len(empty), 'column')} missing in more than half of the rows: " + ", ".join(
                f"{n} ({s:.0%})" for n, s in empty[:8]
            )
            yield Finding("missing values", "note", message, columns=tuple(n for n, _ in empty))
        if constant:
            yield Finding(
                "constants", "note", f"columns with one value only: {', '.join(constant[:8])}. They teach nothing", columns=tuple(constant)
            )
        if identifiers:
            message = (
                f"columns with another value in each row, like an identifier: {', '.join(identifiers[:8])}. They teach nothing, and may name people: leave "
                "them out (data.source.drop)"
            )
            yield Finding("identifiers", "note", message, columns=tuple(identifiers))


@register("column-outliers")
class ColumnOutliers(QualityCheck):
    """Numbers far from all others: another unit, a slipped decimal mark, a code for missing such as 9999.

    A value is far outside if it is `FAR` robust standard deviations (interquartile range / 1.349) from the median and `BEYOND` times as far as the 5% of
    values that are farthest (so that long tails are no faults), both on the plain scale and, for positive columns, on the logarithmic one.
    """

    kinds = ("table",)
    title = "Values far outside"

    def find(self, view: DataView) -> Iterator[Finding]:
        found: dict[int, list[str]] = {}
        named: Counter[str] = Counter()
        for name, numbers, _ in number_columns(view):
            for i in np.flatnonzero(far_outside(numbers)).tolist():
                found.setdefault(i, []).append(f"{name} = {numbers[i]:g}, usual {_usual(numbers)}")
                named[name] += 1
        if found:
            rows = tuple((i,) for i in found)
            message = f"{len(rows):,} rows have numbers far outside the others ({_counts(named)}): check units and decimal marks"
            yield Finding("outliers", "warn", message, rows, examples_of(view, rows, lambda i: "; ".join(found[i])), tuple(named))


def far_outside(numbers_N: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which numbers are far outside.

    >>> np.flatnonzero(far_outside(np.array([1.0, 2, 3, 2] * 20 + [2000.0]))).tolist()
    [80]
    """
    none = np.zeros(len(numbers_N), bool)
    known = numbers_N[np.isfinite(numbers_N)]
    if len(known) < 10 or len(np.unique(known)) < 3:
        return none
    signed = known[known != 0]
    scales = [numbers_N]
    if len(signed) and (known >= 0).all() and np.median(known) > 0:
        scales.append(np.log(np.maximum(numbers_N, signed.min() / 2)))
    outside = [_is_far(robust_distance(s)) for s in scales]
    flagged: NDArray[np.bool_] = np.logical_and.reduce(outside)
    return flagged if flagged.sum() <= 0.1 * len(known) else none


def _is_far(distance_N: NDArray[np.float64]) -> NDArray[np.bool_]:
    far: NDArray[np.bool_] = distance_N > max(FAR, BEYOND * float(np.percentile(distance_N, 95)))
    return far


def robust_distance(x_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance of each number from the median, in robust standard deviations (interquartile range / 1.349)."""
    low, middle, high = np.nanpercentile(x_N, [25, 50, 75])
    spread = (high - low) / 1.349
    if spread == 0:  # most values are the same: the tenths instead of the quartiles
        low, high = np.nanpercentile(x_N, [5, 95])
        spread = (high - low) / 3.29
    if spread == 0:
        return np.zeros(len(x_N))
    distance: NDArray[np.float64] = np.nan_to_num(np.abs(x_N - middle) / spread)
    return distance


@register("column-giveaways")
class ColumnGiveaways(QualityCheck):
    """Columns that alone decide the label: known only afterwards, or the label in other words."""

    kinds = ("table",)
    title = "Columns that give the label away"

    def find(self, view: DataView) -> Iterator[Finding]:
        told, columns = given_away(view)
        if columns:
            yield Finding("giveaways", "bad", "; ".join(told), columns=columns)


def given_away(view: DataView) -> tuple[list[str], tuple[str, ...]]:
    """Return (a sentence for each column that alone decides the label, their names)."""
    found: tuple[list[str], tuple[str, ...]] = view.once("giveaways", lambda: _given_away(view))
    return found


def _given_away(view: DataView) -> tuple[list[str], tuple[str, ...]]:
    train = view.rows("train")
    target = view.labels_N if view.labels_N is not None else view.targets_N
    if target is None or not view.columns:
        return [], ()
    features, coded = [], []
    for values in view.columns.values():
        numbers, broken = numbers_of(values, view.missing)
        words = bool(broken.sum() > (1 - MOSTLY) * len(numbers))
        if words:
            codes = {v: k for k, v in enumerate(dict.fromkeys(map(str, values)))}
            numbers = np.array([codes[str(v)] for v in values], np.float64)
        features.append(np.nan_to_num(numbers[train], nan=-1e300))
        coded.append(words)
    names, classes = list(view.columns), len(view.label_names) if view.labels_N is not None else 0
    told = suspects(np.stack(features, 1), target[train], names, classes, np.array(coded))
    return told, tuple(n for n in names if any(t.startswith(f"column {n!r}:") for t in told))


def _usual(numbers: NDArray[np.float64]) -> str:
    low, high = np.nanpercentile(numbers, [5, 95])
    return f"{low:g} to {high:g}"


def _counts(named: Counter[str]) -> str:
    return cut(", ".join(f"{n}: {c:,}" for n, c in named.most_common(6)), 300)
