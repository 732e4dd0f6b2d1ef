"""Tables in files: JSON lines, CSV, Parquet. One column of text gives documents; a label column gives features and targets.

Knows rows and columns; how a file is cut into them is said by the three classes at the end.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.files import decode, expand, open_bytes, read_bytes, read_lines
from tauon.data.sources.base import Arrays, Document, Kind, SourceConfig, class_targets
from tauon.errors import DataError

__all__ = ["CsvConfig", "JsonlConfig", "ParquetConfig"]

Row = tuple[str, Sequence[Any]]
"""(where it is, values in the order of the columns asked for)."""


class TableConfig(SourceConfig):
    """What all table files share. With `label` it gives features and targets, otherwise text."""

    path: str | tuple[str, ...]
    """A file, a folder or a glob, or several of them; packed files (.gz, .zst) are read as they are."""
    text: str | tuple[str, ...] | None = None
    """Column of text; several are joined by a blank line. Default: `text`, unless `label` is given."""
    label: str | None = None
    """Column of the class or value to predict."""
    features: tuple[str, ...] = ()
    """Columns of numbers to predict from. Default: all but the label."""
    target: Literal["auto", "class", "value"] = "auto"
    """What the label is. auto: a value if a number in it has a fraction, a class otherwise."""

    def problems(self) -> Iterator[tuple[str, str]]:
        label, text = self.peek("label"), self.peek("text")
        if label is not None and text is not None:
            yield "text", "a table gives text or features with a label, not both; drop text or label"
        if label is None:
            for name in ("features", "target"):
                if self.peek(name) != type(self).model_fields[name].default:
                    yield name, "has no effect without label, the column to predict; add label or drop it"
        elif label in self.peek("features"):
            yield "features", f"has the label {label!r} among them; a column cannot predict itself"

    def gives(self) -> Kind:
        return "text" if self.peek("label") is None else "arrays"

    def files(self) -> list[tuple[Path, str]]:
        return expand(self.path)

    def columns(self, path: Path) -> list[str] | None:
        """The file's columns; None where rows name their own."""
        raise NotImplementedError

    def rows(self, path: Path, columns: Sequence[str]) -> Iterator[Row]:
        """The values of `columns`, row by row."""
        raise NotImplementedError

    def documents(self) -> Iterator[Document]:
        chosen = self.text if self.text is not None else "text"
        columns = (chosen,) if isinstance(chosen, str) else chosen
        for path, name in self.files():
            _check_columns(path, columns, self.columns(path))
            for i, (where, values) in enumerate(self.rows(path, columns)):
                for column, value in zip(columns, values, strict=True):
                    if not isinstance(value, str):
                        raise DataError(f"{where}: column {column!r} is {_short(value)}, expected text")
                yield Document("\n\n".join(values), f"{name}#{i}")

    def arrays(self) -> Arrays:
        label = self.label
        if label is None:
            raise DataError(f"source {self.kind_!r} has no label column; name the column to predict with label:")
        features = self.features
        numbers: list[Sequence[float]] = []
        labels: list[Any] = []
        where = ""
        for path, _ in self.files():
            known = self.columns(path)
            _check_columns(path, (*features, label), known)
            if not features and known is None:
                known = self.first_columns(path)
                _check_columns(path, (label,), known)
            features = features or tuple(c for c in known or () if c != label)
            for where, values in self.rows(path, (*features, label)):
                numbers.append([_number(v, where, c) for v, c in zip(values[:-1], features, strict=True)])
                labels.append(_label(values[-1], where, label))
        if not labels:
            raise DataError(f"{self.files()[0][0]}: no rows. Check the file")
        table = np.array(numbers, np.float32).reshape(len(labels), len(features))
        targets, names = _targets(labels, self.target, f"{self.files()[0][0]}: column {label!r}")
        return Arrays(table, targets, features, names or (label,))

    def first_columns(self, path: Path) -> list[str]:
        """The columns of the first row, where rows name their own."""
        raise NotImplementedError


