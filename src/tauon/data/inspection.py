"""A first look at a table in a text file: delimiter, header, and the probable type of each column, with the reason. For people and programs
that write a recipe; preparing data does not use it, because the recipe decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

from tauon.data.dates import is_date
from tauon.data.files import read_bytes
from tauon.data.numbers import CANONICAL, is_number, look_at, number_of, stands_for_missing
from tauon.data.sources.index_column import is_nameless, numbers_rows
from tauon.data.sources.separated import column_names, separated
from tauon.data.table_numbers import decimal_marks
from tauon.data.text_files import read_text
from tauon.errors import DataError

__all__ = ["ColumnLook", "TableLook", "inspect_table"]

LookKind = Literal["number", "category", "date", "text", "identifier", "constant"]

_NO_CATEGORY = ("?", "NaN", "nan", "N/A", "n/a", "#N/A", "<NA>")
"""Never spellings of a category: they mean a missing value even in a text column."""
_DELIMITERS = (",", ";", "\t", "|", "blanks")


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

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


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
    columns = list(zip(*body, strict=True))
    missing = ("", *sorted({word for column in columns for word in _missing_in(column)}))
    marks = decimal_marks({n: [v for v in c if v.strip() not in missing] for n, c in zip(names, columns, strict=True)})
    looks = tuple(_look(n, c, {*missing}, marks) for n, c in zip(names, columns, strict=True))
    return TableLook(str(path), len(body), delimiter, header, missing, looks)


def _delimiter(text: str, where: str) -> str:
    """Return the delimiter that splits the first lines into most cells, the same number in each."""
    head = "\n".join(text.removeprefix("\ufeff").splitlines()[:50])
    best, most = ",", 1
    for delimiter in _DELIMITERS:
        try:
            counts = [len(cells) for _, cells in separated(head, where, delimiter)]
        except DataError:  # with this delimiter a quote is misplaced, or still open after 50 lines
            continue
        if counts and min(counts) == max(counts) > most:
            best, most = delimiter, counts[0]
    return best


def _has_header(lines: Sequence[Sequence[str]]) -> bool:
    """The first line is a header if no cell of it is a number, or occurs again below, or is empty except above row numbers."""
    first, rest = lines[0], lines[1:]
    if not any(c.strip() for c in first) or any(is_number(c) for c in first):
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
    return ColumnLook(name, kind, len(values) - len(there), len(counts), why, examples, written)


def _kind(name: str, there: Sequence[str], counts: dict[str, int], rows: int, marks: set[str]) -> tuple[LookKind, str, str]:
    """Return (kind, reason, how numbers are written)."""
    n, distinct = len(there), len(counts)
    if distinct == 0:
        return "constant", "no row has a value", ""
    if distinct == 1:
        return "constant", f"every value is {next(iter(counts))[:40]!r}", ""
    if all(map(is_date, there)):
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
    if words >= 5:
        return "text", f"{words:.0f} words a value", ""
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
    return name.lower() == "id" or name.lower().endswith(("_id", " id", "-id"))
