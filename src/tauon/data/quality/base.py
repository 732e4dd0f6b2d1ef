"""What checks of data quality look at, and what they find. A check is one class: derive from `QualityCheck`, decorate with `@register("name")`.

A check never changes data. It names records, so that a person can look at them; whether they are wrong is for the person to say.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tauon.config import Pluggable
from tauon.data.grid import png
from tauon.data.quality.masking import mask

__all__ = ["DataView", "Example", "Finding", "QualityCheck", "Severity"]

Severity = Literal["bad", "warn", "note"]
"""bad: figures of a model cannot be trusted; warn: should be looked at; note: good to know."""
SHOWN = 8
"""Examples of a finding that are recorded."""
CELLS = 8
"""Columns of a row that an example shows."""


@dataclass(frozen=True)
class DataView:
    """The records of one data set as they were read, before anything is fitted, scaled or encoded: N of them, from every part.

    Only the fields of its kind are set.
    """

    kind: str
    """texts, table, images, recordings or series."""
    part_N: NDArray[Any]
    """Part of each record: train, validation or test."""
    place: Callable[[int], str]
    """File and row of a record."""
    labels_N: NDArray[np.int64] | None = None
    """Class of each record; None: there are no classes."""
    label_names: tuple[str, ...] = ()
    targets_N: NDArray[np.float64] | None = None
    """Value to predict of each record, if values are predicted."""
    label: str = ""
    """Name of what is predicted."""
    texts: Sequence[str] = ()
    columns: Mapping[str, Sequence[Any] | NDArray[np.float64]] = field(default_factory=dict)
    """Columns of a table: numbers with NaN, or texts and None."""
    missing: tuple[str, ...] = ("",)
    """Spellings of a missing value in a table."""
    images: NDArray[Any] | None = None
    """(N, C, H, W), 0 to 255."""
    waves: Sequence[NDArray[np.float32]] = ()
    rate: int = 0
    """Sampling rate in Hz."""
    moments: NDArray[Any] | None = None
    """Time of each row of a series."""
    groups_N: Sequence[str] = ()
    """Group of each record, if records belong together."""
    left_out: tuple[str, ...] = ()
    """Files and columns that could not be read, with the reason."""
    seed: int = 0
    show_personal_data: bool = False
    """Whether addresses, telephone numbers and the like are shown in examples as they are."""
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` returns, which is asked once and remembered by name: what several checks need."""
        if name not in self.memo:
            self.memo[name] = make()
        return self.memo[name]

    def __len__(self) -> int:
        return len(self.part_N)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that have records, train first."""
        there = set(self.part_N.tolist())
        return tuple(p for p in ("train", "validation", "test") if p in there)

    def rows(self, part: str) -> NDArray[np.int64]:
        """Return the records of a part."""
        return np.flatnonzero(self.part_N == part)

    def name_of(self, row: int) -> str:
        """Return the class of a record in words, or its value; "" if it has neither."""
        if self.labels_N is not None:
            return self.label_names[int(self.labels_N[row])]
        return "" if self.targets_N is None else f"{float(self.targets_N[row]):g}"


@dataclass(frozen=True)
class Example:
    """One place to look at."""

    rows: tuple[int, ...]
    places: tuple[str, ...]
    text: str
    """What is there, cut to a line or two; records that differ on a line each."""
    note: str = ""
    """What is remarkable about it."""
    image: str = ""
    """The images side by side, a PNG in base64; empty if the records are no images."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    """Name of the check, or of one of its questions: duplicates, label errors."""
    severity: Severity
    message: str
    """One sentence: what was found, how often, what to do."""
    rows: tuple[tuple[int, ...], ...] = ()
    """Every place: one record, or records that belong together (a copy and its original)."""
    examples: tuple[Example, ...] = ()
    columns: tuple[str, ...] = ()
    """Columns of a table that it is about."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Figures; JSON values only."""

    @property
    def count(self) -> int:
        """Number of places."""
        return len(self.rows) or len(self.columns)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values only; of the places at most 1,000."""
        tree = asdict(self) | {"count": self.count, "rows": [list(r) for r in self.rows[:1000]], "facts": dict(self.facts)}
        return tree | {"examples": [asdict(e) for e in self.examples]}


class QualityCheck(Pluggable, family="quality_check"):
    """One question to a data set. Has no state."""

    kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of `DataView` that it can look at; empty: all."""
    title: ClassVar[str]
    """What it asks, in a few words: equal records."""
    needs_classes: ClassVar[bool] = False
    """Whether it asks about labels that are classes; it is not made where there are none."""
    extra: ClassVar[str] = ""
    """Optional dependency that it needs; without it the check is left out, and the report says so."""

    def find(self, view: DataView) -> Iterable[Finding]:
        """Yield what was found; nothing if there is nothing to say."""
        raise NotImplementedError


