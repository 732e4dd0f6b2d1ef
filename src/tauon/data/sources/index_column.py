"""A column without a name that numbers the rows: the index that pandas writes by default. As a feature it would leak the order of the rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tauon.data.spelling import spelling, whole_number

__all__ = ["is_nameless", "left_out_as_index", "numbers_rows"]

_NAMELESS = re.compile(r"(Unnamed: \d+(_level_\d+)?(\.\d+)*|__index_level_\d+__)?")


def is_nameless(name: str) -> bool:
    """Return whether a column has no name, or the name that pandas gives such a column when it is read and written again, or in Parquet."""
    return bool(_NAMELESS.fullmatch(name))


def numbers_rows(values: Sequence[Any]) -> bool:
    """Return whether these are row numbers (whole, all different) or all empty, as a delimiter at the end of each line leaves."""
    there = [v for v in values if v is not None and v != ""]
    if not there:
        return True
    whole = all(whole_number(v.strip()) if isinstance(v, str) else isinstance(v, int) and not isinstance(v, bool) for v in there)
    return whole and len(there) == len(values) == len({spelling(v) for v in there})


def left_out_as_index(name: str, values: Sequence[Any]) -> str:
    """The note that such a column was left out."""
    if any(v is not None and v != "" for v in values):
        return f"column {name!r}: it has no name and numbers the rows, like the index that pandas writes. To use it: keep_index: true"
    return f"column {name!r}: it has no name and no values"
