"""A list of transcripts: CSV (or TSV) with columns `file` and `text`, or JSONL of objects with these keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tauon.data.files import read_bytes
from tauon.data.sources.separated import column_names, separated
from tauon.data.spelling import nfc
from tauon.data.text_files import json_line, read_text
from tauon.errors import DataError

__all__ = ["read_transcripts"]

_BREAK = re.compile(r"[ \t]*[\n\r\t\v\f\x85\u2028\u2029]\s*")


def read_transcripts(path: Path, encoding: str = "utf-8") -> dict[str, str]:
    """Return file name -> transcript, in order. A line break inside a transcript becomes a blank.

    Names are compared in one Unicode form (NFC), with `/` between folders, without a leading `./`.

    Raises:
            DataError: with the row: a name or text that is missing, empty or not text; a file that is listed twice; a row with too many cells.
    """
    text = read_text(read_bytes(path), str(path), encoding)
    rows = _json_rows(text, path) if path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")) else _csv_rows(text, path)
    said: dict[str, str] = {}
    places: dict[str, str] = {}
    for where, row in rows:
        name, words = (_text(row, key, where) for key in ("file", "text"))
        name = nfc(name.replace("\\", "/").removeprefix("./"))
        if name in said:
            raise DataError(
                f"{where}: {name!r} is listed a second time, first in {places[name].rpartition(', ')[2]}. Keep one row for each file"
            )
        said[name], places[name] = _BREAK.sub(" ", words), where
    if not said:
        raise DataError(f"{path}: the list is empty. Expected one row per recording with its `file` and its transcript `text`")
    return said


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if key not in row or value is None:
        raise DataError(f"{where}: has no {key}. Each row needs `file` and `text`; remove the row of a recording without speech")
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} is {json.dumps(value)[:40]}, expected text in quotes")
    if not value.strip():
        raise DataError(f"{where}: {key} is empty. Remove the row of a recording without speech")
    return value.strip()


def _json_rows(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, json_line(line, where)


def _csv_rows(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    tabs = path.name.removesuffix(".gz").endswith((".tsv", ".tab"))
    rows = separated(text, str(path), "\t" if tabs else ",")
    head = column_names([cell.strip() for cell in next(rows, (0, []))[1]], str(path))
    if not {"file", "text"} <= {*head}:
        raise DataError(f"{path}: columns are {', '.join(head) or 'none'}, expected `file` and `text`")
    for number, cells in rows:
        where = f"{path}, line {number}"
        if len(cells) > len(head):
            raise DataError(f"{where}: {len(cells)} cells, but the header has {len(head)}. Put text that contains the separator in quotes")
        yield where, dict(zip(head, cells, strict=False))
