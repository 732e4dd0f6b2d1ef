"""Chat templates as plain data: how the roles of a conversation are written. Hugging Face templates (Jinja) are in `chat_jinja.py`.

A conversation becomes pieces: markup of the template and contents of the messages, which are tokenised separately, so that message
content can never become markup. Markers (`<|im_end|>`, `{end}`) are single tokens of the tokenizer. The loss covers an answer's content
and the marker after it: the model must learn to stop.

Does not depend on token ids (`chat_encoder.py` does) or files.
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
"""Markers for the tokenizer's own end-of-answer token and beginning-of-text token."""
_MARKER = re.compile(r"\{end\}|\{bos\}|<\|[^|<>\s]+\|>|</?s>|\[/?INST\]")


class RoleConfig(Config):
    """How a message of one role is written."""

    before: str = ""
    """Markup before its content."""
    after: str = ""
    """Markup after its content."""


@dataclass(frozen=True)
class Preset:
    roles: dict[str, RoleConfig]
    opening: str = ""
    """Text used if there is no system message."""
    opening_with_input: str | None = None
    """The same, if there is an input."""


def _alpaca() -> Preset:
    """Stanford Alpaca's prompts, verbatim (github.com/tatsu-lab/stanford_alpaca, `PROMPT_DICT`)."""
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
    """alpaca: plain headings, for models without markers; chatml, llama-3: markers, which the tokenizer must have as tokens."""
    roles: dict[str, RoleConfig] = Field(default_factory=dict)
    """A template of your own, role by role: {user: {before: "Q: ", after: "\\n"}, assistant: {before: "A: ", after: "{end}"}}. `{end}` is
    the tokenizer's token for the end."""
    jinja: str | None = None
    """A Hugging Face chat template (`chat_template` of tokenizer_config.json), as text."""
    date: str | None = Field(None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    """The date that `strftime_now` of a Hugging Face template returns: 2026-01-31. Required if the template uses it: today's date would change
    the data every day."""
    empty_answers: Literal["refuse", "drop"] = "refuse"
    """What to do with a conversation that has an empty answer to train on."""

    def problems(self) -> Iterator[tuple[str, str]]:
        roles, jinja = self.raw_value("roles"), self.raw_value("jinja")
        if roles and jinja is not None:
            yield "jinja", "and roles are two templates; set one of them"
        if (roles or jinja is not None) and "template" in self.model_fields_set and self.raw_value("template") != "alpaca":
            yield "template", "has no effect with roles or jinja; remove it"
        if self.raw_value("date") is not None:
            if jinja is None:
                yield "date", "has no effect without data.chat.jinja; remove it"
            try:
                datetime.date.fromisoformat(self.raw_value("date"))
            except ValueError as err:
                yield "date", f"{self.raw_value('date')!r} is not a date ({err}). Write year-month-day: 2026-01-31"
        if roles and ANSWER not in roles:
            yield "roles", f"has no {ANSWER!r}, the role to train on; add it. Roles found: {', '.join(roles)}"


@dataclass(frozen=True)
class Piece:
    """One piece of a written conversation."""

    text: str
    """Markup, or the content of a message."""
    message: int | None = None
    """Number of the message whose content this is; None: markup."""
    covered: bool = False
    """Whether it belongs to an answer."""

    @property
    def markers(self) -> list[str]:
        """Split markup before and after each marker."""
        cut, at = [], 0
        for found in _MARKER.finditer(self.text):
            cut += [self.text[at : found.start()], found.group()]
            at = found.end()
        return [t for t in (*cut, self.text[at:]) if t]


def is_marker(text: str) -> bool:
    """Whether a piece of markup is one token."""
    return _MARKER.fullmatch(text) is not None


class PlainTemplate:
    """Converts messages to pieces: markup before and after each role. `name` is for messages."""

    def __init__(self, name: str, preset: Preset) -> None:
        self.name, self.preset = name, preset

    def prompt(self, messages: Sequence[Message], where: str) -> list[Piece]:
        """Return the pieces before the next answer."""
        whole = self.pieces([*messages, Message(ANSWER, "")], where)
        last = max(i for i, p in enumerate(whole) if p.message == len(messages))
        return whole[:last]

    def pieces(self, messages: Sequence[Message], where: str) -> list[Piece]:
        """Return all pieces of a conversation. `DataError` for a role that the template does not have."""
        roles = self.preset.roles
        out: list[Piece] = []
        if messages[0].role != "system":
            with_input = any(m.role == "input" for m in messages)
            opening = self.preset.opening_with_input if with_input and self.preset.opening_with_input else self.preset.opening
            out += [Piece(opening)] if opening else []
        for i, m in enumerate(messages):
            role = roles.get(m.role)
            if role is None and m.role == "input" and i and messages[i - 1].role == "user":
                # the content of an instruction continues: insert before the markup after it
                at = max(j for j, p in enumerate(out) if p.message == i - 1) + 1
                out[at:at] = [Piece("\n\n"), Piece(m.content, i)]
                continue
            if role is None:
                raise DataError(
                    f"{where}: the chat template {self.name} has no role {m.role!r}, so the message would be dropped. Its roles are "
                    f"{', '.join(roles)}. Add the role in data.chat.roles, or rename it in the data"
                )
            answer = m.role == ANSWER and m.learn
            out += [Piece(role.before)] if role.before else []
            out.append(Piece(m.content, i, answer))
            out += behind_answer(role.after) if answer else [Piece(role.after)] if role.after else []
        return out


def behind_answer(markup: str) -> list[Piece]:
    """Split markup after an answer: a marker at its start belongs to the answer, with blanks before it."""
    found = _MARKER.search(markup)
    if found is None or markup[: found.start()].strip():
        return [Piece(markup)] if markup else []
    parts = [Piece(markup[: found.end()], covered=True), Piece(markup[found.end() :])]
    return [p for p in parts if p.text]
