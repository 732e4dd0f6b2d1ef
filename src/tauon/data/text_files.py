r"""Text and JSON in user files: encodings and byte order marks, lines, rows. Independent of the meaning of the text.

One rule for all sources: a byte order mark decides the encoding and is removed; otherwise `encoding` does, strictly. Lines end at \n only,
because a JSON string may contain every other line separator of Unicode. Problems are a `DataError` with file and row.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tauon.data.files import decode, open_bytes, read_bytes
from tauon.data.spelling import nfc
from tauon.errors import DataError

__all__ = [
    "count_words",
    "detect_encoding",
    "encoding_by_mark",
    "json_line",
    "json_lines",
    "json_objects",
    "json_rows",
    "read_text",
    "refuse_surrogates",
    "text_lines",
    "wrong_encoding",
]

OnBad = Callable[[DataError, str], None]
"""Called with the error and its reason in a word or two for a record that is skipped; without it the error is raised."""
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\x00\x00", "utf-32-le"), (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"),
)  # fmt: skip
"""Byte order marks. None of them is a valid character, and only the first could start a text in UTF-8."""


def encoding_by_mark(data: bytes, encoding: str) -> tuple[int, str]:
    """Return (length of the byte order mark, encoding): from the mark, or from the zeros of UTF-16, if that does not contradict `encoding`."""
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


def detect_encoding(data: bytes) -> str | None:
    r"""Return the probable encoding of a text file, for a recipe: utf-8 (with it, byte order marks and UTF-16 are recognised), latin-1 or cp1252;
    None if it is none of them.

    Latin-1 and cp1252 read any bytes, so they are taken only if letters with accents are the exception, as in western languages.

    >>> [detect_encoding(text) for text in ("Zürich".encode(), "Zürich".encode("latin-1"), "“Zürich, Genf”".encode("cp1252"), "日本語".encode("gb18030"))]
    ['utf-8', 'latin-1', 'cp1252', None]
    """
    length, name = encoding_by_mark(data, "utf-8")
    try:
        data[length:].decode(name)
    except UnicodeDecodeError:
        if name != "utf-8":
            return None
    else:
        return "utf-8"
    high = sum(byte >= 0x80 for byte in data)
    letters = sum(0x41 <= byte <= 0x5A or 0x61 <= byte <= 0x7A for byte in data)
    if b"\0" in data or high > 0.35 * (high + letters):
        return None
    if not any(0x80 <= byte < 0xA0 for byte in data):
        return "latin-1"
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    return "cp1252"


def read_text(data: bytes, where: str, encoding: str = "utf-8") -> str:
    """Decode the bytes of a file strictly. A byte order mark decides the encoding, and is removed."""
    length, encoding = encoding_by_mark(data, encoding)
    return decode(data[length:], where, encoding)


def text_lines(path: Path, encoding: str = "utf-8", on_bad: OnBad | None = None) -> Iterator[tuple[int, str]]:
    r"""Yield (number from 1, line without its end) of each line, decoded line by line. Lines end at \n only; a mark is handled as in `read_text`.
    `on_bad` gets lines that cannot be decoded.
    """
    with open_bytes(path) as file:
        first = file.readline()
        length, encoding = encoding_by_mark(first, encoding)
        if _wide(encoding):
            whole = decode(first[length:] + file.read(), str(path), encoding)
            yield from ((i, text.rstrip("\r")) for i, text in enumerate(whole.split("\n"), 1))
            return
        number, line = 1, first[length:]
        while line:
            try:
                text = decode(line.rstrip(b"\r\n"), f"{path}, line {number}", encoding)
            except DataError as err:
                if on_bad is None:
                    raise
                on_bad(err, f"not {encoding}")
            else:
                yield number, text
            line = file.readline()
            number += 1


def _wide(encoding: str) -> bool:
    """Return whether a line end is more than the byte 10 in this encoding."""
    try:
        return "\n".encode(encoding) != b"\n"
    except LookupError:
        return False


def wrong_encoding(encoding: str) -> Iterator[tuple[str, str]]:
    """Yield problems of a setting `encoding`, for `Config.problems`."""
    try:
        text = codecs.lookup(encoding)._is_text_encoding
    except LookupError:
        text = False
    if not text:
        yield "encoding", f"unknown encoding {encoding!r}; common ones are utf-8, latin-1, cp1252, gb18030 and utf-16"


def refuse_surrogates(text: str, where: str) -> str:
    r"""Return the text itself. `DataError` if it has half of a UTF-16 pair (`\ud83d` in JSON), which is not a character."""
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise DataError(
            f"{where}: character {err.start:,} is a lone surrogate ({text[err.start]!a}), which is invalid text. Repair the file"
        ) from None
    return text


_WORDS_OF = 1 << 20


def count_words(text: str) -> int:
    r"""Return `len(text.split())`; a long text is split in pieces, because the list of its words takes many times its own memory.

    >>> count_words("one  two\n three")
    3
    """
    if len(text) <= _WORDS_OF:
        return len(text.split())
    count = 0
    for a in range(0, len(text), _WORDS_OF):
        count += len(text[a : a + _WORDS_OF].split())
        count -= bool(a) and not text[a - 1].isspace() and not text[a].isspace()  # one word, counted on both sides
    return count


def json_rows(text: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    r"""Yield (place, object) of each row: of a list, or of lines. Lines end at \n only: a JSON string may contain other line separators."""
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as err:
            raise DataError(f"{where}: starts like a JSON list, but is not valid JSON ({err})") from None
        except _KeyTwice as err:
            raise DataError(f"{where}: {err}") from None
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


def json_lines(path: Path, encoding: str = "utf-8", on_bad: OnBad | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) of each line of a file, one at a time. `on_bad` gets lines that are no JSON object."""
    yield from _parsed(text_lines(path, encoding, on_bad), str(path), on_bad)


