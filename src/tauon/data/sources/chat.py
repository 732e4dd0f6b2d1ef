"""Conversations and preferences in JSON files. The form of a row is read by `chat_rows.py`; how roles are written as text is decided by the
chat template (`chat_template.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from tauon.config import register
from tauon.data.files import expand, read_bytes
from tauon.data.sources.base import Conversation, Kind, Pair, SourceConfig
from tauon.data.sources.chat_rows import conversation, pair
from tauon.data.text_files import json_rows, read_text, wrong_encoding

__all__ = ["ChatSourceConfig", "PairsConfig"]


class JsonFilesConfig(SourceConfig):
    """JSON files: a list of objects, or one object per line."""

    path: str | tuple[str, ...]
    """A file, a folder or a glob, or several of them; compressed files (.gz, .zst) are read directly."""
    encoding: str = "utf-8"
    """Text encoding, read strictly. A byte order mark (UTF-8, UTF-16, UTF-32) takes precedence."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from wrong_encoding(self.raw_value("encoding"))

    def files(self) -> list[tuple[Path, str]]:
        return expand(self.path)

    def objects(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, _ in self.files():
            yield from json_rows(read_text(read_bytes(path), str(path), self.encoding), str(path))


@register("chat")
class ChatSourceConfig(JsonFilesConfig):
    """Conversations in JSON: Alpaca's instruction, input, output; OpenAI's messages; ShareGPT's conversations; prompt and completion."""

    provides: ClassVar[Kind] = "chat"

    def conversations(self) -> list[Conversation]:
        return [conversation(row, where) for where, row in self.objects()]


@register("pairs")
class PairsConfig(JsonFilesConfig):
    """Preferences in JSON: prompt, chosen, rejected; or conversations with chosen and rejected, as LLaMA-Factory writes them."""

    provides: ClassVar[Kind] = "pairs"

    def pairs(self) -> list[Pair]:
        return [pair(row, where) for where, row in self.objects()]
