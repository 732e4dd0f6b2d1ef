"""Records that are left out, as lines of `rejected/*.jsonl`: the same keys in the same order, whoever rejects.

    part     train, validation or test: the source that the record is of
    source   name of the source
    record   file and line, or number
    step     the cleaning filter that rejected it, or `read`, `dedup`, `decontaminate`
    rule     what was counted: too_few_words
    reason   in words
    of       the record that it repeats
    text     how it begins

A key that has no meaning for a line is left out; measured values (similarity) follow behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["rejected_line", "rejected_row", "rejected_with"]

_EXCERPT = 300
"""Characters of a text that are written down."""
_TELLING = 40
"""Characters from which a beginning says which text it is of."""


def rejected_row(
    part: str, *, step: str, reason: str, source: str = "", record: str = "", rule: str = "", of: str = "", text: str = "", **values: float
) -> dict[str, Any]:
    """Return one line, without the keys that are empty.

    >>> rejected_row("train", step="length", reason="2 words, fewer than 5", rule="too_short", record="a.jsonl, line 3")
    {'part': 'train', 'record': 'a.jsonl, line 3', 'step': 'length', 'rule': 'too_short', 'reason': '2 words, fewer than 5'}
    """
    row = {
        "part": part, "source": source, "record": record, "step": step, "rule": rule, "reason": reason, "of": of, "text": str(text[:_EXCERPT]),
    }  # fmt: skip
    return {key: value for key, value in row.items() if value} | values


def rejected_line(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON: readable in every script; half of a surrogate pair, which UTF-8 does not have, is escaped."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(row)
    return line + "\n"


def rejected_with(text: str, folder: Path, part: str, most: int) -> list[dict[str, Any]]:
    """Return the rejected records of a part whose recorded beginning has a text, or is the beginning of it; white space does not matter.

    Args:
        text: to find.
        folder: `rejected` of the prepared data. Missing: nothing was rejected.
        part: train, validation or test.
        most: rows to return.
    """
    wanted, found = " ".join(text.split()), list[dict[str, Any]]()
    for row in _rows(folder):
        begins = " ".join(str(row.get("text", "")).split())
        if row.get("part") != part or not begins or not wanted:
            continue
        if wanted in begins or (len(begins) >= _TELLING and wanted.startswith(begins)):
            found.append(row)
            if len(found) == most:
                break
    return found


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.jsonl")):
        with open(path, encoding="utf-8", newline="\n") as file:
            yield from (json.loads(line) for line in file)
