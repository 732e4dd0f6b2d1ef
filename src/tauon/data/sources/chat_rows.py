"""Rows of JSON as conversations and preferences: Alpaca's form, OpenAI's messages, ShareGPT's conversations; prompt, chosen, rejected.

    {"instruction": ..., "input": ..., "output": ..., "history": [[..., ...], ...]}   Alpaca (input and history may be empty or missing)
    {"messages": [{"role": "user", "content": ..., "weight": 1}, ...]}                OpenAI (content: text, or a list of parts of text)
    {"conversations": [{"from": "human", "value": ...}, ...], "system": ...}          ShareGPT
    {"prompt": ..., "completion": ...}                                                each a text or a list of messages
    {"prompt": ..., "chosen": ..., "rejected": ...}                                   preferences; each a text or a list of messages,
    {"conversations": [...], "chosen": {...}, "rejected": {...}}                      or LLaMA-Factory's form

A key that changes the conversation and that no chat template writes (tool calls, images) is an error; others are listed in `ignored`. Opens no file.
"""

from __future__ import annotations

from typing import Any

from tauon.data.sources.base import Conversation, Message, Pair
from tauon.data.text_files import refuse_surrogates
from tauon.errors import DataError

__all__ = ["FIELDS", "conversation", "pair", "renamed"]

FIELDS = (
    "messages", "conversations", "instruction", "input", "output", "history", "system", "prompt", "completion", "question", "chosen", "rejected",
)  # fmt: skip
"""Keys of a row that are read; `data.source.fields` says under which names a file has them."""

_CALLED = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
"""Other names of roles."""
_SAYS_MORE = (
    "tool_calls",
    "function_call",
    "tools",
    "functions",
    "reasoning_content",
    "reasoning",
    "thinking",
    "refusal",
    "audio",
    "images",
)
"""Keys of a row or a message with content beside `content`, or that decide how it is written."""
_READ = ("role", "from", "content", "value", "weight")


def conversation(row: dict[str, Any], where: str) -> Conversation:
    """Return the messages of one row, in any of the forms. Raises `DataError` if there is no message or no answer."""
    ignored: list[str] = []
    if "messages" in row or "conversations" in row:
        used = ["messages" if "messages" in row else "conversations"]
        found = _messages(row[used[0]], where, ignored)
    elif "instruction" in row and "output" in row:
        used = ["instruction", "input", "output", "history"]
        found = _turns(row.get("history"), where)
        found += _asked(row, where)
        found.append(Message("assistant", _text(row["output"], where, "output")))
    elif "prompt" in row and "completion" in row:
        used = ["prompt", "completion"]
        found = _said(row["prompt"], "user", where, "prompt", ignored) + _said(row["completion"], "assistant", where, "completion", ignored)
    else:
        raise DataError(
            f"{where}: keys {', '.join(row) or 'none'} are not a conversation. Expected instruction and output (Alpaca), messages (OpenAI), "
            "conversations (ShareGPT), or prompt and completion. Rename the keys"
        )
    found = _with_system(row, found, where)
    ignored += _left(row, (*used, "system"), where)
    if not any(m.role == "assistant" for m in found):
        raise DataError(
            f"{where}: no message has the role assistant, so there is no answer to train on. Roles found: {', '.join(m.role for m in found)}"
        )
    if not any(m.role == "assistant" and m.learn for m in found):
        raise DataError(
            f"{where}: every answer has weight 0, so there is nothing to train on. Remove the row, or set weight 1 for an answer"
        )
    return Conversation(tuple(found), where, tuple(ignored))


