"""Files that a source skipped: counted in the terminal, listed in `data.json`. It is an error if a class loses all its files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError

__all__ = ["SkippedFiles", "refuse_vanished"]

_LISTED = 20
"""How many names are listed for each reason."""


class SkippedFiles:
    """Names of skipped files, by reason.

    >>> SkippedFiles().add("not images by their names", ["a/notes.txt"]).lines()
    ('not images by their names (1): a/notes.txt',)
    """

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def add(self, reason: str, names: Sequence[str]) -> SkippedFiles:
        """Record that `names` were skipped because they are `reason`."""
        if names:
            self.names.setdefault(reason, []).extend(names)
        return self

    def lines(self) -> tuple[str, ...]:
        """Return one line per reason: the number of files and the first names."""
        return tuple(
            f"{reason} ({len(names):,}): {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
            for reason, names in self.names.items()
        )


def refuse_vanished(
    labels: Sequence[str], before: NDArray[np.int64], after: NDArray[np.int64], where: str, what: str, example: str = ""
) -> None:
    """Raise `DataError` if a class had files `before` and has none `after` damaged files were skipped."""
    for number, name in enumerate(labels):
        had = int((before == number).sum())
        if had and not (after == number).any():
            first = f" The first: {example}." if example else ""
            raise DataError(
                f"{where}: class {name!r} has {had:,} files but {what} among them, so it could not be learned.{first} Repair the files, or "
                "remove the class"
            )
