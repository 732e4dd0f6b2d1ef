"""How rows are read from three kinds of files: JSON lines, CSV, Parquet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tauon.config import register
from tauon.data.files import open_bytes, read_bytes
from tauon.data.sources.separated import column_names, separated
from tauon.data.sources.tables import ABSENT, Row, TableConfig, no_column
from tauon.data.spelling import nfc
from tauon.data.text_files import json_objects, read_text, wrong_encoding
from tauon.errors import DataError

__all__ = ["CsvConfig", "JsonlConfig", "ParquetConfig", "python_values"]


@register("jsonl")
class JsonlConfig(TableConfig):
    """One JSON object per line, or one list of objects."""

    later: ClassVar[tuple[str, ...]] = (*TableConfig.later, "encoding")

    encoding: str = "utf-8"
    """Text encoding, read strictly. A byte order mark (UTF-8, UTF-16, UTF-32) takes precedence."""

    keys_vary: ClassVar[bool] = True

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        yield from wrong_encoding(self.raw_value("encoding"))

    def columns(self, path: Path) -> list[str]:
        known: dict[str, None] = {}
        for _, row in self._rows(path):
            known |= dict.fromkeys(row)
        return [*known]

    def rows(self, path: Path, columns: Sequence[str], optional: frozenset[str] = frozenset()) -> Iterator[Row]:
        needed = [c for c in columns if c not in optional]
        for where, row in self._rows(path):
            missing = next((c for c in needed if c not in row), None)
            if missing is None:
                yield where, [row.get(c, ABSENT) for c in columns]
            else:
                self.bad_row(DataError(f"{where}: {no_column(missing, [*row], 'key')}"), "without the key")

    def _rows(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        return json_objects(path, self.encoding, None if self.on_error == "stop" else self.bad_row)


@register("csv")
class CsvConfig(TableConfig):
    """Comma-separated values, quoted as spreadsheets do (RFC 4180)."""

    delimiter: str = ","
    """One character: "\\t" for tabs, ";" for semicolons; or `blanks`: any run of blanks and tabs, without quotes."""
    header: bool = True
    """Whether the first line has the column names. If not, `names` gives them, or they are c0, c1, ..."""
    names: tuple[str, ...] = ()
    """Column names of a file without header line."""
    encoding: str = "utf-8"
    """Text encoding, read strictly. A byte order mark (UTF-8, UTF-16, UTF-32) takes precedence."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        yield from wrong_encoding(self.raw_value("encoding"))
        if len(self.raw_value("delimiter")) != 1 and self.raw_value("delimiter") != "blanks":
            yield "delimiter", f"{self.raw_value('delimiter')!r} is neither one character nor 'blanks'"
        if self.raw_value("names") and self.raw_value("header"):
            yield "names", "conflicts with the header line, which names the columns already; set header: false, or remove names"

    def columns(self, path: Path) -> list[str]:
        return self._named(path, next(self._lines(path), None))

    def rows(self, path: Path, columns: Sequence[str], optional: frozenset[str] = frozenset()) -> Iterator[Row]:
        lines = self._lines(path)
        first = next(lines, None)
        known = self._named(path, first)
        place = {name: i for i, name in enumerate(known)}
        at = [place[c] for c in columns]
        every = at == list(range(len(known)))
        for number, cells in lines if self.header or first is None else itertools.chain([first], lines):
            if len(cells) == len(known):
                yield f"{path}, line {number}", cells if every else [cells[i] for i in at]
                continue
            self.bad_row(
                DataError(
                    f"{path}, line {number}: {len(cells)} values, expected {len(known)} "
                    f"({', '.join(known[:6])}{', ...' if len(known) > 6 else ''})"
                ),
                "another number of values",
            )

    def _named(self, path: Path, first: tuple[int, list[str]] | None) -> list[str]:
        if first is None:
            raise DataError(f"{path}: the file is empty")
        names = first[1] if self.header else list(self.names) or [f"c{i}" for i in range(len(first[1]))]
        return column_names(names, str(path), ", or set header: false" if self.header else "")

    def _lines(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        return separated(read_text(read_bytes(path), str(path), self.encoding), str(path), self.delimiter)


@register("parquet")
class ParquetConfig(TableConfig):
    """Apache Parquet files (compressed internally; a .gz around one is not read)."""

    def columns(self, path: Path) -> list[str]:
        with _parquet(path) as file:
            return column_names(file.schema_arrow.names, str(path))

    def rows(self, path: Path, columns: Sequence[str], optional: frozenset[str] = frozenset()) -> Iterator[Row]:
        number = 0
        with _parquet(path) as file:
            spelt = {nfc(name): name for name in file.schema_arrow.names}
            for batch in file.iter_batches(columns=[spelt[c] for c in dict.fromkeys(columns)]):
                values = {nfc(name): python_values(batch.column(i)) for i, name in enumerate(batch.schema.names)}
                for row in zip(*(values[c] for c in columns), strict=True):
                    yield f"{path}, row {number}", row
                    number += 1


def python_values(column: Any) -> list[Any]:
    """Python values. Timestamps become ISO 8601 text, in UTC if they have a time zone: Python's datetime has no nanoseconds."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_timestamp(column.type):
        if column.type.tz is not None:
            column = column.cast(pa.timestamp(column.type.unit, tz="UTC"))
        column = column.cast(pa.string())
    found: list[Any] = column.to_pylist()
    return found


class _parquet:
    """An open Parquet file. Errors of the library become `DataError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        import pyarrow
        import pyarrow.parquet as pq

        with open_bytes(self._path):  # missing, unreadable, truncated: the same messages as for other files
            pass
        try:
            self._file = pq.ParquetFile(self._path)
        except (pyarrow.ArrowInvalid, OSError) as err:
            raise DataError(f"{self._path}: not a Parquet file ({str(err).splitlines()[0]})") from None
        return self._file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if kind is not None and kind.__module__.startswith("pyarrow"):
            raise DataError(f"{self._path}: damaged Parquet file ({str(error).splitlines()[0]})") from None
