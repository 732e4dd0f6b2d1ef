"""The family of cleaning filters, and what one says of a record: kept as it is, changed, or rejected with the reason.

A new filter, here or in another package, is one class: derive from `TextFilter` (or `RowFilter`, for tables, images and recordings), decorate
with `@register("name")`, write `apply`. Order, counts, reasons, the folder `rejected/` and the limit are done elsewhere (`run.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tauon.config import Registered, dump
from tauon.data.clean.english import WordCounts, english

__all__ = ["DefaultConfig", "FilterConfig", "Rejected", "RowFilter", "RowVerdicts", "Text", "TextFilter"]


@dataclass(frozen=True)
class Rejected:
    """A record is left out."""

    rule: str
    """Short name of the rule, under which rejected records are counted: too_few_words."""
    reason: str
    """The measured value and the limit, in words: "12 words, fewer than 50"."""


class Text(str):
    """A text whose pieces, words and lines are computed once, however many filters ask for them. It is used like any string."""

    @cached_property
    def pieces(self) -> list[str]:
        """What stands between blanks."""
        return self.split()

    @cached_property
    def words(self) -> list[str]:
        """Words, and signs as words of their own, by the rules for English (`english.py`)."""
        return english().words(self, self.pieces)

    @cached_property
    def counts(self) -> WordCounts:
        """Sums over the words: cheaper than the words."""
        return english().counts(self, self.pieces)

    @cached_property
    def lines(self) -> list[str]:
        """`splitlines()`."""
        return self.splitlines()


class FilterConfig(Registered, family="clean"):
    """Base class of cleaning filters."""

    cleans: ClassVar[tuple[str, ...]] = ()
    """The kinds of data that it cleans: text, labelled-text, table, images, signals, series."""

    looks_at_others: ClassVar[bool] = False
    """Whether it decides about a record by other records. Private training refuses such filters."""
    hides_text: ClassVar[bool] = False
    """Whether the beginning of a text that it rejects stays out of `rejected/`, because it must not be read."""
    libraries: ClassVar[dict[str, str]] = {}
    """Optional libraries that it needs: module -> name of the package. They are in `tauon[clean]`."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        for package in self.missing():
            yield "kind", f"{self.kind_} needs {package}, which is not installed: pip install 'tauon[clean]'"

    def missing(self) -> list[str]:
        """Return the packages that it needs and that are not installed."""
        return [package for module, package in self.libraries.items() if find_spec(module) is None]

    def files(self) -> list[Path]:
        """Return the files that it reads: a run notices when one of them has changed."""
        return []

    def depends_on(self) -> list[Any]:
        """Return everything besides settings and the versions of `libraries` that decides the result: the hash of a file. JSON values only."""
        return []

    def module(self) -> str:
        """Return the module that another process must import to do the same."""
        return type(self).__module__

    def fingerprint(self) -> list[Any]:
        """Return everything that decides the result: data cleaned with an equal fingerprint is equal. JSON values only."""
        return [dump(self), {package: version(package) for package in self.libraries.values()}, self.depends_on()]


class TextFilter(FilterConfig):
    """Base class of filters of texts, one at a time."""

    cleans: ClassVar[tuple[str, ...]] = ("text", "labelled-text")

    def apply(self, text: str) -> str | Rejected:
        """Return the text, changed or not, or why it is left out. A `Text` is passed: its words are computed once for all filters."""
        raise NotImplementedError


@dataclass
class RowVerdicts:
    """What a `RowFilter` says of the N examples of a source."""

    rejected: dict[int, Rejected] = field(default_factory=dict)
    """Examples to leave out, by number."""
    changed: int = 0
    """Number of examples whose values were changed; then `data` is the changed data."""
    changed_rows: list[int] = field(default_factory=list)
    """Their numbers."""
    data: Any = None
    """The data with changed values, as many examples as before. None: unchanged."""
    notes: list[str] = field(default_factory=list)
    """What was found and left as it is, to show to the user."""

    def reject(self, rows: NDArray[Any] | Sequence[int], rule: str, reasons: Mapping[int, str] | str) -> None:
        """Reject rows (a mask, or numbers) that no rule has rejected before."""
        numbers = np.flatnonzero(rows) if isinstance(rows, np.ndarray) and rows.dtype == bool else np.asarray(rows, np.int64)
        for row in numbers.tolist():
            self.rejected.setdefault(row, Rejected(rule, reasons if isinstance(reasons, str) else reasons[row]))


class RowFilter(FilterConfig):
    """Base class of filters that look at all examples of a source at once."""

    def apply(self, data: Any) -> RowVerdicts:
        """Look at a whole `Table`, `Arrays`, `Signals` or `Series`; must not modify it."""
        raise NotImplementedError


def expanded(filters: Sequence[FilterConfig], kind: str) -> tuple[FilterConfig, ...]:
    """Return the filters with `default` replaced by the default filters of a kind of data."""
    return tuple(one for given in filters for one in (given.filters(kind) if isinstance(given, DefaultConfig) else (given,)))


class DefaultConfig(FilterConfig):
    """Base class of the filter that stands for the default filters of each kind of data (`defaults.py`)."""

    def filters(self, kind: str) -> Iterator[FilterConfig]:
        """Yield the default filters of a kind of data."""
        raise NotImplementedError
