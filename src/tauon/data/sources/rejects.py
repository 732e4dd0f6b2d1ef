"""Records that a source cannot read and skips (`on_error: skip`): counted by reason, and written down one per line.

A source has no state; it calls `reject`, and whoever prepares the data listens with `collecting`. Outside of such a block nothing is
recorded: the later passes over a source meet the same records again.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from tauon.data.rejected import rejected_line, rejected_row
from tauon.errors import DataError

__all__ = ["Rejects", "collecting", "reading", "reject"]


class Rejects:
    """What was rejected so far, by part of the data."""

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, "train"
        self.counts: dict[str, Counter[str]] = {}
        self._first: dict[str, str] = {}
        self._file: TextIO | None = None

    def add(self, error: DataError, reason: str) -> None:
        """Record one rejected record. The message of `error` names file and record."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self.counts.setdefault(self.part, Counter())[reason] += 1
        self._first.setdefault(self.part, str(error))
        self._file.write(rejected_line(rejected_row(self.part, step="read", rule=reason, reason=str(error))))

    def first(self, part: str) -> str:
        """Return the message of the first record of a part that was rejected; "" if none was."""
        return self._first.get(part, "")

    def facts(self) -> dict[str, Any]:
        """Return facts for `data.json`: counts by part and reason, and a line for the terminal."""
        if not self.counts:
            return {}
        lines = {
            part: [
                f"{sum(c.values()):,} records rejected ({', '.join(f'{r}: {n:,}' for r, n in c.items())}), the first: {self._first[part]}"
            ]
            for part, c in self.counts.items()
        }
        return {"unreadable": {part: dict(c) for part, c in self.counts.items()}, "left_out": lines}

    def close(self) -> None:
        """Complete the file."""
        if self._file is not None:
            self._file.close()


_listener: ContextVar[Rejects | None] = ContextVar("tauon_data_rejects", default=None)


def reject(error: DataError, reason: str) -> None:
    """Record that a record was skipped because of `error`."""
    listener = _listener.get()
    if listener is not None:
        listener.add(error, reason)


@contextlib.contextmanager
def reading(part: str, *, again: bool = False) -> Iterator[None]:
    """Within the block, rejected records belong to `part`. `again`: they are met once more elsewhere, and not recorded here."""
    listener = _listener.get()
    if listener is not None:
        listener.part = part
    token = _listener.set(None if again else listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def collecting(path: Path) -> Iterator[Rejects]:
    """Within the block, rejected records are counted, and written to a file of JSON lines if there are any."""
    rejects = Rejects(path)
    token = _listener.set(rejects)
    try:
        yield rejects
    finally:
        _listener.reset(token)
        rejects.close()
