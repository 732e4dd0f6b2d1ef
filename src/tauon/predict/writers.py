"""Write rows with predictions to a file: CSV, JSON lines or Parquet, by its name. The file appears when the last row is written, or not at all."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tauon.artifacts.files import temporary_path
from tauon.data.sources.tables import ABSENT
from tauon.errors import DataError, RecipeError
from tauon.predict.engine import json_values

__all__ = ["Writer", "open_writer", "output_names"]

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


class Writer:
    """Base class: takes columns, some rows at once."""

    def add(self, columns: Mapping[str, Any]) -> None:
        """Write more rows; the columns are the same each time."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish after the last row."""


class CsvWriter(Writer):
    """Writes CSV. Text cells are not changed; quoted if necessary (RFC 4180)."""

    def __init__(self, file: Any, delimiter: str) -> None:
        self.file, self.delimiter, self.begun = file, delimiter, False

    def add(self, columns: Mapping[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        if not self.begun:
            self.begun = True
            names = self._quoted(pa.array(list(columns), pa.string()))
            self.file.write((self.delimiter.join(names.to_pylist()) + "\n").encode())
        texts = [_text(values) if _plain_numbers(values) else self._quoted(_text(values)) for values in columns.values()]
        lines = pc.binary_join_element_wise(*texts, self.delimiter) if len(texts) > 1 else texts[0]
        if len(lines):
            ended = pc.binary_join_element_wise(lines, "", "\n").cast(pa.large_string())
            self.file.write(_bytes_of(ended))

    def _quoted(self, texts: Any) -> Any:
        import pyarrow.compute as pc

        held = bytes(_bytes_of(texts)) if len(texts) else b""
        if not any(mark in held for mark in (b'"', b"\n", b"\r", self.delimiter.encode())):
            return texts
        marks = pc.match_substring_regex(texts, f'["\r\n{_escaped(self.delimiter)}]')
        if not pc.any(marks, min_count=0).as_py():
            return texts
        doubled = pc.replace_substring(texts, '"', '""')
        return pc.if_else(marks, pc.binary_join_element_wise('"', doubled, '"', ""), texts)


def _escaped(delimiter: str) -> str:
    return "\\" + delimiter if delimiter in "|^]\\-" else delimiter


def _plain_numbers(values: Any) -> bool:
    """Return whether no text of a column needs quotes."""
    return isinstance(values, np.ndarray) and values.dtype.kind in "fiu"


def _bytes_of(texts: Any) -> memoryview:
    """Return the concatenated text of an array: it is contiguous in memory."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64 if str(texts.type) == "large_string" else np.int32)[
        texts.offset : texts.offset + len(texts) + 1
    ]
    return memoryview(texts.buffers()[2])[offsets[0] : offsets[-1]]


def _text(values: Any) -> Any:
    """Return a column as text: numbers with the fewest digits that identify them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(values, list):
        return pa.array([_word(v) for v in values], pa.string())
    if isinstance(values, np.ndarray):
        values = pa.array(values, pa.string()) if values.dtype == object else pa.array(values)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    try:
        return pc.fill_null(values.cast(pa.string()), "")
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return pa.array([_word(v) for v in values.to_pylist()], pa.string())


def _word(value: Any) -> str:
    if value is None or value is ABSENT:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


class JsonWriter(Writer):
    """Writes one JSON object per row. A key that the row did not have is left out."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def add(self, columns: Mapping[str, Any]) -> None:
        lists = [json_values(v) if isinstance(v, (list, np.ndarray)) else v.to_pylist() for v in columns.values()]
        for row in zip(*lists, strict=True):
            record = {name: value for name, value in zip(columns, row, strict=True) if value is not ABSENT}
            self.file.write((json.dumps(record, ensure_ascii=False, default=str) + "\n").encode())


class ParquetWriter(Writer):
    """Writes Parquet. Types are those of the first rows."""

    def __init__(self, file: Any, where: str) -> None:
        self.file, self.where = file, where
        self.inner: Any = None

    def add(self, columns: Mapping[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays: dict[str, Any] = {}
        for name, values in columns.items():
            wanted = None if self.inner is None else self.inner.schema.field(name).type
            plain = [None if v is ABSENT else v for v in values] if isinstance(values, list) else values
            try:
                made = pa.array(plain, wanted) if isinstance(plain, (list, np.ndarray)) else plain.cast(wanted or plain.type)
                arrays[name] = made.cast(pa.string()) if wanted is None and pa.types.is_null(made.type) else made
            except (pa.ArrowInvalid, pa.ArrowTypeError) as err:
                raise DataError(
                    f"{self.where}: column {name!r} has different types in different rows ({err}). Write .csv or .jsonl instead"
                ) from None
        table = pa.table(arrays)
        if self.inner is None:
            self.inner = pq.ParquetWriter(self.file, table.schema)
        self.inner.write_table(table)

    def close(self) -> None:
        if self.inner is not None:
            self.inner.close()


@contextlib.contextmanager
def open_writer(to: Path | str, delimiter: str = ",") -> Iterator[Writer]:
    """Open a writer of the file `to`, which is created when the block succeeds; after an error or Ctrl-C nothing is left.

    Raises `RecipeError` if the name does not decide a format, `DataError` if the file cannot be written.
    """
    path = Path(to).expanduser()
    packed = path.suffix.lower() == ".gz"
    kind = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    if kind not in _SUFFIXES or (packed and kind == ".parquet"):
        raise RecipeError(f"--to {path}: the suffix must be one of .csv, .tsv, .jsonl, .parquet, or .csv.gz, .jsonl.gz")
    if path.is_dir():
        raise RecipeError(f"--to {path}: is a folder, expected a file")
    temporary = temporary_path(path, "tmp")
    try:
        with open(temporary, "xb") as raw:
            file: Any = gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) if packed else raw
            if kind == ".parquet":
                writer: Writer = ParquetWriter(file, str(path))
            else:
                writer = JsonWriter(file) if kind in (".jsonl", ".ndjson") else CsvWriter(file, "\t" if kind == ".tsv" else delimiter)
            yield writer
            writer.close()
            if packed:
                file.close()
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    except OSError as err:
        raise DataError(f"{path}: cannot be written ({err.strerror or err})") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def output_names(names: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Return the name of each prediction column in a file with columns of its own: all get the prefix `tauon_` if one name is taken.

    >>> output_names(["prediction"], ["age", "prediction"])
    {'prediction': 'tauon_prediction'}
    """
    before = ""
    while any(before + name in taken for name in names):
        before += "tauon_"
    return {name: before + name for name in names}
