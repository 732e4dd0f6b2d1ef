"""Tables in files: JSON lines, CSV, Parquet. One column of text gives documents; a label column gives features and targets; both
give texts with labels.

Knows rows and columns; how a file is cut into them is said by the three classes at the end.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tauon.config import register
from tauon.data.files import expand, open_bytes, read_bytes
from tauon.data.sources.base import Arrays, Document, Kind, LabelledTexts, SourceConfig, Table, class_targets
from tauon.data.text_files import json_lines, read_text, wrong_encoding
from tauon.errors import DataError

__all__ = ["CsvConfig", "JsonlConfig", "ParquetConfig", "separated"]

Row = tuple[str, Sequence[Any]]
"""(where it is, values in the order of the columns asked for)."""


class TableConfig(SourceConfig):
    """What all table files share. With `label` it gives features and targets, with `text` text, with both texts and their labels."""

    path: str | tuple[str, ...]
    """A file, a folder or a glob, or several of them; packed files (.gz, .zst) are read as they are."""
    text: str | tuple[str, ...] | None = None
    """Column of text; several are joined by a blank line. Default: `text`, unless `label` is given. With `label`: texts to be sorted."""
    label: str | None = None
    """Column of the class or value to predict."""
    features: tuple[str, ...] = ()
    """Columns to predict from. Default: all but the label."""
    drop: tuple[str, ...] = ()
    """Columns to leave out: identifiers, say."""
    categorical: tuple[str, ...] = ()
    """Columns that are categories although they look like numbers (a postcode). Columns of words are categories anyway."""
    missing: tuple[str, ...] = ("",)
    """Spellings of a missing value: ["", "?", "NA"]."""
    target: Literal["auto", "class", "value"] = "auto"
    """What the label is. auto: a value if a number in it has a fraction, a class otherwise."""

    def problems(self) -> Iterator[tuple[str, str]]:
        label, text = self.peek("label"), self.peek("text")
        if label is not None and text is not None:
            for name in ("features", "drop", "categorical"):
                if self.peek(name) != type(self).model_fields[name].default:
                    yield name, "has no effect beside text: texts are all that is learned from; drop it, or drop text"
            if self.peek("target") == "value":
                yield "target", "value, but texts are sorted into classes; drop it, or drop text"
        if label is None:
            for name in ("features", "target", "drop", "categorical", "missing"):
                if self.peek(name) != type(self).model_fields[name].default:
                    yield name, "has no effect without label, the column to predict; add label or drop it"
        elif label in self.peek("features"):
            yield "features", f"has the label {label!r} among them; a column cannot predict itself"
        features, drop = self.peek("features"), self.peek("drop")
        if features and drop:
            yield "drop", "features names the columns to use already; give one of the two"
        for name in ("drop", "categorical"):
            if label is not None and label in self.peek(name):
                yield name, f"has the label {label!r} among them; it is what is predicted"
        odd = [c for c in self.peek("categorical") if (features and c not in features) or c in drop]
        if odd:
            yield "categorical", f"has {odd[0]!r}, which is not among the columns to predict from; drop it here, or use the column"

    def gives(self) -> Kind:
        if self.peek("label") is None:
            return "text"
        return "arrays" if self.peek("text") is None else "labelled-text"

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

    def labelled_texts(self) -> LabelledTexts:
        if self.text is None or self.label is None:
            return super().labelled_texts()
        wanted, missing, _ = (self.text,) if isinstance(self.text, str) else self.text, frozenset(self.missing), self.target
        texts: list[str] = []
        labels: list[Any] = []
        places: list[str] = []
        for path, _ in self.files():
            _check_columns(path, (*wanted, self.label), self.columns(path))
            for where, values in self.rows(path, (*wanted, self.label)):
                odd = next((v for v in values[:-1] if not isinstance(v, str)), "")
                if not isinstance(odd, str):
                    raise DataError(f"{where}: column {wanted[values.index(odd)]!r} is {_short(odd)}, expected text")
                texts.append("\n\n".join(values[:-1]))
                labels.append(_label(values[-1], where, self.label, missing))
                places.append(where)
        if not labels:
            raise DataError(f"{self.files()[0][0]}: no rows. Check the file")
        targets, names = _targets(labels, "class", f"{self.files()[0][0]}: column {self.label!r}")
        return LabelledTexts(texts, targets, names, places)

    def tabular(self) -> bool:
        return self.gives() == "arrays"

    def table(self) -> Table | None:
        label = self.label
        if label is None:
            return None
        features, drop, declared, missing = self.features, self.drop, self.categorical, frozenset(self.missing)
        columns: dict[str, list[Any]] = {}
        labels: list[Any] = []
        places: list[str] = []
        for path, _ in self.files():
            known = self.columns(path)
            _check_columns(path, (*features, *drop, *declared, label), known)
            if not features and known is None:
                known = self.first_columns(path)
                _check_columns(path, (*drop, *declared, label), known)
            features = features or tuple(c for c in known or () if c != label and c not in drop)
            if not features:
                raise DataError(f"{path}: no column is left to predict from. There are: {', '.join(known or ())}")
            lists = [columns.setdefault(c, []) for c in features]
            for where, values in self.rows(path, (*features, label)):
                for into, value, name in zip(lists, values[:-1], features, strict=True):
                    if isinstance(value, (list, dict, bytes)):
                        raise DataError(
                            f"{where}: column {name!r} is {_short(value)}, expected a number or a word. Leave it out with drop:"
                        )
                    into.append(None if value is None or value in missing or value != value else value)
                labels.append(_label(values[-1], where, label, missing))
                places.append(where)
        if not labels:
            raise DataError(f"{self.files()[0][0]}: no rows. Check the file")
        targets, names = _targets(labels, self.target, f"{self.files()[0][0]}: column {label!r}")
        return Table(columns, targets, names or (label,), declared, places, label, self.missing)

    def arrays(self) -> Arrays:
        table = self.table()
        if table is None:
            raise DataError(f"source {self.kind_!r} has no label column; name the column to predict with label:")
        numbers = np.empty((len(table), len(table.columns)), np.float32)
        for j, (name, values) in enumerate(table.columns.items()):
            numbers[:, j] = [_number(v, table.places[i], name) for i, v in enumerate(values)]
        return Arrays(numbers, table.targets, tuple(table.columns), table.label_names)

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


def _label(value: Any, where: str, column: str, missing: frozenset[str]) -> Any:
    if value is None or value != value or isinstance(value, (list, dict)) or value == "" or value in missing:
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

    later = ("encoding",)

    encoding: str = "utf-8"
    """Read strictly. A byte order mark (UTF-8, UTF-16, UTF-32) comes before it."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        yield from wrong_encoding(self.peek("encoding"))

    def columns(self, path: Path) -> None:
        return None

    def first_columns(self, path: Path) -> list[str]:
        return next((list(row) for _, row in json_lines(path, self.encoding)), [])

    def rows(self, path: Path, columns: Sequence[str]) -> Iterator[Row]:
        for where, row in json_lines(path, self.encoding):
            for column in columns:
                if column not in row:
                    close = get_close_matches(column, row, n=1, cutoff=0.4)
                    hint = f"; did you mean {close[0]!r}?" if close else ""
                    raise DataError(f"{where}: no key {column!r}{hint} There are: {', '.join(row) or 'none'}")
            yield where, [row[c] for c in columns]


