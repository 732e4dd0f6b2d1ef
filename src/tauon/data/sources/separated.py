"""Text of rows and columns -> cells: CSV as RFC 4180 has it, or columns apart by blanks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from tauon.data.spelling import nfc
from tauon.errors import DataError

__all__ = ["column_names", "separated"]


def separated(text: str, where: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number from 1, cells) of each line that is not empty. `delimiter`: a character, or `blanks`."""
    text = text.removeprefix("\ufeff")
    if delimiter == "blanks":
        yield from ((i, cells) for i, line in enumerate(io.StringIO(text), 1) if (cells := line.split()))
        return
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a setting of the process; as it comes, longer cells are refused
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as err:
            raise DataError(f"{where}, line {reader.line_num}: not CSV ({err})") from None
        if cells:
            yield reader.line_num, cells


def column_names(names: Sequence[str], where: str, hint: str = "") -> list[str]:
    """The names as they are compared: letters with accents as one character. `DataError` where two columns have one name."""
    found = [nfc(n) for n in names]
    if len({*found}) < len(found):
        seen: dict[str, int] = {}
        for i, name in enumerate(found):
            if name in seen:
                what = "have no name" if not name.strip() else f"are called {name!r}"
                way = "name them, or delete them if they are empty" if not name.strip() else "rename one"
                raise DataError(f"{where}: two columns {what} (columns {seen[name] + 1} and {i + 1}); {way}{hint}")
            seen[name] = i
    return found