def json_objects(path: Path, encoding: str = "utf-8", on_bad: OnBad | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) of each row of a file: of one list, or of lines, which are read one at a time."""
    with open_bytes(path) as file:
        head = file.read(4096)
    length, wide = encoding_by_mark(head, encoding)
    if head[length:].decode(wide, "ignore").lstrip().startswith("["):
        yield from json_rows(read_text(read_bytes(path), str(path), encoding), str(path))
    else:
        yield from json_lines(path, encoding, on_bad)


def _parsed(lines: Iterable[tuple[int, str]], where: str, on_bad: OnBad | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines:
        if line.strip():
            place = f"{where}, line {number}"
            try:
                row = json_line(line, place)
            except DataError as err:
                if on_bad is None:
                    raise
                on_bad(err, "not a JSON object")
            else:
                yield place, row


class _KeyTwice(Exception):
    """Error for an object with a duplicate key, of which JSON readers silently keep the last."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [nfc(k) for k, _ in pairs]
    if len({*names}) < len(names):
        raise _KeyTwice(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice in one object; rename one")
    return dict(zip(names, (v for _, v in pairs), strict=True))


def json_line(line: str, where: str) -> dict[str, Any]:
    """Return the JSON object in a line. `DataError` if there is none, or if it has a duplicate key."""
    try:
        row = json.loads(line, object_pairs_hook=_unique)
    except json.JSONDecodeError as err:
        hint = "It looks like UTF-16: set encoding: utf-16-le" if "\0" in line else "Each line must be one JSON object"
        raise DataError(f"{where}: not valid JSON at column {err.colno} ({err.msg}). {hint}") from None
    except ValueError as err:  # a whole number of more digits than Python converts
        raise DataError(f"{where}: {err}. Write it as text") from None
    except _KeyTwice as err:
        raise DataError(f"{where}: {err}") from None
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deeply") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {type(row).__name__}, expected an object like {{...}}")
    return row
