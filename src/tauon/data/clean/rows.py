"""Cleaning of data that is in memory as a whole: texts with labels, tables, images, recordings, series. Filters reject examples by number; the
rows that are left are chosen here, so that no filter has to know how its data are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.cache import cache_root, obtain
from tauon.data.clean.base import FilterConfig, Rejected, RowFilter, RowVerdicts, Text, TextFilter
from tauon.data.clean.run import Cleaning, FilterCounts, count_as_read, refuse_too_few, rejection, store_rejected
from tauon.data.progress import report
from tauon.data.sources.base import Arrays, LabelledTexts, Series, Signals, Table
from tauon.data.split import Part
from tauon.errors import DataError

__all__ = ["clean_sources", "kind_of", "take_rows"]

_PER_EXAMPLE: dict[type[Any], tuple[str, ...]] = {
    LabelledTexts: ("texts", "targets", "places", "labels", "groups", "times"),
    Table: ("targets", "places", "labels"),
    Signals: ("waves", "targets", "names", "transcripts", "groups"),
}
"""Fields with one value per example, or none. An `Arrays` chooses its rows itself, and a `Series` has no single examples."""
Record = dict[str, Any]


def kind_of(data: Any) -> str:
    """Return the kind of data as filters name it (`FilterConfig.cleans`)."""
    if isinstance(data, Arrays):
        return "images" if data.features.ndim == 4 else "table"
    return {LabelledTexts: "labelled-text", Table: "table", Signals: "signals", Series: "series"}[type(data)]


def take_rows(data: Any, rows: NDArray[np.int64]) -> Any:
    """Return some examples, in the order of `rows`."""
    if isinstance(data, Arrays):
        return data.rows(rows)
    changed: dict[str, Any] = {}
    for name in _PER_EXAMPLE[type(data)]:
        values = getattr(data, name)
        if values is not None and len(values):
            changed[name] = _taken(values, rows)
    if isinstance(data, Table):
        changed["columns"] = {name: _taken(values, rows) for name, values in data.columns.items()}
    return replace(data, **changed)


def clean_sources(
    whole: Mapping[Part, Any],
    filters: Sequence[FilterConfig],
    *,
    limit: float,
    held_out: str,
    what: str,
    names: Mapping[Part, str] | None = None,
) -> tuple[dict[Part, Any], dict[str, Any]]:
    """Clean the data of each source; return (the data to use instead, facts for the report).

    Args:
        whole: `LabelledTexts`, `Arrays`, `Table`, `Signals` or `Series` of each source, by the part that it is for.
        filters: filters for this kind of data, in order.
        limit: largest share of the training examples that may be rejected.
        held_out: "apply", or "count": validation and test sources of their own are left as they are.
        what: name of the examples, for messages.
        names: name of each source, for the list of what was rejected.

    Raises:
        DataError: more is rejected than `limit`, or all examples of a class.
    """
    instead: dict[Part, Any] = {}
    made: dict[Part, Cleaning] = {}
    lines: list[tuple[str, list[Record]]] = []
    for part, data in whole.items():
        report(f"clean {part}", 0)
        applied = part == "train" or held_out == "apply"
        cleaned, made[part], rejected = _clean(data, filters, applied, part, (names or {}).get(part, ""))
        example = f"{rejected[0]['record']}: {rejected[0]['reason']}" if rejected else ""
        refuse_too_few(made[part], limit, part, what, example)
        if applied:
            _refuse_vanished(data, cleaned, part)
        instead[part] = cleaned if applied else data
        lines.append((part, rejected))
    folder = store_rejected(cache_root(), lines, obtain)
    facts: dict[str, Any] = {"clean": {part: one.to_json() for part, one in made.items()}}
    notes = [one.line(part, what) for part, one in made.items()] + [note for one in made.values() for note in one.notes]
    return instead, facts | {"notes": notes} | ({"rejected": str(folder)} if folder is not None else {})


def _clean(data: Any, filters: Sequence[FilterConfig], applied: bool, part: str, source: str) -> tuple[Any, Cleaning, list[Record]]:
    count_as_read(filters)
    cleaning = Cleaning([FilterCounts(one.kind_) for one in filters], applied, records=len(data))
    numbers, touched, rejected = np.arange(len(data)), set[int](), list[Record]()
    names = _names(data)
    if isinstance(data, LabelledTexts):
        data = replace(data, texts=[Text(text) for text in data.texts])
    for one, counts in zip(filters, cleaning.counts, strict=True):
        counts.seen += len(data)
        verdicts, rows = _verdicts(one, data)
        counts.changed += verdicts.changed
        touched.update(numbers[rows].tolist())
        cleaning.notes += verdicts.notes
        texts = data.texts if isinstance(data, LabelledTexts) else None
        for row, why in sorted(verdicts.rejected.items()):
            counts.reject(why)
            rejected.append(rejection(part, source, names[int(numbers[row])], one, why, "" if texts is None else texts[row]))
        data = data if verdicts.data is None else verdicts.data
        if verdicts.rejected:
            kept = np.setdiff1d(np.arange(len(data)), np.fromiter(verdicts.rejected, np.int64))
            data, numbers = take_rows(data, kept), numbers[kept]
    if isinstance(data, LabelledTexts):
        data = replace(data, texts=[str(text) for text in data.texts])
    cleaning.rejected = len(rejected)
    cleaning.changed = len(touched.intersection(numbers.tolist()))
    return data, cleaning, rejected


def _verdicts(one: FilterConfig, data: Any) -> tuple[RowVerdicts, list[int]]:
    """Return (verdicts, numbers of the examples that were changed)."""
    if isinstance(one, RowFilter):
        verdicts = one.apply(data)
        return verdicts, verdicts.changed_rows
    assert isinstance(one, TextFilter), f"{type(one).__name__} must derive from TextFilter or RowFilter"
    verdicts, texts = RowVerdicts(), list(data.texts)
    for row, text in enumerate(data.texts):
        found = one.apply(text)
        if isinstance(found, Rejected):
            verdicts.rejected[row] = found
        elif found is not text and found != text:
            texts[row] = found if isinstance(found, Text) else Text(found)
            verdicts.changed_rows.append(row)
    verdicts.changed = len(verdicts.changed_rows)
    verdicts.data = replace(data, texts=texts)
    return verdicts, verdicts.changed_rows


def _names(data: Any) -> Sequence[str]:
    """Return where each example is from: file and line where they are known, its number otherwise."""
    for name in ("places", "names"):
        given = getattr(data, name, ())
        if len(given) == len(data) and any(f.name == name for f in fields(data)):
            return [str(place) for place in given]
    return [f"row {number}" for number in range(len(data))]


def _refuse_vanished(before: Any, after: Any, part: str) -> None:
    targets, names = getattr(before, "targets", None), getattr(before, "label_names", ())
    if not isinstance(targets, np.ndarray) or targets.dtype.kind not in "iu" or targets.ndim != 1:
        return
    for number, name in enumerate(names):
        had = int((targets == number).sum())
        if had and not (after.targets == number).any():
            raise DataError(
                f"cleaning rejects all {had:,} examples of class {name!r} in the {part} source, so it could not be learned. Change data.clean, or "
                "remove the class"
            )


def _taken(values: Any, rows: NDArray[np.int64]) -> Any:
    return values[rows] if isinstance(values, np.ndarray) else [values[i] for i in rows.tolist()]