def examples_of(
    view: DataView, rows: Iterable[tuple[int, ...]], text: Callable[[int], str], note: Callable[[int], str] = lambda _: ""
) -> tuple[Example, ...]:
    """Return the first places as examples. `text` shows a record, `note` says what is remarkable about the place (by its number)."""
    found = []
    for k, place in enumerate(rows):
        if k == SHOWN:
            break
        shown = "\n".join(dict.fromkeys(_excerpt(view, text(i)) for i in place))
        found.append(Example(tuple(place), tuple(view.place(i) for i in place), shown, note(k), _picture(view, place)))
    return tuple(found)


def _excerpt(view: DataView, text: str) -> str:
    """Return the beginning of a text in one line, masked before it is cut."""
    begin = text[:2000]
    return cut(begin if view.show_personal_data else mask(begin), 300 if view.columns else 240)


def _picture(view: DataView, place: tuple[int, ...]) -> str:
    if view.images is None or view.images.shape[1] not in (1, 3):
        return ""
    stride = -(-max(view.images.shape[2:]) // 96)
    tiles = [np.moveaxis(np.clip(view.images[i][:, ::stride, ::stride], 0, 255).astype(np.uint8), 0, -1) for i in place[:4]]
    gap = np.full((tiles[0].shape[0], 2, tiles[0].shape[2]), 128, np.uint8)
    row = np.concatenate([t for tile in tiles for t in (tile, gap)][:-1], 1)
    larger = max(1, 128 // row.shape[0])  # digits of 28 pixels can hardly be seen
    return base64.b64encode(png(row.repeat(larger, 0).repeat(larger, 1))).decode()


def counted(n: int, what: str) -> str:
    """Return a number of things and the verb after them.

    >>> counted(1, "record"), counted(2000, "record")
    ('1 record is', '2,000 records are')
    """
    return f"{n:,} {what} is" if n == 1 else f"{n:,} {what}s are"


def cut(text: str, most: int = 160) -> str:
    """Return a text in one line of at most `most` characters.

    >>> cut("a   long" + chr(10) + "text", 6)
    'a lon…'
    """
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def around(text: str, start: int, end: int, width: int = 50, *, masked: bool = True) -> str:
    """Return a piece of a text with what is before and after; personal data that it touches is masked.

    >>> around("one two three four", 4, 7, width=3)
    '…ne two th…'
    """
    a, b = max(0, start - width), min(len(text), end + width)
    piece = mask(text, a, b) if masked else text[a:b]
    return ("…" if a else "") + cut(piece.strip("\n"), 4 * width).lstrip() + ("…" if b < len(text) else "")


def show(view: DataView, row: int) -> str:
    """Return a record in one line: a text, the cells of a row, the class or the size of an image or a recording."""
    if len(view.texts):
        return view.texts[row]
    if view.columns:
        cells = [f"{name}: {_cell(values[row], view.show_personal_data)}" for name, values in list(view.columns.items())[:CELLS]]
        more = len(view.columns) - len(cells)
        return "; ".join(cells) + (f"; and {more:,} more columns" if more else "")
    name = view.name_of(row)
    if len(view.waves):
        return f"{name}, {len(view.waves[row]) / view.rate:.2f} s".removeprefix(", ")
    if view.images is not None:
        return name or f"{view.images.shape[3]} x {view.images.shape[2]} pixels"
    return ""


def _cell(value: Any, in_full: bool) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    return f"{value:g}" if isinstance(value, float) else cut(str(value) if in_full else mask(str(value)), 40)
