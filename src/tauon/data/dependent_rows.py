"""Rows of a table that belong together, or follow each other in time, although the recipe splits them at random: figures would be too good.

Refuses where the evidence is strong, warns where it is weak, and says nothing of a recipe that states `table.group`, `table.time` or `split.by`. It sees
the columns that are read: one that the recipe leaves out is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.config import DataConfig
from tauon.data.dates import is_date
from tauon.data.id_names import PEOPLE, words_of
from tauon.data.sources.base import Table
from tauon.data.split import Part
from tauon.errors import DataError

__all__ = ["refuse_dependent_rows"]

_IDS = frozenset(["id", "uid", "uuid", "guid"])
_FEWEST, _ROWS = 10, (2.0, 50.0)
"""Groups, and rows of a group on average, that make a column of ids a group."""
_MOMENTS, _SMOOTH = 30, 0.8
"""Different dates, and correlation of a target with the one before it, that make rows a series."""


def refuse_dependent_rows(table: Table, config: DataConfig, to_split: Sequence[Part]) -> list[str]:
    """Return warnings about a random split of these rows; none if they are not split at random, or the recipe says how.

    Args:
        table: the rows as read, columns of numbers as arrays.
        config: the recipe's `data` section.
        to_split: held-out parts that are taken from these rows.

    Raises:
        DataError: one column has the ids of people (patient_id), each of whom has 2 to 50 rows on average.
    """
    split = config.raw_value("split")
    held = any(split.raw_value(part) > 0 for part in to_split if part != "train") or (
        split.raw_value("folds") is not None and "test" in to_split
    )
    stated = [config.raw_value("table").raw_value(key) for key in ("group", "time")]
    if not held or split.raw_value("by") != "auto" or any(stated):
        return []
    found = [name for name in table.columns if is_persons_id(name)]
    repeats = {name: rows for name in found if (rows := _rows_of_each(table.columns[name])) is not None}
    others = [name for name in table.columns if name not in found and words_of(name)[-1:] and words_of(name)[-1] in _IDS]
    warnings = list(_smooth_in_time(table))
    if not repeats:
        return warnings
    name, rows = next(iter(repeats.items()))
    what = f"column {name!r} has the same value in {rows:.1f} rows on average"
    ways = f"Set data.table.group: {name}, which keeps rows of one in one part, or data.split.by: row if a random split is right"
    if len(repeats) == 1 and not any(_rows_of_each(table.columns[other]) is not None for other in others):
        raise DataError(
            f"{what}: with a random split the held-out rows are of people that training has seen, and figures are too good. {ways}"
        )
    return [*warnings, f"{what}, and other ids repeat, too; the rows are split at random. {ways}"]


def is_persons_id(name: str) -> bool:
    """Return whether a column of this name has ids of people: patient_id, userId, customer-uid, patientid.

    >>> [is_persons_id(name) for name in ("patient_id", "userId", "speakerid", "children", "order_id", "account")]
    [True, True, True, False, False, False]
    """
    words = words_of(name)
    if len(words) == 1 and words[0].endswith("id"):
        words = [words[0][:-2], "id"]
    return bool(words) and words[-1] in _IDS and len(words) > 1 and {*words[:-1]} <= PEOPLE


def _rows_of_each(values: Sequence[Any] | NDArray[np.float64]) -> float | None:
    """Return the rows of an id on average, if the ids repeat as those of groups do; None otherwise."""
    if isinstance(values, np.ndarray):
        if not np.isfinite(values).all() or (values != np.floor(values)).any():
            return None
        distinct = len(np.unique(values))
    else:
        if any(v is None for v in values):
            return None
        distinct = len({*map(str, values)})
    mean = len(values) / max(distinct, 1)
    return mean if distinct >= _FEWEST and _ROWS[0] <= mean <= _ROWS[1] else None


def _smooth_in_time(table: Table) -> Iterator[str]:
    """Yield a warning if there are dates, and in their order the values to predict hardly change from row to row."""
    y = table.targets
    if y.ndim != 1 or np.issubdtype(y.dtype, np.integer):
        return
    for name, values in table.columns.items():
        if isinstance(values, np.ndarray) or not all(isinstance(v, str) for v in values) or len({*values}) < _MOMENTS:
            continue
        if not all(map(is_date, values)):
            continue
        ordered = y[sorted(range(len(values)), key=values.__getitem__)].astype(np.float64)
        before, after = ordered[:-1], ordered[1:]
        if np.std(before) and np.std(after) and np.corrcoef(before, after)[0, 1] >= _SMOOTH:
            yield (
                f"in the order of column {name!r} the values to predict hardly change from row to row; split at random, held-out rows lie between rows that "
                f"training has seen. Set data.table.time: {name} to hold out the last ones, or data.split.by: row if a random split is right"
            )
