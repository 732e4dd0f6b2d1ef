"""Read CSV files of any size in chunks, with the same cells as `data.sources.separated`.

Chunks without quotes are split by pyarrow; from the first quote on, and if pyarrow fails, Python's `csv` reads and words the errors.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tauon.data import Rows
from tauon.data.files import open_bytes
from tauon.data.sources.separated import column_names
from tauon.data.text_files import encoding_by_mark
from tauon.errors import DataError

__all__ = ["CsvStream"]

PIECE = 1 << 23
"""Bytes that are read at once."""
_MOST_CELL = 1 << 28


@dataclass
class CsvStream:
    """One file. Text in cells is not changed."""

    path: Path
    delimiter: str = ","
    encoding: str = "utf-8"
    header: bool = True
    given: tuple[str, ...] = ()
    """Column names of a file without a header."""
    rows: int = 65536
    """Rows per chunk of Python's reader."""
    done: int = 0
    """Bytes of the file on disk (compressed or not) that have been read."""
    _head: int = 0

    def names(self) -> list[str]:
        """The normalised column names."""
        with open_bytes(self.path) as file:
            first = next(self._by_python(file, b"", 0), None)
        if first is None:
            raise DataError(f"{self.path}: the file is empty")
        self._head = first[0] if self.header else 0
        names = first[1] if self.header else list(self.given) or [f"c{i}" for i in range(len(first[1]))]
        return column_names(names, str(self.path), ", or set header: false" if self.header else "")

    def __iter__(self) -> Iterator[Rows]:
        csv.field_size_limit(max(csv.field_size_limit(), _MOST_CELL))
        names = self.names()
        with open_bytes(self.path) as file:
            start = file.read(4)
            length, encoding = encoding_by_mark(start, self.encoding)
            plain = encoding.lower().replace("_", "-") in ("utf-8", "utf8") and len(self.delimiter) == 1 and self.delimiter.isascii()
            data = start[length:] + (file.read(PIECE) if plain else b"")
            while plain and data.count(b"\n") < self._head and not _odd_ends(data) and (more := file.read(PIECE)):
                data += more
            if not plain or _odd_ends(data):
                yield from self._numbered(self._by_python(file, start if not plain else data, 0), names, skip=self.header)
                return
            at = 0
            for _ in range(self._head):
                at = data.find(b"\n", at) + 1 or len(data)
            data, line, ended = data[at:], self._head, False
            while data or not ended:
                cut = len(data) if ended else data.rfind(b"\n") + 1
                piece, rest = data[:cut], data[cut:]
                self.done = _position(file)
                if b'"' in data or _odd_ends(piece):
                    yield from self._numbered(self._by_python(file, data, line), names, skip=False)
                    return
                if piece:
                    yield from self._piece(piece, names, line)
                    line += piece.count(b"\n")
                block = file.read(PIECE)
                data, ended = rest + block, not block

    def _piece(self, piece: bytes, names: list[str], line: int) -> Iterator[Rows]:
        """Return the rows of whole lines without a quote; `line`: number of lines before them."""
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        lines = piece.count(b"\n") + (not piece.endswith(b"\n"))
        try:
            table = arrow_csv.read_csv(
                io.BytesIO(piece),
                arrow_csv.ReadOptions(column_names=names, block_size=len(piece) + 1),
                arrow_csv.ParseOptions(delimiter=self.delimiter, quote_char=False, newlines_in_values=False),
                arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), null_values=[], strings_can_be_null=False),
            )
        except pa.ArrowInvalid:
            table = None
        if table is None or table.num_rows != lines:  # a line with another number of values, or an empty one
            yield from self._numbered(self._by_python(io.BytesIO(b""), piece, line), names, skip=False)
            return
        columns = {name: pa.concat_arrays(column.chunks) for name, column in zip(names, table.columns, strict=True)}
        yield Rows(columns, self._where(range(line + 1, line + 1 + lines)))

    def _by_python(self, file: BinaryIO, before: bytes, line: int) -> Iterator[tuple[int, list[str]]]:
        """Yield (line number, cells) of each line that is not empty. `before`: bytes that were read already; `line`: lines before them."""
        encoding, head = self.encoding, before
        if not line:
            head = before if len(before) >= 4 else before + file.read(4 - len(before))
            length, encoding = encoding_by_mark(head, self.encoding)
            head = head[length:]
        text = io.TextIOWrapper(io.BufferedReader(_Prefixed(head, file)), encoding, newline="\n" if self.delimiter == "blanks" else "")  # type: ignore[arg-type]
        number = line
        try:
            if self.delimiter == "blanks":
                yield from ((line + i, cells) for i, words in enumerate(text, 1) if (cells := words.split()))
                return
            reader = csv.reader(text, delimiter=self.delimiter, strict=True)
            for cells in reader:
                number = line + reader.line_num
                if cells:
                    self.done = _position(file)
                    yield number, cells
        except csv.Error as err:
            raise DataError(f"{self.path}, line {number + 1}: not valid CSV ({err})") from None
        except UnicodeDecodeError as err:
            bad = err.object[err.start : err.start + 4].hex(" ")
            raise DataError(
                f"{self.path}: after line {number}: not {encoding} ({bad}: {err.reason}). Convert the file, or set its encoding: --encoding latin-1"
            ) from None
        finally:
            text.detach()

    def _numbered(self, lines: Iterator[tuple[int, list[str]]], names: list[str], *, skip: bool) -> Iterator[Rows]:
        import pyarrow as pa

        if skip:
            next(lines, None)
        while taken := list(itertools.islice(lines, self.rows)):
            for number, cells in taken:
                if len(cells) != len(names):
                    listed = f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
                    raise DataError(f"{self.path}, line {number}: {len(cells)} values, expected {len(names)} ({listed})")
            columns = zip(*(cells for _, cells in taken), strict=True)
            yield Rows(
                {name: pa.array(list(column), pa.string()) for name, column in zip(names, columns, strict=True)},
                self._where([number for number, _ in taken]),
            )

    def _where(self, lines: Sequence[int]) -> Any:
        return lambda i, column: f"{self.path}, line {lines[i]}: column {column!r}"


def _odd_ends(data: bytes) -> bool:
    """Return whether lines end at a carriage return alone."""
    return b"\r" in data and data.removesuffix(b"\r").count(b"\r") != data.count(b"\r\n")


class _Prefixed(io.RawIOBase):
    """Some bytes, followed by a stream, which is not closed."""

    def __init__(self, before: bytes, stream: BinaryIO) -> None:
        self._before, self._stream = memoryview(before), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._before[: len(buffer)] if len(self._before) else self._stream.read(len(buffer))
        self._before = self._before[len(data) :] if len(self._before) else self._before
        buffer[: len(data)] = data
        return len(data)


def _position(file: Any) -> int:
    """Count the bytes read from disk: of a compressed file, the compressed bytes."""
    packed = getattr(getattr(file, "raw", None), "stream", None)
    try:
        return int((packed.fileobj if packed is not None else file).tell())
    except (OSError, ValueError, AttributeError):
        return 0
