"""One spelling for words in tables: categories of features, classes of labels, names of columns."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from tauon.data.numbers import is_number, stands_for_missing

__all__ = ["RULE", "classes_alike", "in_recipe", "is_missing", "nfc", "odd_classes", "spelling", "whole_number"]

RULE = "blanks at the ends are cut, true and false are in lower case, 1.0 is 1; every other spelling stays as it is"
"""Description of `spelling`, for the report."""

_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")


def nfc(text: str) -> str:
    """Normalise accented letters to one character: both encodings look the same, and must be the same name."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def in_recipe(name: str) -> str:
    """Return a column's name as a list in a recipe needs it: quoted if necessary."""
    return name if re.fullmatch(r"[^\W\d]\w*", name) else repr(name)


def is_missing(value: Any, missing: frozenset[str]) -> bool:
    """Return whether a value is missing: null, NaN, or one of the spellings of a missing value. Surrounding blanks are ignored."""
    if isinstance(value, str):
        return value in missing or value.strip() in missing
    return value is None or bool(value != value) or (len(missing - {""}) > 0 and spelling(value) in missing)


def spelling(value: Any) -> str:
    """Return one spelling of a category or class from any file or JSON: 1, 1.0 and "1" are the same, so are true and " True".

    >>> [spelling(v) for v in (1.0, " 1", True, "TRUE", "01", "1e2", "Yes", 9007199254740993)]
    ['1', '1', 'true', 'true', '01', '1e2', 'Yes', '9007199254740993']
    """
    text = nfc(str(value).strip())
    if text.lower() in ("true", "false"):
        return text.lower()
    head, point, tail = text.partition(".")
    return head if point and tail and not tail.strip("0") and head.lstrip("-").isdigit() else text


def whole_number(text: str) -> bool:
    """Return whether a text is the usual spelling of a whole number: 7, -12; not 07, 7.0, +7, 1e2."""
    return bool(_WHOLE.fullmatch(text))


def classes_alike(names: Sequence[str], column: str) -> list[str]:
    """Return warnings about classes that are probably the same."""
    alike: dict[Any, list[str]] = {}
    for name in names:
        loose = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        alike.setdefault(Decimal(loose) if is_number(loose) else loose, []).append(name)
    return [
        f"{column}: {' and '.join(map(repr, group))} are different classes. If they mean the same, use one spelling in the file"
        for group in alike.values()
        if len(group) > 1
    ]


def odd_classes(names: Sequence[str], column: str) -> list[str]:
    """Return warnings about classes that are probably the same, and about one that probably means missing."""
    return classes_alike(names, column) + [
        f"{column}: {name!r} is a class. If it means a missing label, remove those rows, or list it in data.source.missing to make them an error"
        for name in names
        if stands_for_missing(name)
    ]