def _check_columns(path: Path, wanted: Sequence[str], known: Sequence[str] | None) -> None:
    for column in wanted if known is not None else ():
        if column not in (known or ()):
            close = get_close_matches(column, known or (), n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise DataError(f"{path}: no column {column!r}{hint} There are: {', '.join(known or ()) or 'none'}")


def _number(value: Any, where: str, column: str) -> float:
    try:
        if isinstance(value, str) or value is None:
            return float(value) if value else float("nan")  # an empty cell: named as a missing value, with its row and column
        return float(value)
    except (TypeError, ValueError):
        raise DataError(
            f"{where}: column {column!r} is {_short(value)}, expected a number. Leave the column out with features: [...]"
        ) from None


def _label(value: Any, where: str, column: str) -> Any:
    if value is None or value == "" or isinstance(value, (list, dict)):
        raise DataError(f"{where}: column {column!r} is {_short(value)}, expected a label. Fill it in or drop the row")
    return value


def _targets(labels: Sequence[Any], target: str, where: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Class numbers with names, or values with none."""
    try:
        numbers: NDArray[np.float64] | None = np.array([float(v) for v in labels])
    except (TypeError, ValueError):
        numbers = None
    if target == "value" or (target == "auto" and numbers is not None and bool(np.any(numbers != np.floor(numbers)))):
        if numbers is None:
            odd = next(v for v in labels if not _is_number(v))
            raise DataError(f"{where}: {_short(odd)} is not a number, as values are. For classification say target: class")
        return numbers.astype(np.float32), ()
    if numbers is not None and not any(isinstance(v, bool) for v in labels):
        return class_targets(numbers, where)
    return class_targets(np.array([str(v) for v in labels]), where)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


@register("jsonl")
class JsonlConfig(TableConfig):
    """One JSON object a line."""

    def columns(self, path: Path) -> None:
        return None

    def first_columns(self, path: Path) -> list[str]:
        return next((list(row) for _, row in _objects(path)), [])

    def rows(self, path: Path, columns: Sequence[str]) -> Iterator[Row]:
        for where, row in _objects(path):
            for column in columns:
                if column not in row:
                    close = get_close_matches(column, row, n=1, cutoff=0.4)
                    hint = f"; did you mean {close[0]!r}?" if close else ""
                    raise DataError(f"{where}: no key {column!r}{hint} There are: {', '.join(row) or 'none'}")
            yield where, [row[c] for c in columns]


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(decode(line, where))
        except json.JSONDecodeError as err:
            raise DataError(f"{where}: not JSON at column {err.colno} ({err.msg}). Each line must be one JSON object") from None
        except RecursionError:
            raise DataError(f"{where}: JSON nested too deeply") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: a JSON {type(row).__name__}, expected an object like {{...}}")
        yield where, row


@register("csv")
class CsvConfig(TableConfig):
    """Comma-separated values, quoted as spreadsheets do (RFC 4180)."""

    delimiter: str = ","
    """One character; "\\t" for tabs, " " for blanks."""
    header: bool = True
    """Whether the first line names the columns. If not, they are called c0, c1, ..."""
    encoding: str = "utf-8"
    """Read strictly."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if len(self.peek("delimiter")) != 1:
            yield "delimiter", f"{self.peek('delimiter')!r} is not one character"

    def columns(self, path: Path) -> list[str]:
        first = next(self._lines(path), None)
        if first is None:
            raise DataError(f"{path}: the file is empty")
        names = first[1] if self.header else [f"c{i}" for i in range(len(first[1]))]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise DataError(f"{path}: two columns are called {twice!r}; rename one" + ("" if names.count("") else ", or say header: false"))
        return names

    def rows(self, path: Path, columns: Sequence[str]) -> Iterator[Row]:
        known = self.columns(path)
        at = [known.index(c) for c in columns]
        for number, cells in itertools.islice(self._lines(path), int(self.header), None):
            where = f"{path}, line {number}"
            if len(cells) != len(known):
                raise DataError(
                    f"{where}: {len(cells)} values, expected {len(known)} ({', '.join(known[:6])}{', ...' if len(known) > 6 else ''})"
                )
            yield where, [cells[i] for i in at]

    def _lines(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        text = decode(read_bytes(path), str(path), self.encoding).removeprefix("\ufeff")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, strict=True)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as err:
                raise DataError(f"{path}, line {reader.line_num}: not CSV ({err})") from None
            if cells:
                yield reader.line_num, cells


@register("parquet")
class ParquetConfig(TableConfig):
    """Apache Parquet files (they pack their columns themselves; a .gz around one is not read)."""

    def columns(self, path: Path) -> list[str]:
        with _parquet(path) as file:
            return list(file.schema_arrow.names)

    def rows(self, path: Path, columns: Sequence[str]) -> Iterator[Row]:
        number = 0
        with _parquet(path) as file:
            for batch in file.iter_batches(columns=list(dict.fromkeys(columns))):
                values = batch.to_pydict()
                for row in zip(*(values[c] for c in columns), strict=True):
                    yield f"{path}, row {number}", row
                    number += 1


class _parquet:
    """An open Parquet file, with the library's errors as ours."""

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
