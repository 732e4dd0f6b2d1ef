"""Labels of a table -> class numbers with names, or values. Decided over all parts at once, so that a test file with labels that happen to
look different is read like the training file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tauon.data.numbers import CANONICAL, NumberForm, all_floats, look_at, number_of, plain_floats, shorten
from tauon.data.spelling import RULE, odd_classes, spelling, whole_number
from tauon.errors import DataError

__all__ = ["LabelKind", "class_numbers", "decide_labels", "label_facts", "read_labels", "renumbered"]

Asked = Literal["auto", "class", "value"]


@dataclass(frozen=True)
class LabelKind:
    """How the labels are read."""

    values: bool
    """Whether they are numbers to predict; otherwise classes."""
    form: NumberForm = CANONICAL
    """How they are written, if they are numbers."""


def decide_labels(
    labels: Sequence[Any], asked: Asked, where: str, rule: NumberForm | None = None, marks: Callable[[], Collection[str]] = tuple
) -> LabelKind:
    """Decide how the labels of all parts are read. auto: values if all are numbers and one has a fraction, classes otherwise.

    Args:
        labels: raw labels.
        asked: the setting `target`.
        where: file and column, for messages.
        rule: how numbers are written, if set.
        marks: the decimal marks in the other columns; used if the labels can be read in two ways.

    Raises:
        DataError: the labels can be read as numbers in two ways, and no other column decides.
    """
    if asked == "class":
        return LabelKind(False)
    numbers, _ = plain_floats(labels) if rule is None else (None, False)
    if numbers is not None:
        return LabelKind(asked == "value" or bool((numbers != np.floor(numbers)).any()))
    look = look_at(labels, rule)
    form = look.form if look.rival is None else look.decided(marks())
    if form is None and not look.others:
        raise DataError(f"{where}: {look.two_ways()}, or, for classes, data.source.target=class")
    form = form or look.form
    if asked == "value":
        return LabelKind(True, form)
    if look.others:
        return LabelKind(False)
    read = [number_of(v, form) for v in labels]
    return LabelKind(any(v is not None and not v.is_integer() for v in read), form)


def read_labels(labels: Sequence[Any], kind: LabelKind, where: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return class numbers (int64) with the names of the classes, or values (float64) with none."""
    if not kind.values:
        return class_numbers(labels, where)
    found = all_floats(labels) if kind.form == CANONICAL else None
    if found is not None:
        return found, ()
    out = np.empty(len(labels))
    for i, label in enumerate(labels):
        number = number_of(label, kind.form)
        if number is None:
            raise DataError(
                f"{where}: {shorten(label)} (row {i}) is not a number, but target: value needs numbers. For classification set data.source.target: class"
            )
        out[i] = number
    return out, ()


def class_numbers(labels: Sequence[Any], where: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the class of each label, and the names: in numerical order if all are whole numbers, else alphabetical. Nothing is rounded."""
    numbers = all_floats(labels)
    odd = np.flatnonzero(numbers != np.floor(numbers)) if numbers is not None else np.empty(0)
    if odd.size:
        raise DataError(
            f"{where}: label {labels[int(odd[0])]} of row {odd[0]} is not a whole number, but classes must be. For regression set data.source.target: value"
        )
    spelt = [spelling(v) for v in labels]
    distinct = {*spelt}
    for name in distinct:
        if not name.isascii() and not name.isprintable() and any("\ud800" <= c <= "\udfff" for c in name):
            raise DataError(f"{where}: the label {name!r} has half a character (a lone surrogate), which is invalid text. Repair the file")
    names = tuple(sorted(distinct, key=Decimal) if all(map(whole_number, distinct)) else sorted(distinct))
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[s] for s in spelt], np.int64), names


def label_facts(labels: Sequence[Any], names: Sequence[str], column: str) -> tuple[dict[str, Any], list[str]]:
    """Return (facts, warnings) about classes: the rule by which spellings are equal, and which were merged."""
    merged: dict[str, list[str]] = {}
    for text in dict.fromkeys(map(str, labels)):
        merged.setdefault(spelling(text), []).append(text)
    several = {name: texts[:10] for name, texts in merged.items() if len(texts) > 1}
    return {"rule": RULE} | ({"one_class": several} if several else {}), odd_classes(names, column)


def renumbered(targets: NDArray[np.int64], names: Sequence[str], training: Sequence[str], part: str) -> NDArray[np.int64]:
    """Return the classes of another part with their numbers from training. `DataError` for a class that training does not have.

    >>> renumbered(np.array([0, 1]), ("b", "a"), ("a", "b"), "test").tolist()
    [1, 0]
    """
    number = {name: i for i, name in enumerate(training)}
    new = [name for name in names if name not in number]
    if new:
        raise DataError(
            f"the {part} source has the label {new[0]!r}, which the training data does not have. Training labels: {', '.join(training)}"
        )
    found: NDArray[np.int64] = np.array([number[name] for name in names], np.int64)[targets]
    return found
