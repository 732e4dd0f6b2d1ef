"""A list of what is said in recordings: CSV (or TSV) with columns `file` and `text`, or JSONL of objects with these keys."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tauon.data.files import decode, read_bytes
from tauon.errors import DataError

__all__ = ["read_transcripts"]

_BREAK = re.compile(r"[ \t]*[\n\r\t\v\f\x85\u2028\u2029]\s*")


def read_transcripts(path: Path, encoding: str = "utf-8") -> dict[str, str]:
    """File name -> text, in order. A line break inside a transcript is a blank: speech has none.

    Names are compared in one Unicode form (NFC), with `/` between folders, without a leading `./`.

    Raises:
        DataError: by row: a name or a text that is missing, empty or no text; a file that is listed twice; a row with too many cells.
    """
    text = decode(read_bytes(path), str(path), encoding).removeprefix("\ufeff")
    rows = _json_rows(text, path) if path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")) else _csv_rows(text, path)
    said: dict[str, str] = {}
    places: dict[str, str] = {}
    for where, row in rows:
        name, words = (_text(row, key, where) for key in ("file", "text"))
        name = unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))
        if name in said:
            raise DataError(
                f"{where}: {name!r} is listed a second time, first in {places[name].rpartition(': ')[2]}. Keep one row for each file"
            )
        said[name], places[name] = _BREAK.sub(" ", words), where
    if not said:
        raise DataError(f"{path}: lists nothing. Expected a row for each recording: its file, and the text of what is said")
    return said


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if key not in row or value is None:
        raise DataError(f"{where}: has no {key}. Each row needs `file` and `text`; leave the row out where nothing is said")
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} is {json.dumps(value)[:40]}, expected text in quotes")
    if not value.strip():
        raise DataError(f"{where}: {key} is empty. Leave the row out where nothing is said")
    return value.strip()


def _json_rows(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except ValueError as err:
            raise DataError(f"{where}: not JSON ({err}). Each line is one object: {{'file': ..., 'text': ...}}".replace("'", '"')) from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: {line[:40]} is no object. Each line is one with the keys file and text")
        yield where, row


def _csv_rows(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    tabs = path.name.removesuffix(".gz").endswith((".tsv", ".tab"))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ",", strict=True)
    try:
        head = [cell.strip() for cell in next(reader, [])]
        if not {"file", "text"} <= {*head} or len({*head}) < len(head):
            raise DataError(f"{path}: its columns are {', '.join(head) or 'none'}; expected `file` and `text`, each once")
        for cells in reader:
            if not cells:
                continue
            where = f"{path}: line {reader.line_num}"
            if len(cells) > len(head):
                raise DataError(
                    f"{where}: {len(cells)} cells, and the header names {len(head)}. Put a text that holds the separator in quotes"
                )
            yield where, dict(zip(head, cells, strict=False))
    except csv.Error as err:
        raise DataError(f"{path}: line {reader.line_num}: {err}. Repair the quotes") from None
