"""Rows of JSON: one object per line, or one list: conversations, preferences, texts with a label, text alone, columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tauon.data.inspection import look_at_columns
from tauon.data.text_files import json_objects
from tauon.errors import DataError
from tauon.starter.draft import Asked, Draft, encoding_of, suffix_of
from tauon.starter.roles import LABELS, group_column
from tauon.starter.tables import rows
from tauon.starter.text_tasks import answers, fields_of

__all__ = ["is_json", "json_file"]


def is_json(place: Path) -> bool:
    return place.is_file() and suffix_of(place.name) in (".jsonl", ".ndjson", ".json")


def json_file(place: Path, asked: Asked) -> Draft:
    """Draft for rows of JSON. All rows are read, so that every count is true."""
    encoding, said = encoding_of([place], asked, place)
    found = [row for _, row in json_objects(place, encoding.get("encoding", "utf-8"))]
    if not found:
        raise DataError(f"{place}: expected one JSON object per line")
    known = [*dict.fromkeys(k for r in found for k in r)]
    keys = [k for k in known if all(k in r for r in found)]
    dialogue = fields_of(keys)
    columns = {k: [_plain(r.get(k)) for r in found] for k in known if not any(isinstance(r.get(k), list | dict) for r in found)}
    nested = [k for k in known if k not in columns]
    look = look_at_columns(columns, str(place)) if columns else None
    labelled = asked.label is not None or any(k.lower() in LABELS and k.lower() != "target" for k in columns)
    if dialogue is not None and asked.label is None and (dialogue[1] == {} or not labelled) and not asked.inputs:
        group = None if look is None else group_column(look, None)[0]
        return answers(
            place,
            keys,
            *dialogue,
            asked,
            examples=len(found),
            group=None if group is None else (group.name, group.distinct),
            extra=encoding,
        )
    if asked.model is not None:
        raise DataError(f"{place}: --model is only for conversations and preferences. Its keys: {', '.join(keys)}")
    if look is None:
        raise DataError(f"{place}: every key holds a list or an object ({', '.join(known)}), expected texts and numbers")
    if asked.label is not None and asked.label not in keys:
        raise DataError(f"{place}: no key {asked.label!r} in every row. Available: {', '.join(keys)}")
    made = rows(place, look, asked, {"kind": "jsonl", "path": str(place)} | encoding, [said])
    if nested and "text" not in made.sections["data"]["source"]:
        source = made.sections["data"]["source"]
        source["drop"] = [*source.get("drop", []), *nested]
        made.why["data"].insert(0, f"{', '.join(nested)} is left out: lists or objects.")
    return made


def _plain(value: Any) -> Any:
    return value if not isinstance(value, list | dict) else None
