"""Apply cleaning filters to the data of a source, in order: count, keep the reasons, stop if too much would go.

Cleaning comes before the split, so what it rejects is in no part that is taken from the source. A validation or test set of its own is a
measure that others may have published figures on: its records are counted, and kept as they are, unless `data.clean_held_out: apply` says
otherwise.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tauon.data.clean.base import FilterConfig, Rejected, Text, TextFilter
from tauon.data.files import canonical, write_plain_json
from tauon.data.rejected import rejected_line, rejected_row
from tauon.errors import DataError

__all__ = ["Cleaning", "FilterCounts", "RejectedFile", "TextCleaner", "fingerprint_of", "refuse_too_few", "rejection"]

_VERSION = 1


@dataclass
class FilterCounts:
    """What one filter did with the records of one source."""

    kind: str
    seen: int = 0
    changed: int = 0
    rejected: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    """Rejected records by rule."""

    def reject(self, rejected: Rejected) -> None:
        self.rejected += 1
        self.rules[rejected.rule] += 1

    def add(self, other: FilterCounts) -> None:
        """Add the counts of other records."""
        self.seen, self.changed, self.rejected = self.seen + other.seen, self.changed + other.changed, self.rejected + other.rejected
        self.rules.update(other.rules)

    def to_json(self) -> dict[str, Any]:
        rules = dict(sorted(self.rules.items(), key=lambda item: (-item[1], item[0])))
        return {"filter": self.kind, "seen": self.seen, "changed": self.changed, "rejected": self.rejected, "rules": rules}


@dataclass
class Cleaning:
    """Counts of one source, for the report."""

    counts: list[FilterCounts]
    applied: bool = True
    """False: only counted, the records are as they were."""
    records: int = 0
    rejected: int = 0
    changed: int = 0
    """Records that at least one filter changed, and none rejected."""
    notes: list[str] = field(default_factory=list)

    def add(self, other: Cleaning) -> None:
        """Add the counts of other records, by the same filters."""
        self.records, self.rejected, self.changed = (
            self.records + other.records,
            self.rejected + other.rejected,
            self.changed + other.changed,
        )
        for mine, more in zip(self.counts, other.counts, strict=True):
            mine.add(more)

    def to_json(self) -> dict[str, Any]:
        return {
            "applied": self.applied, "records": self.records, "rejected": self.rejected, "changed": self.changed,
            "filters": [one.to_json() for one in self.counts],
        } | ({"notes": self.notes} if self.notes else {})  # fmt: skip

    def line(self, part: str, what: str) -> str:
        """Return one line for the terminal."""
        by = sorted((one for one in self.counts if one.rejected), key=lambda one: -one.rejected)
        why = f" ({', '.join(f'{one.kind} {one.rejected:,}' for one in by[:4])})" if by else ""
        verb = "rejected" if self.applied else "would be rejected; a held-out set of its own is kept as it is"
        return f"cleaning ({part}): {self.rejected:,} of {self.records:,} {what} {verb}{why}, {self.changed:,} changed"


class TextCleaner:
    """Applies text filters to one text after the other.

    >>> from tauon.data.clean.text import LengthConfig
    >>> cleaner = TextCleaner([LengthConfig(min=3, unit="words")])
    >>> cleaner("too short")
    Rejected(rule='too_short', reason='2 words, fewer than 3')
    >>> cleaner("this is long enough"), cleaner.cleaning.rejected
    ('this is long enough', 1)
    """

    def __init__(self, filters: Sequence[FilterConfig], applied: bool = True) -> None:
        self._filters = [one for one in filters if isinstance(one, TextFilter)]
        assert len(self._filters) == len(filters), "checked by the kind of data"
        count_as_read(filters)
        self.cleaning = Cleaning([FilterCounts(one.kind_) for one in filters], applied)
        self.by: FilterConfig | None = None
        """The filter that rejected the last text."""
        self.changed_by: list[int] = []
        """Numbers of the filters that changed the last text."""

    def __call__(self, text: str) -> str | Rejected:
        """Return the cleaned text, or why it is left out."""
        cleaning, view = self.cleaning, Text(text)
        cleaning.records += 1
        self.by, self.changed_by = None, []
        for number, (one, counts) in enumerate(zip(self._filters, cleaning.counts, strict=True)):
            counts.seen += 1
            found = one.apply(view)
            if isinstance(found, Rejected):
                counts.reject(found)
                cleaning.rejected += 1
                self.by = one
                return found
            if found is not view and found != view:
                counts.changed += 1
                self.changed_by.append(number)
                view = found if isinstance(found, Text) else Text(found)
        if not self.changed_by:
            return text
        cleaning.changed += 1
        return str(view)


class RejectedFile:
    """The rejected records of one source: `rejected/train.jsonl`, one JSON object a line."""

    def __init__(self, folder: Path, part: str) -> None:
        folder.mkdir(exist_ok=True)
        self._file = open(folder / f"{part}.jsonl", "w", encoding="utf-8")  # noqa: SIM115
        self._part = part

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write down what `rejection` says of records."""
        for row in rows:
            self._file.write(rejected_line(row))

    def close(self) -> None:
        self._file.close()


