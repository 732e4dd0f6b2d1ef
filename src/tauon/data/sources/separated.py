"""Split text into rows and cells: CSV (RFC 4180), or columns separated by blanks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from tauon.data.spelling import nfc
from tauon.errors import DataError

__all__ = ["column_names", "separated"]


def separated(text: str, where: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, cells) of each line that is not empty. `delimiter`: a character, or `blanks`."""
    text = text.removeprefix("\ufeff")
    if delimiter == "blanks":
        yield from ((i, cells) for i, line in enumerate(io.StringIO(text), 1) if (cells := line.split()))
        return
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a setting of the process; by default, longer cells are an error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as err:
            raise DataError(f"{where}, line {reader.line_num}: not valid CSV ({err})") from None
        if cells:
            yield reader.line_num, cells


def column_names(names: Sequence[str], where: str, hint: str = "") -> list[str]:
    """Return the names in the form in which they are compared: accented letters as one character. `DataError` if two columns have one name."""
    found = [nfc(n) for n in names]
    if len({*found}) < len(found):
        seen: dict[str, int] = {}
        for i, name in enumerate(found):
            if name in seen:
                problem = "have no name" if not name.strip() else f"have the same name {name!r}"
                fix = "name them, or delete them if they are empty" if not name.strip() else "rename one"
                raise DataError(f"{where}: two columns {problem} (columns {seen[name] + 1} and {i + 1}); {fix}{hint}")
            seen[name] = i
    return found
