r"""Text and JSON in files that people hand in: encodings and byte order marks, lines, rows. Knows nothing of what the text means.

One rule for all sources: a byte order mark says the encoding and is dropped; otherwise `encoding` does, strictly. Lines end at \n alone, for a
string of JSON may hold every other line separator of Unicode. What is wrong is a `DataError` that names file and row.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tauon.data.files import decode, open_bytes
from tauon.data.spelling import nfc
from tauon.errors import DataError

__all__ = ["json_line", "json_lines", "json_rows", "read_text", "refuse_surrogates", "text_lines", "wrong_encoding"]

_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\x00\x00", "utf-32-le"), (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"),
)  # fmt: skip
"""Byte order marks. None of them is a character of a text, and none but the first could begin a text in UTF-8."""


def _marked(data: bytes, encoding: str) -> tuple[int, str]:
    """(length of the byte order mark, encoding): what the mark says, or the zeros of UTF-16, where the encoding named does not contradict it."""
    family = encoding.lower().replace("_", "-").removesuffix("-sig").removesuffix("-le").removesuffix("-be")
    for mark, name in _MARKS:
        if data.startswith(mark) and (family in ("utf-8", "utf8") or name.startswith(family)):
            return len(mark), name
    if family in ("utf-8", "utf8") and len(data) >= 4:  # every other byte is zero: UTF-16 without a mark
        even, odd = data[0:4:2], data[1:4:2]
        if not any(odd) and all(even):
            return 0, "utf-16-le"
        if not any(even) and all(odd):
            return 0, "utf-16-be"
    return 0, encoding


def read_text(data: bytes, where: str, encoding: str = "utf-8") -> str:
    """Text from the bytes of a file, strictly. A byte order mark says the encoding, and is dropped."""
    length, encoding = _marked(data, encoding)
    return decode(data[length:], where, encoding)


def text_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    r"""(number from 1, line without its end) of each line, decoded line by line. Lines end at \n alone; a mark is read as `read_text` reads it."""
    with open_bytes(path) as file:
        first = file.readline()
        length, encoding = _marked(first, encoding)
        if _wide(encoding):
            whole = decode(first[length:] + file.read(), str(path), encoding)
            yield from ((i, text.rstrip("\r")) for i, text in enumerate(whole.split("\n"), 1))
            return
        number, line = 1, first[length:]
        while line:
            yield number, decode(line.rstrip(b"\r\n"), f"{path}, line {number}", encoding)
            line = file.readline()
            number += 1


def _wide(encoding: str) -> bool:
    """Whether a line's end is more than the byte 10 in this encoding."""
    try:
        return "\n".encode(encoding) != b"\n"
    except LookupError:
        return False


def wrong_encoding(encoding: str) -> Iterator[tuple[str, str]]:
    """What is wrong with a setting `encoding`, as `Config.problems` says it."""
    try:
        text = codecs.lookup(encoding)._is_text_encoding
    except LookupError:
        text = False
    if not text:
        yield "encoding", f"Python knows no encoding {encoding!r}; utf-8, latin-1, cp1252, gb18030 and utf-16 are common"


def refuse_surrogates(text: str, where: str) -> str:
    r"""The text itself. `DataError` where it holds half of a pair of UTF-16 (`\ud83d` in JSON), which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise DataError(
            f"{where}: character {err.start:,} is a lone surrogate ({text[err.start]!a}), which no text has. Repair the file"
        ) from None
    return text


def json_rows(text: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    r"""(place, object) of each row: of a list, or of lines. Lines end at \n alone: a string of JSON may hold other line separators."""
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise DataError(f"{where}: begins like a list and is not JSON ({err})") from None
        found: Iterator[tuple[str, Any]] = ((f"{where}, item {i}", row) for i, row in enumerate(rows))
    else:
        found = _parsed(enumerate(text.split("\n"), 1), where)
    empty = True
    for place, row in found:
        empty = False
        if not isinstance(row, dict):
            raise DataError(f"{place}: a JSON {type(row).__name__}, expected an object like {{...}}")
        yield place, row
    if empty:
        raise DataError(f"{where}: no rows. Check the file")


def json_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each line of a file, one at a time."""
    yield from _parsed(text_lines(path, encoding), str(path))


def _parsed(lines: Iterable[tuple[int, str]], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines:
        if line.strip():
            place = f"{where}, line {number}"
            yield place, json_line(line, place)


def json_line(line: str, where: str) -> dict[str, Any]:
    """The object that a line is. `DataError`: none, or one with a key twice, of which JSON readers keep the last without a word."""
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = {nfc(k): v for k, v in pairs}
        if len(found) != len(pairs):
            names = [nfc(k) for k, _ in pairs]
            twice.append(next(n for n in names if names.count(n) > 1))
        return found

    try:
        row = json.loads(line, object_pairs_hook=once)
    except json.JSONDecodeError as err:
        raise DataError(f"{where}: not JSON at column {err.colno} ({err.msg}). Each line must be one JSON object") from None
    except ValueError as err:  # a whole number of more digits than Python converts
        raise DataError(f"{where}: {err}. Write it as text") from None
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deeply") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {type(row).__name__}, expected an object like {{...}}")
    if twice:
        raise DataError(f"{where}: the key {twice[0]!r} is there twice; rename one")
    return row
