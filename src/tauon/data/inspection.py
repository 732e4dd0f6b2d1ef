"""A first look at a table in a text file: how it is cut, and for each column what it seems to be, with the reason. For people and programs that
must write a recipe; preparing data does not use it, since a recipe says what is what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

from tauon.data.columns import is_date, is_number
from tauon.data.files import decode, read_bytes
from tauon.data.sources.tables import separated
from tauon.errors import DataError

__all__ = ["ColumnLook", "TableLook", "inspect_table"]

LookKind = Literal["number", "category", "date", "text", "identifier", "constant"]

_MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "?", "-")
_DELIMITERS = (",", ";", "\t", "|", "blanks")


@dataclass(frozen=True)
class ColumnLook:
    """What a column seems to be."""

    name: str
    kind: LookKind
    missing: int
    """Rows without a value."""
    distinct: int
    """Different values, missing left out."""
    why: str
    examples: tuple[str, ...]
    """The most frequent values, at most five."""


@dataclass(frozen=True)
class TableLook:
    """What a table seems to be."""

    path: str
    rows: int
    delimiter: str
    """As `source.delimiter` takes it."""
    header: bool
    """Whether the first line names the columns."""
    missing: tuple[str, ...]
    """Spellings of a missing value that were found, the empty cell first."""
    columns: tuple[ColumnLook, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


def inspect_table(path: Path | str, *, limit: int | None = None, encoding: str = "utf-8") -> TableLook:
    r"""Look at a text file of rows and columns (CSV and its like, packed or not); at its first `limit` rows.

    >>> import tempfile; place = Path(tempfile.mkdtemp()) / "t.csv"
    >>> _ = place.write_text("id,age,town,paid\n1,31,Bonn,yes\n2,45,Kiel,no\n3,,Bonn,yes\n4,45,Kiel,no\n")
    >>> [(c.name, c.kind, c.missing, c.distinct) for c in inspect_table(place).columns]
    [('id', 'identifier', 0, 4), ('age', 'number', 1, 2), ('town', 'category', 0, 2), ('paid', 'category', 0, 2)]

    Raises `DataError` for a file that cannot be read, has no rows, or whose lines differ in number of values.
    """
    path = Path(path)
    text = decode(read_bytes(path), str(path), encoding)
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
    names = lines[0] if header else [f"c{i}" for i in range(wide)]
    body = lines[1:] if header else lines[: limit or None]
    if not body:
        raise DataError(f"{path}: no rows below the names of the columns. Check the file")
    columns = list(zip(*body, strict=True))
    missing = ("", *(m for m in _MISSING[1:] if any(_stands_for_nothing(m, c) for c in columns)))
    looks = tuple(_look(n, c, {*missing}) for n, c in zip(names, columns, strict=True))
    return TableLook(str(path), len(body), delimiter, header, missing, looks)


def _delimiter(text: str, where: str) -> str:
    """That which cuts the first lines into most cells, as many in each."""
    head = "\n".join(text.removeprefix("\ufeff").splitlines()[:50])
    best, most = ",", 1
    for delimiter in _DELIMITERS:
        try:
            counts = [len(cells) for _, cells in separated(head, where, delimiter)]
        except DataError:  # a quote that is no quote with this one, or is still open after 50 lines
            continue
        if counts and min(counts) == max(counts) > most:
            best, most = delimiter, counts[0]
    return best


def _has_header(lines: Sequence[Sequence[str]]) -> bool:
    """The first line names the columns if no cell of it is a number, or empty, or comes again below."""
    first, rest = lines[0], lines[1:]
    if len(set(first)) != len(first) or any(not c.strip() or is_number(c) for c in first):
        return False
    return not any(first[j] == row[j] for row in rest for j in range(min(len(first), len(row))))


def _stands_for_nothing(word: str, column: Sequence[str]) -> bool:
    """Whether `word` is the odd one out in a column of numbers or dates, or is written as no category would be."""
    if word not in column:
        return False
    others = [v for v in column if v not in _MISSING]
    return word in ("?", "NaN", "nan", "N/A") or (bool(others) and (all(map(is_number, others)) or all(map(is_date, others))))


def _look(name: str, values: Sequence[str], missing: set[str]) -> ColumnLook:
    there = [v.strip() for v in values if v not in missing]
    counts: dict[str, int] = {}
    for v in there:
        counts[v] = counts.get(v, 0) + 1
    examples = tuple(sorted(counts, key=lambda v: (-counts[v], v))[:5])
    kind, why = _kind(name, there, counts, len(values))
    return ColumnLook(name, kind, len(values) - len(there), len(counts), why, examples)


def _kind(name: str, there: Sequence[str], counts: dict[str, int], rows: int) -> tuple[LookKind, str]:
    n, distinct = len(there), len(counts)
    if distinct == 0:
        return "constant", "no row has a value"
    if distinct == 1:
        return "constant", f"every value is {next(iter(counts))[:40]!r}"
    if all(map(is_date, there)):
        return "date", "every value is a date"
    if all(map(is_number, there)):
        whole = all(float(v).is_integer() for v in there)
        if whole and distinct == n and n > 2:
            numbers = [float(v) for v in there]
            in_turn = all(b - a == 1 for a, b in pairwise(numbers))
            if in_turn or name.lower() in ("id", "index", "no", "nr") or name.lower().endswith(("_id", " id", "-id")):
                return "identifier", "a whole number of its own in each row" + (", counting up" if in_turn else "")
        if whole and distinct <= 10 and 10 * distinct <= n:
            return "number", f"only {distinct} different whole numbers: if they are codes, name the column under categorical"
        return "number", "every value is a number"
    words = sum(len(v.split()) for v in there) / n
    if words >= 5:
        return "text", f"{words:.0f} words a value"
    if distinct == n and n > 2 and (name.lower() == "id" or name.lower().endswith(("_id", " id", "-id"))):
        return "identifier", "a value of its own in each row, and a name that says so"
    if distinct > 50 and 2 * distinct > rows:
        return "identifier", f"{distinct:,} different values in {rows:,} rows"
    numbers_there = sum(map(is_number, there))
    if 2 * numbers_there >= n:
        odd = next(v for v in there if not is_number(v))
        return (
            "category",
            f"{n - numbers_there:,} of {n:,} values are no numbers ({odd[:40]!r}): if they stand for missing ones, name them under missing",
        )
    return "category", f"{distinct} different words"
