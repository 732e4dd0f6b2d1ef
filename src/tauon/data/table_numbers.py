"""The columns of a table that are numbers, read as numbers: how each is written is found over the column as a whole, and a column that can
be read in two ways is decided by what the others of the file show, or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.numbers import CANONICAL, Look, NumberForm, as_numbers, look_at, plain_floats
from tauon.data.sources.base import Table
from tauon.data.spelling import in_recipe, spelling
from tauon.errors import DataError

__all__ = ["NumbersRead", "decimal_marks", "forms_in_words", "read_columns", "read_numbers"]

_EXACT = 2.0**53
"""Beyond it, float64 does not have every whole number."""


@dataclass
class NumbersRead:
    """A table whose columns of numbers are arrays, and what to say of it."""

    table: Table
    forms: dict[str, NumberForm]
    """How the columns are written that are not in the canonical form."""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_numbers(table: Table, where: Callable[[int, str], str]) -> NumbersRead:
    """Columns of numbers as float64. `DataError`: a value in such a column that is none, or a column that can be read in two ways."""
    declared = frozenset(table.categorical)
    open_ones = {n: v for n, v in table.columns.items() if n not in declared and not isinstance(v, np.ndarray)}
    made = NumbersRead(table, {})
    way_out = "; if it holds categories, name it under categorical:"
    columns = dict(table.columns)
    for name, (form, numbers) in read_columns(open_ones, table.numbers, lambda n: f"column {n!r}", made.warnings, way_out).items():
        values = table.columns[name]
        if numbers is None:
            numbers = as_numbers(values, lambda i, name=name: where(i, name), form, table.missing)  # type: ignore[misc]
        if form != CANONICAL:
            made.forms[name] = form
        elif _merges(values, numbers):
            made.warnings.append(
                f"column {name!r}: whole numbers beyond 2^53 become one another as numbers. Name it under categorical: "
                f"or leave it out (drop: [{in_recipe(name)}])"
            )
        columns[name] = numbers
    made.table = replace(table, columns=columns)
    made.notes += forms_in_words(made.forms, table.columns)
    return made


def read_columns(
    columns: Mapping[str, Sequence[Any]], rule: NumberForm | None, where: Callable[[str], str], warnings: list[str], way_out: str = ""
) -> dict[str, tuple[NumberForm, NDArray[np.float64] | None]]:
    """(how its numbers are written, the numbers where they are plain) of each column that is one of numbers, in the order given.

    A column with two readings is decided by the decimal marks that the others show; `DataError` where they do not tell.
    """
    plain: dict[str, NDArray[np.float64]] = {}
    looks: dict[str, Look] = {}
    marks: set[str] = set()
    for name, values in columns.items():
        numbers, dotted = plain_floats(values) if rule is None else (None, False)
        if numbers is not None:
            plain[name] = numbers
            marks |= {"."} if dotted else set()
            continue
        look = look_at([v for v in values if v is not None], rule)
        if look.mostly:
            looks[name] = look
            marks |= look.marks
    forms = {name: _decided(where(name), look, marks, warnings, way_out) for name, look in looks.items()}
    return {n: (forms.get(n, CANONICAL), plain.get(n)) for n in columns if n in plain or n in forms}


def decimal_marks(columns: Mapping[str, Sequence[Any] | NDArray[np.float64]], rule: NumberForm | None = None) -> set[str]:
    """The decimal marks that columns of numbers show beyond doubt."""
    marks: set[str] = set()
    for values in columns.values():
        if isinstance(values, np.ndarray):
            continue
        numbers, dotted = plain_floats(values) if rule is None else (None, False)
        if numbers is not None:
            marks |= {"."} if dotted else set()
        elif (look := look_at([v for v in values if v is not None], rule)).mostly:
            marks |= look.marks
    return marks


def _decided(where: str, look: Look, marks: Collection[str], warnings: list[str], way_out: str) -> NumberForm:
    """The form of a column: where it has a rival, by the decimal marks that the file's columns show. `DataError` where they do not tell."""
    form = look.decided(marks)
    if form is None:
        raise DataError(f"{where}: {look.two_ways()}{way_out}")
    if look.rival is None or form != look.form:
        return form
    if not marks and look.numbers >= 3 and not look.ambiguous:
        warnings.append(
            f"{where}: {look.example!r} is read as {look.form.value(look.example):g}. "
            f"If it is {look.rival.value(look.example):,g}, set data.source.{look.rival.setting()}"
        )
    return look.form


def _merges(values: Sequence[Any] | NDArray[np.float64], numbers: NDArray[np.float64]) -> bool:
    if not len(numbers) or max(numbers.max(), -numbers.min()) < _EXACT or not np.nanmax(np.abs(numbers), initial=0.0) >= _EXACT:
        return False
    return len({spelling(v) for v in values if v is not None}) > len(np.unique(numbers[~np.isnan(numbers)]))


def forms_in_words(forms: Mapping[str, NumberForm], columns: Mapping[str, Sequence[Any] | NDArray[np.float64]]) -> list[str]:
    """One line for each form, not for each column."""
    by_form: dict[NumberForm, list[str]] = {}
    for name, form in ((n, f) for n, f in forms.items() if f != CANONICAL):
        by_form.setdefault(form, []).append(name)
    said = []
    for form, names in by_form.items():
        texts = (v for name in names for v in columns[name] if isinstance(v, str) and form.value(v) is not None)
        text = next((v for v in texts if CANONICAL.value(v) != form.value(v)), None)
        if text is None:
            continue
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
        said.append(f"numbers in {listed}: {form.words()}, so {text!r} is {form.value(text):.15g}")
    return said