@register("csv")
class CsvConfig(TableConfig):
    """Comma-separated values, quoted as spreadsheets do (RFC 4180)."""

    delimiter: str = ","
    """One character: "\\t" for tabs, ";" for semicolons; or `blanks`: any run of blanks and tabs, without quotes."""
    header: bool = True
    """Whether the first line names the columns. If not, `names` does, or they are called c0, c1, ..."""
    names: tuple[str, ...] = ()
    """Names of the columns of a file without header line."""
    encoding: str = "utf-8"
    """Read strictly."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        yield from wrong_encoding(self.peek("encoding"))
        if len(self.peek("delimiter")) != 1 and self.peek("delimiter") != "blanks":
            yield "delimiter", f"{self.peek('delimiter')!r} is not one character, nor blanks"
        if self.peek("names") and self.peek("header"):
            yield "names", "the first line names the columns already; say header: false, or drop names"

    def columns(self, path: Path) -> list[str]:
        first = next(self._lines(path), None)
        if first is None:
            raise DataError(f"{path}: the file is empty")
        names = first[1] if self.header else list(self.names) or [f"c{i}" for i in range(len(first[1]))]
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
        return separated(read_text(read_bytes(path), str(path), self.encoding), str(path), self.delimiter)


def separated(text: str, where: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number from 1, cells) of each line that is not empty. `delimiter`: a character, or `blanks`."""
    text = text.removeprefix("\ufeff")
    if delimiter == "blanks":
        yield from ((i, cells) for i, line in enumerate(text.splitlines(), 1) if (cells := line.split()))
        return
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