def rejection(part: str, source: str, record: str, by: FilterConfig, why: Rejected, text: str = "") -> dict[str, Any]:
    """Return the line of `rejected/` for a record that a filter has rejected: where it is from, which filter and why, and how its text begins, unless
    the filter hides it.
    """
    shown = "" if by.hides_text else text
    return rejected_row(part, source=source, record=record, step=by.kind_, rule=why.rule, reason=why.reason, text=shown)


def fingerprint_of(filters: Sequence[FilterConfig], held_out: str) -> list[Any]:
    """Return everything that decides what cleaning makes of the same source. JSON values only."""
    return [_VERSION, [one.fingerprint() for one in filters], held_out]


def count_as_read(filters: Sequence[FilterConfig]) -> None:
    """Count every setting as used: one that no record needed was used, too."""
    for one in filters:
        for name in type(one).model_fields:
            getattr(one, name)


def refuse_too_few(cleaning: Cleaning, limit: float, part: str, what: str, example: str = "") -> None:
    """Raise `DataError` if more than `limit` of a source was rejected, or all of it."""
    if not cleaning.applied or not cleaning.rejected:
        return
    share = cleaning.rejected / cleaning.records
    if share <= limit and cleaning.rejected < cleaning.records:
        return
    rules = Counter({f"{one.kind}: {rule}": number for one in cleaning.counts for rule, number in one.rules.items()})
    top = "; ".join(f"{rule} {number:,}" for rule, number in rules.most_common(3))
    first = f" For example {example}." if example else ""
    raise DataError(
        f"cleaning rejects {cleaning.rejected:,} of {cleaning.records:,} {what} of the {part} source ({share:.0%}), more than data.clean_limit "
        f"{limit:.0%}. Most: {top}.{first} Change data.clean, or raise data.clean_limit if the source is as bad as that"
    )


def store_rejected(root: Path, lines: Sequence[tuple[str, list[dict[str, Any]]]], obtain: Callable[..., bool]) -> Path | None:
    """Write rejected records of data that is kept in memory to a folder named by their content; None if there are none."""
    if not any(records for _, records in lines):
        return None
    folder = root / "rejected" / hashlib.sha256(canonical([list(line) for line in lines]).encode()).hexdigest()[:32]

    def build(temporary: Path) -> None:
        for part, records in lines:
            body = "".join(map(rejected_line, records))
            (temporary / f"{part}.jsonl").write_text(body, encoding="utf-8")
        write_plain_json(temporary / "done.json", {"records": sum(len(records) for _, records in lines)})

    obtain(folder, "done.json", build)
    return folder
