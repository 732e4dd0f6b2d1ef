"""One spelling for words of tables: categories of features, classes of labels, names of columns."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from tauon.data.numbers import is_number, stands_for_missing

__all__ = ["RULE", "in_recipe", "is_missing", "nfc", "odd_classes", "spelling", "whole_number"]

RULE = "blanks at the ends are cut, true and false are in lower case, 1.0 is 1; every other spelling stays as it is"
"""What `spelling` does, for the report."""

_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")


def nfc(text: str) -> str:
    """Letters with accents as one character: both ways to write them look the same, and must be the same name."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def in_recipe(name: str) -> str:
    """A column's name as a list in a recipe takes it: quoted where it must be."""
    return name if re.fullmatch(r"[^\W\d]\w*", name) else repr(name)


def is_missing(value: Any, missing: frozenset[str]) -> bool:
    """Whether a value is none: null, NaN, or one of the spellings of a missing value. Blanks around it do not count."""
    if isinstance(value, str):
        return value in missing or value.strip() in missing
    return value is None or bool(value != value) or (len(missing - {""}) > 0 and spelling(value) in missing)


def spelling(value: Any) -> str:
    """One spelling of a category or class, whatever file or JSON it came from: 1, 1.0 and "1" are the same, so are true and " True".

    >>> [spelling(v) for v in (1.0, " 1", True, "TRUE", "01", "1e2", "Yes", 9007199254740993)]
    ['1', '1', 'true', 'true', '01', '1e2', 'Yes', '9007199254740993']
    """
    text = nfc(str(value).strip())
    if text.lower() in ("true", "false"):
        return text.lower()
    head, point, tail = text.partition(".")
    return head if point and tail and not tail.strip("0") and head.lstrip("-").isdigit() else text


def whole_number(text: str) -> bool:
    """Whether a text is how a whole number is usually written: 7, -12; not 07, 7.0, +7, 1e2."""
    return bool(_WHOLE.fullmatch(text))


def odd_classes(names: Sequence[str], column: str) -> list[str]:
    """Warnings: classes that are likely to be one, and a class that is likely to be none."""
    alike: dict[Any, list[str]] = {}
    for name in names:
        loose = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        alike.setdefault(Decimal(loose) if is_number(loose) else loose, []).append(name)
    said = [
        f"{column}: {' and '.join(map(repr, group))} are different classes. If they are one, spell them alike in the file"
        for group in alike.values()
        if len(group) > 1
    ]
    return said + [
        f"{column}: {name!r} is a class. If it stands for a missing label, drop those rows, or name it under missing: to have them refused"
        for name in names
        if stands_for_missing(name)
    ]
