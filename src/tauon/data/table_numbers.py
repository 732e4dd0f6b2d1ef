"""Convert the number columns of a table: how numbers are written is detected for each column as a whole; a column that can be read in two
ways is decided by the other columns of the file, or is an error.
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
"""Above it, float64 cannot represent every whole number."""


@dataclass
class NumbersRead:
    """A table whose number columns are arrays, with notes."""

    table: Table
    forms: dict[str, NumberForm]
    """Form of the columns that are not in the canonical form."""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_numbers(table: Table, where: Callable[[int, str], str]) -> NumbersRead:
    """Convert number columns to float64. `DataError` for a value that is not a number, or a column that can be read in two ways."""
    declared = frozenset(table.categorical)
    open_ones = {n: v for n, v in table.columns.items() if n not in declared and not isinstance(v, np.ndarray)}
    made = NumbersRead(table, {})
    advice = "; if it has categories, list it in data.source.categorical"
    columns = dict(table.columns)
    for name, (form, numbers) in read_columns(open_ones, table.numbers, lambda n: f"column {n!r}", made.warnings, advice).items():
        values = table.columns[name]
        if numbers is None:
            numbers = as_numbers(values, lambda i, name=name: where(i, name), form, table.missing)  # type: ignore[misc]
        if form != CANONICAL:
            made.forms[name] = form
        elif _merges(values, numbers):
            made.warnings.append(
                f"column {name!r}: whole numbers above 2^53 cannot be told apart as float64. List it in data.source.categorical, "
                f"or leave it out (data.source.drop: [{in_recipe(name)}])"
            )
        columns[name] = numbers
    made.table = replace(table, columns=columns)
    made.notes += forms_in_words(made.forms, table.columns)
    return made


def read_columns(
    columns: Mapping[str, Sequence[Any]], rule: NumberForm | None, where: Callable[[str], str], warnings: list[str], advice: str = ""
) -> dict[str, tuple[NumberForm, NDArray[np.float64] | None]]:
    """Return (form of its numbers, the numbers if they are canonical) of each number column, in order.

    A column with two readings is decided by the decimal marks of the others; `DataError` if they do not decide.
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
    forms = {name: _decided(where(name), look, marks, warnings, advice) for name, look in looks.items()}
    return {n: (forms.get(n, CANONICAL), plain.get(n)) for n in columns if n in plain or n in forms}


def decimal_marks(columns: Mapping[str, Sequence[Any] | NDArray[np.float64]], rule: NumberForm | None = None) -> set[str]:
    """Return the decimal marks that number columns show unambiguously."""
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


def _decided(where: str, look: Look, marks: Collection[str], warnings: list[str], advice: str) -> NumberForm:
    """Return the form of a column: if it has a rival, by the decimal marks of the file's columns. `DataError` if they do not decide."""
    form = look.decided(marks)
    if form is None:
        raise DataError(f"{where}: {look.two_ways()}{advice}")
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
    """Return one note for each form, not for each column."""
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