def pair(row: dict[str, Any], where: str) -> Pair:
    """Return the prompt and two answers of one row. Raises `DataError` if one is missing, or if both answers are the same."""
    absent = [k for k in ("chosen", "rejected") if k not in row]
    used = next((k for k in ("conversations", "messages", "prompt", "instruction", "question") if k in row), None)
    if absent or used is None:
        raise DataError(
            f"{where}: no {absent[0] if absent else 'prompt'}. A preference needs prompt (or conversations), chosen and rejected; "
            f"this row has {', '.join(row) or 'no keys'}"
        )
    ignored: list[str] = []
    if used == "instruction":
        prompt = _turns(row.get("history"), where) + _asked(row, where)
    else:
        prompt = _said(row[used], "user", where, used, ignored)
    prompt = _with_system(row, prompt, where)
    chosen, rejected = (_answer(row[k], prompt, where, k, ignored) for k in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError(f"{where}: chosen and rejected are the same text, so there is no preference to learn. Remove the row")
    more = ("input", "history") if used == "instruction" else ()
    ignored += _left(row, (used, "chosen", "rejected", "system", *more), where)
    return Pair(tuple(prompt), chosen, rejected, where, tuple(ignored))


def renamed(row: dict[str, Any], fields: dict[str, str], where: str) -> dict[str, Any]:
    """Return the row with the usual keys. `fields`: usual key to the key in the file. Raises `DataError` if the file has both.

    >>> renamed({"question": "Why?", "answer": "So."}, {"prompt": "question", "completion": "answer"}, "row 1")
    {'prompt': 'Why?', 'completion': 'So.'}
    """
    usual = {there: key for key, there in fields.items()}
    both = next((key for key, there in fields.items() if key in row and there in row and key not in usual), None)
    if both is not None:
        raise DataError(f"{where}: has {both} and {fields[both]}, which data.source.fields reads as {both}. Remove one of the two")
    return {usual.get(key, key): value for key, value in row.items()}


def _asked(row: dict[str, Any], where: str) -> list[Message]:
    """Alpaca's instruction and input."""
    about = _text(row.get("input") or "", where, "input")
    return [Message("user", _text(row["instruction"], where, "instruction")), *([Message("input", about)] if about.strip() else [])]


def _turns(history: Any, where: str) -> list[Message]:
    """Alpaca's `history`: earlier questions with their answers."""
    if history is None:
        return []
    if not isinstance(history, list) or not all(isinstance(t, list) and len(t) == 2 for t in history):
        raise DataError(f"{where}: history is {_shown(history)}, expected a list of [question, answer]. Correct it, or remove the key")
    found = []
    for i, turn in enumerate(history):
        found += [Message(r, _text(said, where, f"history {i}")) for r, said in zip(("user", "assistant"), turn, strict=True)]
    return found


def _with_system(row: dict[str, Any], found: list[Message], where: str) -> list[Message]:
    system = row.get("system")
    if not system:
        return found
    if found[0].role == "system":
        if found[0].content != system:
            raise DataError(f"{where}: the key system and the first message are two different system messages. Keep one of them")
        return found
    return [Message("system", _text(system, where, "system")), *found]


def _left(row: dict[str, Any], used: tuple[str, ...], where: str) -> list[str]:
    """Return the keys of a row that are not read. `DataError` if one has content that would be lost."""
    left = [k for k, v in row.items() if k not in used and v not in (None, "", [], {})]
    lost = next((k for k in left if k in _SAYS_MORE), None)
    if lost is not None:
        raise DataError(f"{where}: {lost} is {_shown(row[lost])}, which no chat template writes, so it would be lost. {_HINT}")
    return [k.encode("utf-8", "backslashreplace").decode() for k in left]


_HINT = "Write it into the message's content as the model should see it, or remove such rows"


def _messages(value: Any, where: str, ignored: list[str]) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: messages is {_shown(value)}, expected a list with at least one message")
    found = []
    for i, one in enumerate(value):
        role = one.get("role", one.get("from")) if isinstance(one, dict) else None
        if not isinstance(role, str):
            raise DataError(f"{where}: message {i} has no role. Expected {{role, content}} or {{from, value}}")
        ignored += _left(one, _READ, f"{where}, message {i} ({role})")
        content = _text(one.get("content", one.get("value")), where, f"content of message {i} ({role})")
        weight = one.get("weight")
        if weight not in (None, 0, 1):
            raise DataError(f"{where}: message {i} has weight {_shown(weight)}, expected 0 (not trained on) or 1")
        found.append(Message(_CALLED.get(role, role), content, weight is None or bool(weight)))
    return found


def _said(value: Any, role: str, where: str, name: str, ignored: list[str]) -> list[Message]:
    """Return the messages of a text, of one message, or of a list of them."""
    if isinstance(value, list | dict):
        return _messages(value if isinstance(value, list) else [value], where, ignored)
    return [Message(role, _text(value, where, name))]


def _answer(value: Any, prompt: list[Message], where: str, name: str, ignored: list[str]) -> str:
    """Return the text of an answer: a text, one message, or the last message of a conversation that repeats the prompt (Anthropic's form)."""
    if not isinstance(value, list):
        found = _said(
            {"role": "assistant", **value} if isinstance(value, dict) and "from" not in value else value, "assistant", where, name, ignored
        )[0]
        if found.role != "assistant":
            raise DataError(f"{where}: {name} is a message with role {found.role!r}, expected role assistant")
        return found.content
    whole = _messages(value, where, ignored)
    if whole[:-1] not in ([], prompt) or whole[-1].role != "assistant":
        raise DataError(f"{where}: {name} is a conversation, expected the prompt's messages followed by one assistant message")
    return whole[-1].content


def _text(value: Any, where: str, name: str) -> str:
    """Return a text, or the joined parts of OpenAI's list of text parts."""
    if isinstance(value, list) and value:
        kinds = [p.get("type") if isinstance(p, dict) else type(p).__name__ for p in value]
        odd = next((k for p, k in zip(value, kinds, strict=True) if k != "text" or not isinstance(p.get("text"), str)), None)
        if odd is not None:
            raise DataError(f"{where}: {name} has a part of type {odd!r}, expected only parts of type 'text'. Remove such rows")
        value = "".join(p["text"] for p in value)
    if value is None:
        raise DataError(f'{where}: {name} is null or missing, expected text. Write a text ("" for an empty one), or remove the row')
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {type(value).__name__}, expected text")
    return refuse_surrogates(value, f"{where}: {name}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
