"""A column without a name that numbers the rows: the index that pandas writes unless told not to. As a feature it would give away order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tauon.data.spelling import whole_number

__all__ = ["is_nameless", "left_out_as_index", "numbers_rows"]

_NAMELESS = re.compile(r"(Unnamed: \d+(_level_\d+)?(\.\d+)*|__index_level_\d+__)?")


def is_nameless(name: str) -> bool:
    """Whether a column has no name, or the one that pandas gives to such: when read and written again, or in Parquet."""
    return bool(_NAMELESS.fullmatch(name))


def numbers_rows(values: Sequence[Any]) -> bool:
    """Whether these are row numbers: whole, no two the same; or nothing at all, as a delimiter at the end of each line leaves."""
    there = [v for v in values if v is not None and v != ""]
    if not there:
        return True
    whole = all(whole_number(v.strip()) if isinstance(v, str) else isinstance(v, int) and not isinstance(v, bool) for v in there)
    return whole and len(there) == len(values) == len({int(v) for v in there})


def left_out_as_index(name: str, values: Sequence[Any]) -> str:
    """What is said of it."""
    if any(v is not None and v != "" for v in values):
        return f"column {name!r}: it has no name and numbers the rows, as pandas writes its index. keep_index: true keeps it"
    return f"column {name!r}: it has no name and no value"
