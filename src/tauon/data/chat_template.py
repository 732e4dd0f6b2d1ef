"""Chat templates as plain data: how the roles of a conversation are written. Those of Hugging Face (Jinja) are in `chat_jinja.py`.

A conversation becomes pieces: markup of the template, and contents of the messages, which are tokenised apart, so that nothing that
somebody says can look like markup. Markers (`<|im_end|>`, `{end}`) are single tokens of the tokenizer. What an answer's loss covers is
its content and the marker behind it: to say where an answer ends is a part of it.

Knows no token ids (`chat_encoder.py` does) and no file.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from tauon.config import Config
from tauon.data.sources.base import Message
from tauon.errors import DataError

__all__ = ["ANSWER", "BEGIN", "END", "PRESETS", "ChatConfig", "Piece", "PlainTemplate", "Preset", "RoleConfig", "is_marker"]

ANSWER = "assistant"
END, BEGIN = "{end}", "{bos}"
"""Markers that stand for the tokenizer's own token at the end of an answer, and at the beginning of a text."""
_MARKER = re.compile(r"\{end\}|\{bos\}|<\|[^|<>\s]+\|>|</?s>|\[/?INST\]")


class RoleConfig(Config):
    """How a message of one role is written."""

    before: str = ""
    """Markup before its content."""
    after: str = ""
    """Markup behind it."""


@dataclass(frozen=True)
class Preset:
    roles: dict[str, RoleConfig]
    opening: str = ""
    """Where no system message is there."""
    opening_with_input: str | None = None
    """The same, where an input is there."""


def _alpaca() -> Preset:
    """Stanford Alpaca's prompts, to the letter (github.com/tatsu-lab/stanford_alpaca, `PROMPT_DICT`)."""
    about = "Below is an instruction that describes a task"
    ask = "Write a response that appropriately completes the request.\n\n"
    roles = {
        "system": RoleConfig(after="\n\n"),
        "user": RoleConfig(before="### Instruction:\n", after="\n\n"),
        "input": RoleConfig(before="### Input:\n", after="\n\n"),
        ANSWER: RoleConfig(before="### Response:", after=END),
    }
    return Preset(roles, f"{about}. {ask}", f"{about}, paired with an input that provides further context. {ask}")


def _same(before: str, after: str, roles: Sequence[str]) -> dict[str, RoleConfig]:
    return {r: RoleConfig(before=before.replace("ROLE", r), after=after) for r in roles}


PRESETS: dict[str, Preset] = {
    "alpaca": _alpaca(),
    "chatml": Preset(_same("<|im_start|>ROLE\n", "<|im_end|>\n", ("system", "user", ANSWER, "tool"))),
    "llama-3": Preset(_same("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>", ("system", "user", ANSWER, "ipython"))),
}


class ChatConfig(Config):
    """How conversations are written, and which are left out."""

    template: Literal["alpaca", "chatml", "llama-3"] = "alpaca"
    """alpaca: plain headings, for models that know no markers; chatml, llama-3: markers, which the tokenizer must have as tokens."""
    roles: dict[str, RoleConfig] = Field(default_factory=dict)
    """A template of your own, role by role: {user: {before: "Q: ", after: "\\n"}, assistant: {before: "A: ", after: "{end}"}}. `{end}` is
    the tokenizer's token for the end."""
    jinja: str | None = None
    """A Hugging Face chat template (`chat_template` of tokenizer_config.json), as text."""
    date: str | None = Field(None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    """The date that `strftime_now` of a Hugging Face template writes: 2026-01-31. A template that asks for it needs it: today's would make other
    data tomorrow."""
    empty_answers: Literal["refuse", "drop"] = "refuse"
    """What to do with a conversation that has an empty answer to be learned."""

    def problems(self) -> Iterator[tuple[str, str]]:
        roles, jinja = self.raw_value("roles"), self.raw_value("jinja")
        if roles and jinja is not None:
            yield "jinja", "and roles are two templates; give one of them"
        if (roles or jinja is not None) and "template" in self.model_fields_set and self.raw_value("template") != "alpaca":
            yield "template", "has no effect beside roles or jinja; drop it"
        if self.raw_value("date") is not None:
            if jinja is None:
                yield "date", "is for data.chat.jinja; drop it"
            try:
                datetime.date.fromisoformat(self.raw_value("date"))
            except ValueError as err:
                yield "date", f"{self.raw_value('date')!r} is no date ({err}). Write year-month-day: 2026-01-31"
        if roles and ANSWER not in roles:
            yield "roles", f"has no {ANSWER!r}: answers are what is learned; add it. There are: {', '.join(roles)}"


@dataclass(frozen=True)
class Piece:
    """A part of a conversation as it is written."""

    text: str
    """Markup, or the content of a message."""
    message: int | None = None
    """Which message it is the content of; None: markup."""
    covered: bool = False
    """Whether it is a part of an answer."""

    @property
    def markers(self) -> list[str]:
        """Markup cut before and behind each marker."""
        cut, at = [], 0
        for found in _MARKER.finditer(self.text):
            cut += [self.text[at : found.start()], found.group()]
            at = found.end()
        return [t for t in (*cut, self.text[at:]) if t]


def is_marker(text: str) -> bool:
    """Whether a part of markup is one token."""
    return _MARKER.fullmatch(text) is not None


class PlainTemplate:
    """Messages -> pieces: markup before and behind each role. `name` is for messages."""

    def __init__(self, name: str, preset: Preset) -> None:
        self.name, self.preset = name, preset

    def prompt(self, messages: Sequence[Message], where: str) -> list[Piece]:
        """What stands before the answer that comes next."""
        whole = self.pieces([*messages, Message(ANSWER, "")], where)
        last = max(i for i, p in enumerate(whole) if p.message == len(messages))
        return whole[:last]

    def pieces(self, messages: Sequence[Message], where: str) -> list[Piece]:
        """All of a conversation. Raises `DataError` for a role that the template does not write."""
        roles = self.preset.roles
        out: list[Piece] = []
        if messages[0].role != "system":
            with_input = any(m.role == "input" for m in messages)
            opening = self.preset.opening_with_input if with_input and self.preset.opening_with_input else self.preset.opening
            out += [Piece(opening)] if opening else []
        for i, m in enumerate(messages):
            role = roles.get(m.role)
            if role is None and m.role == "input" and i and messages[i - 1].role == "user":
                # the content of an instruction goes on: in front of the markup behind it
                at = max(j for j, p in enumerate(out) if p.message == i - 1) + 1
                out[at:at] = [Piece("\n\n"), Piece(m.content, i)]
                continue
            if role is None:
                raise DataError(
                    f"{where}: the chat template {self.name} has no role {m.role!r}, so that message would be dropped. It has "
                    f"{', '.join(roles)}; write one with data.chat.roles, or rename the role"
                )
            answer = m.role == ANSWER and m.learn
            out += [Piece(role.before)] if role.before else []
            out.append(Piece(m.content, i, answer))
            out += behind_answer(role.after) if answer else [Piece(role.after)] if role.after else []
        return out


def behind_answer(markup: str) -> list[Piece]:
    """Markup behind an answer: where it begins with a marker, that belongs to the answer, with blanks before it."""
    found = _MARKER.search(markup)
    if found is None or markup[: found.start()].strip():
        return [Piece(markup)] if markup else []
    parts = [Piece(markup[: found.end()], covered=True), Piece(markup[found.end() :])]
    return [p for p in parts if p.text]
