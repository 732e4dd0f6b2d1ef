"""What a source found and did not take: counted in the terminal, listed in `data.json`. A class that nothing is left of is an error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError

__all__ = ["ErrorFeedbackState", "refuse_vanished"]

_LISTED = 20
"""Names of each reason that are given."""


class ErrorFeedbackState:
    """Names of what was not taken, by reason.

    >>> ErrorFeedbackState().add("not pictures by their names", ["a/notes.txt"]).lines()
    ('not pictures by their names (1): a/notes.txt',)
    """

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def add(self, reason: str, names: Sequence[str]) -> ErrorFeedbackState:
        """`names` were not taken, because they are `reason`."""
        if names:
            self.names.setdefault(reason, []).extend(names)
        return self

    def lines(self) -> tuple[str, ...]:
        """A line for each reason: how many, and the first of them."""
        return tuple(
            f"{reason} ({len(names):,}): {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
            for reason, names in self.names.items()
        )


def refuse_vanished(
    labels: Sequence[str], before: NDArray[np.int64], after: NDArray[np.int64], where: str, what: str, example: str = ""
) -> None:
    """`DataError` where a class had files `before` and has none `after` the damaged ones were left out."""
    for number, name in enumerate(labels):
        had = int((before == number).sum())
        if had and not (after == number).any():
            first = f" The first: {example}." if example else ""
            raise DataError(
                f"{where}: class {name!r} has {had:,} files and {what} among them, so nothing of it would be learned.{first} Repair them, or "
                "remove the class"
            )
