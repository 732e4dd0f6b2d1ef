"""Conversations and preferences in JSON: Alpaca's form, OpenAI's messages, ShareGPT's conversations; prompt, chosen, rejected.

    {"instruction": ..., "input": ..., "output": ...}                                 Alpaca (input may be empty or missing)
    {"messages": [{"role": "user", "content": ...}, ...]}                             OpenAI
    {"conversations": [{"from": "human", "value": ...}, ...], "system": ...}          ShareGPT
    {"prompt": ..., "chosen": ..., "rejected": ...}                                   preferences; each a text or a list of messages,
    {"conversations": [...], "chosen": {...}, "rejected": {...}}                      or LLaMA-Factory's form

Turns nothing into tokens: how roles are written is a chat template's business (`chat_template.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from tauon.config import register
from tauon.data.files import decode, expand, read_bytes
from tauon.data.sources.base import Conversation, Kind, Message, Pair, SourceConfig
from tauon.errors import DataError

__all__ = ["ChatSourceConfig", "PairsConfig", "conversation", "json_rows", "pair"]

_CALLED = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
"""Other names of roles."""


class JsonFilesConfig(SourceConfig):
    """Files of JSON: a list of objects, or an object a line."""

    path: str | tuple[str, ...]
    """A file, a folder or a glob, or several of them; packed files (.gz, .zst) are read as they are."""

    def files(self) -> list[tuple[Path, str]]:
        return expand(self.path)

    def objects(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, _ in self.files():
            yield from json_rows(decode(read_bytes(path), str(path)), str(path))


@register("chat")
class ChatSourceConfig(JsonFilesConfig):
    """Conversations in JSON: Alpaca's instruction, input, output; OpenAI's messages; ShareGPT's conversations."""

    provides: ClassVar[Kind] = "chat"

    def conversations(self) -> list[Conversation]:
        return [conversation(row, where) for where, row in self.objects()]


@register("pairs")
class PairsConfig(JsonFilesConfig):
    """Preferences in JSON: prompt, chosen, rejected; or conversations with chosen and rejected, as LLaMA-Factory writes them."""

    provides: ClassVar[Kind] = "pairs"

    def pairs(self) -> list[Pair]:
        return [pair(row, where) for where, row in self.objects()]


def json_rows(text: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each row: of a list, or of lines."""
    text = text.removeprefix("\ufeff")
    whole = text.lstrip().startswith("[")
    try:
        rows = json.loads(text) if whole else None
    except (ValueError, RecursionError) as err:
        raise DataError(f"{where}: begins like a list and is not JSON ({err})") from None
    if rows is not None:
        numbered = [(f"{where}, item {i}", row) for i, row in enumerate(rows)]
    else:
        numbered = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    numbered.append((f"{where}, line {number}", json.loads(line)))
                except (ValueError, RecursionError) as err:
                    raise DataError(f"{where}, line {number}: not JSON ({err}). Each line must be one JSON object") from None
    if not numbered:
        raise DataError(f"{where}: no rows. Check the file")
    for place, row in numbered:
        if not isinstance(row, dict):
            raise DataError(f"{place}: a JSON {type(row).__name__}, expected an object like {{...}}")
        yield place, row


def conversation(row: dict[str, Any], where: str) -> Conversation:
    """The messages of one row, whatever its form. Raises `DataError` where it has none, or no answer."""
    if "messages" in row or "conversations" in row:
        found = _messages(row.get("messages", row.get("conversations")), where)
    elif "instruction" in row and "output" in row:
        about = _text(row.get("input") or "", where, "input")
        found = [Message("user", _text(row["instruction"], where, "instruction"))]
        found += [Message("input", about)] if about.strip() else []
        found.append(Message("assistant", _text(row["output"], where, "output")))
    else:
        raise DataError(
            f"{where}: keys {', '.join(row) or 'none'} are no conversation. Known are instruction and output (Alpaca), messages (OpenAI), "
            "conversations (ShareGPT)"
        )
    if row.get("system") and found[0].role != "system":
        found.insert(0, Message("system", _text(row["system"], where, "system")))
    if not any(m.role == "assistant" for m in found):
        raise DataError(
            f"{where}: no message is the assistant's, so there is no answer to learn. Its roles: {', '.join(m.role for m in found)}"
        )
    return Conversation(tuple(found), where)


def pair(row: dict[str, Any], where: str) -> Pair:
    """Prompt and two answers of one row. Raises `DataError` where one is missing, or both are the same."""
    absent = [k for k in ("chosen", "rejected") if k not in row]
    before = next((row[k] for k in ("conversations", "messages", "prompt", "instruction", "question") if k in row), None)
    if absent or before is None:
        raise DataError(
            f"{where}: no {absent[0] if absent else 'prompt'}. A preference has prompt (or conversations), chosen and rejected; "
            f"this has {', '.join(row) or 'none'}"
        )
    prompt = [Message("user", before)] if isinstance(before, str) else _messages(before, where)
    about = row.get("input") if "instruction" in row else None
    if isinstance(about, str) and about.strip():
        prompt.append(Message("input", about))
    if row.get("system") and prompt[0].role != "system":
        prompt.insert(0, Message("system", _text(row["system"], where, "system")))
    chosen, rejected = (_answer(row[k], prompt, where, k) for k in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError(f"{where}: chosen and rejected are the same text, so nothing is preferred. Drop the row")
    return Pair(tuple(prompt), chosen, rejected, where)


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: messages are {type(value).__name__}, expected a list of at least one")
    found = []
    for i, one in enumerate(value):
        role = one.get("role", one.get("from")) if isinstance(one, dict) else None
        if not isinstance(role, str):
            raise DataError(f"{where}: message {i} has no role. A message is {{role, content}} or {{from, value}}")
        found.append(Message(_CALLED.get(role, role), _text(one.get("content", one.get("value")), where, f"message {i}")))
    return found


def _answer(value: Any, prompt: list[Message], where: str, name: str) -> str:
    """The text of an answer: as it is, in a message, or at the end of a conversation that repeats the prompt (Anthropic's form)."""
    if isinstance(value, list):
        whole = _messages(value, where)
        if whole[:-1] not in ([], prompt) or whole[-1].role != "assistant":
            raise DataError(f"{where}: {name} is a conversation that does not end with one answer to the prompt")
        return whole[-1].content
    if isinstance(value, dict):
        value = value.get("content", value.get("value"))
    return _text(value, where, name)


def _text(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {type(value).__name__}, expected text")
    return value
