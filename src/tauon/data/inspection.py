"""A first look at a table in a text file: delimiter, header, and the probable type of each column, with the reason. For people and programs
that write a recipe; preparing data does not use it, because the recipe decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

from tauon.data.dates import date_formats, is_date
from tauon.data.files import read_bytes
from tauon.data.numbers import CANONICAL, is_number, look_at, number_of, stands_for_missing
from tauon.data.sources.index_column import is_nameless, numbers_rows
from tauon.data.sources.separated import column_names, separated
from tauon.data.spelling import whole_number
from tauon.data.table_numbers import decimal_marks
from tauon.data.text_files import read_text
from tauon.errors import DataError

__all__ = ["ColumnLook", "TableLook", "inspect_table", "look_at_columns"]

LookKind = Literal["number", "category", "date", "text", "identifier", "constant"]

_NO_CATEGORY = ("?", "NaN", "nan", "N/A", "n/a", "#N/A", "<NA>")
"""Never spellings of a category: they mean a missing value even in a text column."""
_DELIMITERS = (",", ";", "\t", "|", "blanks")
_NAMES = frozenset(
    ["name", "names", "fullname", "firstname", "lastname", "surname", "address", "street", "city", "ticket", "cabin", "url", "email"]
)
_TEXT_NAMES = frozenset([
    "text", "sentence", "review", "comment", "question", "message", "tweet", "title", "headline", "body", "content", "description", "utterance", "query",
    "answer", "abstract", "summary", "post", "sms", "subject", "note", "notes",
])  # fmt: skip


@dataclass(frozen=True)
class ColumnLook:
    """Probable type of a column."""

    name: str
    kind: LookKind
    missing: int
    """Number of rows without a value."""
    distinct: int
    """Number of distinct values, without missing ones."""
    why: str
    examples: tuple[str, ...]
    """The most frequent values, at most five."""
    numbers: str = ""
    """How its numbers are written, if not in the usual way."""
    formats: tuple[str, ...] = ()
    """For dates: the formats for `strptime` that fit every value; "" is ISO 8601."""
    whole: bool = False
    """Whether all values are whole numbers."""
    counts: tuple[tuple[str, int], ...] = ()
    """Number of rows of each value, by value, if there are at most 50 values."""
    codes: str = ""
    """The common beginning of its values, if each is that and a number: C of C0017, C0018."""
    typical: bool = True
    """Whether the values are spread as those of a measure or code are; otherwise they fall off like counts: many small ones, few large ones."""


@dataclass(frozen=True)
class TableLook:
    """Result of inspecting a table."""

    path: str
    rows: int
    delimiter: str
    """Value for `source.delimiter`."""
    header: bool
    """Whether the first line names the columns."""
    missing: tuple[str, ...]
    """Spellings of a missing value in the table, the empty cell first."""
    columns: tuple[ColumnLook, ...]
    cells: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)
    """The values by column, as text."""

    def to_json(self) -> dict[str, Any]:
        """JSON values only, without the cells."""
        return {k: v for k, v in asdict(self).items() if k != "cells"}


def inspect_table(path: Path | str, *, limit: int | None = None, encoding: str = "utf-8") -> TableLook:
    r"""Inspect a text file of rows and columns (CSV and similar, compressed or not), up to its first `limit` rows.

    >>> import tempfile; place = Path(tempfile.mkdtemp()) / "t.csv"
    >>> _ = place.write_text("id,age,town,paid\n1,31,Bonn,yes\n2,45,Kiel,no\n3,,Bonn,yes\n4,45,Kiel,no\n")
    >>> [(c.name, c.kind, c.missing, c.distinct) for c in inspect_table(place).columns]
    [('id', 'identifier', 0, 4), ('age', 'number', 1, 2), ('town', 'category', 0, 2), ('paid', 'category', 0, 2)]

    Raises `DataError` if the file cannot be read, has no rows, or if its lines differ in number of values.
    """
    path = Path(path)
    text = read_text(read_bytes(path), str(path), encoding)
    delimiter = _delimiter(text, str(path))
    lines = [cells for _, cells in islice(separated(text, str(path), delimiter), None if limit is None else limit + 1)]
    if not lines:
        raise DataError(f"{path}: the file is empty")
    wide = len(lines[0])
    odd = next((i for i, cells in enumerate(lines) if len(cells) != wide), None)
    if odd is not None:
        raise DataError(
            f"{path}: row {odd} has {len(lines[odd])} values, expected {wide} as in the first. Check the file (delimiter {delimiter!r})"
        )
    header = _has_header(lines)
    names = column_names(lines[0], str(path)) if header else [f"c{i}" for i in range(wide)]
    body = lines[1:] if header else lines[: limit or None]
    if not body:
        raise DataError(f"{path}: no rows below the header. Check the file")
    columns = dict(zip(names, zip(*body, strict=True), strict=True))
    return look_at_columns(columns, str(path), delimiter=delimiter, header=header)


def look_at_columns(columns: Mapping[str, Sequence[Any]], where: str, *, delimiter: str = ",", header: bool = True) -> TableLook:
    """Inspect columns of values that were read from a file: text, numbers of JSON or Parquet, None for missing ones.

    >>> look_at_columns({"id": [1, 2, 3], "town": ["Bonn", "Kiel", None]}, "rows").columns[1].missing
    1
    """
    cells = {name: [_as_text(v) for v in values] for name, values in columns.items()}
    missing = ("", *sorted({word for column in cells.values() for word in _missing_in(column)}))
    marks = decimal_marks({n: [v for v in c if v.strip() not in missing] for n, c in cells.items()})
    looks = tuple(_look(n, c, {*missing}, marks) for n, c in cells.items())
    rows = len(next(iter(cells.values()), []))
    return TableLook(where, rows, delimiter, header, missing, looks, cells)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _delimiter(text: str, where: str) -> str:
    """Return the delimiter that splits the first lines into equally many cells, with no other delimiter in them but a decimal comma."""
    head = "\n".join(text.removeprefix("\ufeff").splitlines()[:50])
    best, most = ",", (0.0, 1)
    for delimiter in _DELIMITERS:
        try:
            lines = [cells for _, cells in separated(head, where, delimiter)]
        except DataError:  # with this delimiter a quote is misplaced, or still open after 50 lines
            continue
        if lines and min(map(len, lines)) == max(map(len, lines)) > 1:
            cells = [cell.strip() for line in lines for cell in line]
            apart = sum(not any(d in cell for d in ",;\t|") or _is_decimal(cell) for cell in cells) if delimiter != "blanks" else 0
            if (apart / len(cells), len(lines[0])) > most:
                best, most = delimiter, (apart / len(cells), len(lines[0]))
    return best


def _is_decimal(cell: str) -> bool:
    """Return whether a cell is a number with a point or a comma."""
    return is_number(cell) or is_number(cell.replace(",", ".", 1))


def _has_header(lines: Sequence[Sequence[str]]) -> bool:
    """The first line is a header if no cell of it is a number, or occurs again below, or is empty except above row numbers."""
    first, rest = lines[0], lines[1:]
    if not any(c.strip() for c in first) or any(_is_decimal(c.strip()) for c in first):
        return False
    if any(not c.strip() and not numbers_rows([row[j] for row in rest]) for j, c in enumerate(first)):
        return False
    return not any(c.strip() and c == row[j] for row in rest for j, c in enumerate(first))


def _missing_in(column: Sequence[str]) -> set[str]:
    """Return spellings of a missing value in a column: exceptions among numbers or dates, and words that no category has."""
    words = {v for v in column if v and stands_for_missing(v)}
    if not words:
        return set()
    others = [v for v in column if not stands_for_missing(v)]
    look = look_at(others)
    odd_ones = bool(others) and ((look.mostly and not look.others) or all(map(is_date, others)))
    return {v.strip() for v in words if v.strip() and (odd_ones or v.strip() in _NO_CATEGORY)}


def _look(name: str, values: Sequence[str], missing: set[str], marks: set[str]) -> ColumnLook:
    there = [v.strip() for v in values if v.strip() not in missing]
    counts: dict[str, int] = {}
    for v in there:
        counts[v] = counts.get(v, 0) + 1
    examples = tuple(sorted(counts, key=lambda v: (-counts[v], v))[:5])
    if is_nameless(name) and numbers_rows(values):
        kind: LookKind = "identifier" if there else "constant"
        why, written = "it has no name and numbers the rows, like the index that pandas writes" if there else "no row has a value", ""
    else:
        kind, why, written = _kind(name, there, counts, len(values), marks)
    formats = tuple(date_formats(list(counts))) if kind == "date" else ()
    whole = bool(counts) and all(whole_number(v) for v in counts)
    listed = tuple(sorted(counts.items(), key=lambda one: (float(one[0]), "") if whole else (0.0, one[0]))) if len(counts) <= 50 else ()
    return ColumnLook(
        name, kind, len(values) - len(there), len(counts), why, examples, written, formats, whole, listed, _codes(counts),
        not (whole and _falls_off(listed)),
    )  # fmt: skip


def _codes(counts: dict[str, int]) -> str:
    """Return the common letters before a number in every value, or nothing."""
    matches = [re.fullmatch(r"([^\W\d]+[-_ ]?)\d+", v) for v in counts]
    starts = {m[1] if m else "" for m in matches}
    return starts.pop() if len(starts) == 1 else ""


def _falls_off(counts: Sequence[tuple[str, int]]) -> bool:
    """Return whether numbers of rows fall off like counts do: from 0 or 1 upwards without gaps at first, one peak, and a thin tail."""
    values = [int(v) for v, _ in counts]
    sizes = [n for _, n in counts]
    if len(values) < 4 or values[0] not in (0, 1):
        return False
    top = sizes.index(max(sizes))
    after = sizes[top:]
    falls = sum(b <= a * 1.25 + 2 for a, b in pairwise(after)) >= 0.8 * (len(after) - 1)
    return top <= len(values) / 2 and falls and sizes[-1] <= 0.2 * max(sizes)


def _kind(name: str, there: Sequence[str], counts: dict[str, int], rows: int, marks: set[str]) -> tuple[LookKind, str, str]:
    """Return (kind, reason, how numbers are written)."""
    n, distinct = len(there), len(counts)
    if distinct == 0:
        return "constant", "no row has a value", ""
    if distinct == 1:
        return "constant", f"every value is {next(iter(counts))[:40]!r}", ""
    if all(map(is_date, there)):
        return "date", "every value is a date", ""
    if any(c in next(iter(counts)) for c in "./-: ") and date_formats(list(counts)):
        return "date", "every value is a date", ""
    look = look_at(there)
    form = look.decided(marks) if look.mostly and not look.others else look.form
    if form is None:
        return "category", f"as numbers it has two readings: {look.two_ways()}", ""
    if look.mostly and not look.others:
        numbers = [v for v in (number_of(t, form) for t in there) if v is not None]
        kind, why = _number_kind(name, numbers, distinct)
        return kind, why, form.words() if form != CANONICAL else ""
    words = sum(len(v.split()) for v in there) / n
    if words < 8 and distinct > 0.5 * n and distinct > 20 and {*re.findall("[a-z]+", name.lower())} & _NAMES:
        return "identifier", "mostly different, and a name of names", ""
    digits = sum(c.isdigit() or c in ":-/." for v in there[:200] for c in v) / max(1, sum(len(v) - v.count(" ") for v in there[:200]))
    measured = look.mostly and look.numbers >= 0.9 * n  # numbers, some of them broken
    if words < 12 and digits > 0.4 and distinct > 50 and 2 * distinct > rows and not measured:
        return "identifier", "mostly digits, and mostly different", ""
    if words >= 5 or (distinct > 0.5 * n and (words >= 3 or _is_unspaced_text(there))):
        return "text", f"{words:.0f} words a value" if words >= 2 else "long values without spaces", ""
    if distinct > 0.5 * n and words >= 1.5 and distinct > 20 and name.lower() in _TEXT_NAMES:
        return "text", f"{words:.0f} words a value, mostly different, and a name of a text", ""
    if distinct == n and n > 2 and _named_as_id(name):
        return "identifier", "a distinct value in each row, and a name of an identifier", ""
    if distinct > 50 and 2 * distinct > rows and not look.mostly:
        return "identifier", f"{distinct:,} different values in {rows:,} rows", ""
    if look.mostly:
        odd = next(v for v in there if number_of(v, look.form) is None)
        said = f"{look.others:,} of {n:,} values are not numbers ({odd[:40]!r}): if they mean missing values, list them in missing"
        return "category", said, ""
    return "category", f"{distinct} different words", ""


def _number_kind(name: str, numbers: Sequence[float], distinct: int) -> tuple[LookKind, str]:
    n, whole = len(numbers), all(v.is_integer() for v in numbers)
    if whole and distinct == n and n > 2:
        in_turn = all(b - a == 1 for a, b in pairwise(numbers))
        if in_turn or _named_as_id(name) or name.lower() in ("index", "no", "nr"):
            return "identifier", "a distinct whole number in each row" + (", counting up" if in_turn else "")
    if whole and distinct <= 10 and 10 * distinct <= n:
        return "number", f"only {distinct} different whole numbers: if they are codes, list the column in categorical"
    return "number", "every value is a number"


def _named_as_id(name: str) -> bool:
    return name.lower() in ("id", "uuid", "guid") or name.lower().endswith(("_id", " id", "-id")) or name.endswith(("Id", "ID"))


def _is_unspaced_text(values: Sequence[str]) -> bool:
    """Return whether these are sentences of a language without spaces between words."""
    wide = sum(sum("\u3040" <= c <= "\u9fff" or "\u0e00" <= c <= "\u0e7f" for c in v) for v in values)
    return wide >= 5 * len(values)
