"""Conversations and preferences in JSON files. The form of a row is read by `chat_rows.py`; how roles are written as text is decided by the
chat template (`chat_template.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from tauon.config import register
from tauon.data.files import expand, read_bytes
from tauon.data.sources.base import Conversation, Kind, Pair, SourceConfig
from tauon.data.sources.chat_rows import FIELDS, conversation, pair, renamed
from tauon.data.text_files import json_rows, read_text, wrong_encoding
from tauon.errors import DataError

__all__ = ["ChatSourceConfig", "PairsConfig"]


class JsonFilesConfig(SourceConfig):
    """JSON files: a list of objects, or one object per line."""

    path: str | tuple[str, ...]
    """A file, a folder or a glob, or several of them; compressed files (.gz, .zst) are read directly."""
    encoding: str = "utf-8"
    """Text encoding, read strictly. A byte order mark (UTF-8, UTF-16, UTF-32) takes precedence."""

    fields: dict[str, str] = Field(default_factory=dict)
    """Names of the keys in the file if they are not the usual ones: {prompt: question, completion: answer}."""
    group: str | None = None
    """Key of the group of each row (a user, a session): all rows of a group are in the same part. Default: no groups."""

    later: ClassVar[tuple[str, ...]] = ("fields", "group")

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from wrong_encoding(self.raw_value("encoding"))
        for name in self.raw_value("fields"):
            if name not in FIELDS:
                yield f"fields.{name}", f"is not a key of a conversation or preference; expected one of {', '.join(FIELDS)}"

    def files(self) -> list[tuple[Path, str]]:
        return expand(self.path)

    def objects(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, _ in self.files():
            for where, row in json_rows(read_text(read_bytes(path), str(path), self.encoding), str(path)):
                yield where, renamed(row, self.fields, where) if self.fields else row

    def grouped(self, row: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
        """Return (group of the row, the row without it)."""
        if self.group is None:
            return "", row
        value = row.get(self.group)
        if not isinstance(value, str | int) or value == "":
            raise DataError(f"{where}: {self.group} is {value!r}, but data.source.group needs the group of each row. Fill it in")
        return str(value), {k: v for k, v in row.items() if k != self.group}


@register("chat")
class ChatSourceConfig(JsonFilesConfig):
    """Conversations in JSON: Alpaca's instruction, input, output; OpenAI's messages; ShareGPT's conversations; prompt and completion."""

    provides: ClassVar[Kind] = "chat"

    def conversations(self) -> list[Conversation]:
        rows = ((where, *self.grouped(row, where)) for where, row in self.objects())
        return [replace(conversation(row, where), group=group) for where, group, row in rows]


@register("pairs")
class PairsConfig(JsonFilesConfig):
    """Preferences in JSON: prompt, chosen, rejected; or conversations with chosen and rejected, as LLaMA-Factory writes them."""

    provides: ClassVar[Kind] = "pairs"

    def pairs(self) -> list[Pair]:
        rows = ((where, *self.grouped(row, where)) for where, row in self.objects())
        return [replace(pair(row, where), group=group) for where, group, row in rows]
