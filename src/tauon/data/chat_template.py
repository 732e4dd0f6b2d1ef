"""Chat templates: how the roles of a conversation are written, as plain data, or as a Hugging Face template (Jinja, sandboxed).

A conversation becomes pieces: markup of the template, and contents of the messages, which are tokenised apart, so that nothing that
somebody says can look like markup. Markers (`<|im_end|>`, `{end}`) are single tokens of the tokenizer. What an answer's loss covers is
its content and the marker behind it: to say where an answer ends is a part of it.

Knows no token ids (`chat.py` does) and no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from tauon.config import Config
from tauon.data.sources.base import Message
from tauon.errors import DataError, MissingExtra

__all__ = ["ANSWER", "PRESETS", "ChatConfig", "Piece", "RoleConfig", "Template", "template_for"]

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
    empty_answers: Literal["refuse", "drop"] = "refuse"
    """What to do with a conversation whose last answer is empty."""

    def problems(self) -> Iterator[tuple[str, str]]:
        roles, jinja = self.peek("roles"), self.peek("jinja")
        if roles and jinja is not None:
            yield "jinja", "and roles are two templates; give one of them"
        if (roles or jinja is not None) and "template" in self.model_fields_set and self.peek("template") != "alpaca":
            yield "template", "has no effect beside roles or jinja; drop it"
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


class Template:
    """Messages -> pieces. `name` is for messages."""

    name = "template"

    def pieces(self, messages: Sequence[Message], where: str) -> list[Piece]:
        """All of a conversation. Raises `DataError` for a role that the template does not write."""
        raise NotImplementedError

    def prompt(self, messages: Sequence[Message], where: str) -> list[Piece]:
        """What stands before the answer that comes next."""
        whole = self.pieces([*messages, Message(ANSWER, "")], where)
        last = max(i for i, p in enumerate(whole) if p.message == len(messages))
        return whole[:last]


class PlainTemplate(Template):
    """Markup before and behind each role."""

    def __init__(self, name: str, preset: Preset) -> None:
        self.name, self.preset = name, preset

    def pieces(self, messages: Sequence[Message], where: str) -> list[Piece]:
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
            answer = m.role == ANSWER
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


class JinjaTemplate(Template):
    """A Hugging Face chat template, run in jinja2's sandbox over placeholders, which are found again in what it writes."""

    name = "jinja"

    def __init__(self, source: str) -> None:
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as err:
            raise MissingExtra("a Hugging Face chat template", "chat") from err
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment.globals["raise_exception"] = refuse
        self._error = TemplateError
        try:
            self._template = environment.from_string(source)
        except TemplateError as err:
            raise DataError(f"data.chat.jinja: not a template ({err})") from None
        self._written: dict[tuple[str, ...], list[Piece]] = {}

    def pieces(self, messages: Sequence[Message], where: str) -> list[Piece]:
        joined, numbers = _inputs_joined(messages)
        roles = tuple(m.role for m in joined)
        if roles not in self._written:
            self._written[roles] = self._write(roles, where)
        out: list[Piece] = []
        for p in self._written[roles]:
            if p.message is None:
                out.append(p)
                continue
            mine = numbers[p.message]
            for n, i in enumerate(mine):
                out += [Piece("\n\n")] if n else []
                out.append(Piece(messages[i].content, i, p.covered))
        return out

    def _write(self, roles: tuple[str, ...], where: str) -> list[Piece]:
        marks = [f"\ue000{i}\ue001" for i in range(len(roles))]
        given = [{"role": r, "content": c} for r, c in zip(roles, marks, strict=True)]
        try:
            text: str = self._template.render(messages=given, add_generation_prompt=False, bos_token=BEGIN, eos_token=END)
        except self._error as err:
            raise DataError(f"{where}: the chat template refuses the roles {', '.join(roles)} ({err})") from None
        found = [int(n) for n in re.findall("\ue000(\\d+)\ue001", text)]
        if found != list(range(len(roles))):
            lost = [f"{i} ({roles[i]})" for i in range(len(roles)) if found.count(i) != 1]
            what = f"drops or repeats the content of message {', '.join(lost)}" if lost else "changes the order of messages"
            raise DataError(f"{where}: the chat template {what}. Mend data.chat.jinja, or leave such conversations out")
        out: list[Piece] = []
        answer = False
        for n, part in enumerate(re.split("\ue000(\\d+)\ue001", text)):
            if n % 2:
                answer = roles[int(part)] == ANSWER
                out.append(Piece("", int(part), answer))
            elif part:
                out += behind_answer(part) if answer else [Piece(part)]
        return out


def _inputs_joined(messages: Sequence[Message]) -> tuple[list[Message], list[list[int]]]:
    """Messages with each input as a part of the one before it; and which messages each is made of."""
    out: list[Message] = []
    numbers: list[list[int]] = []
    for i, m in enumerate(messages):
        if m.role == "input" and out:
            numbers[-1].append(i)
        else:
            out.append(m)
            numbers.append([i])
    return out, numbers


def template_for(config: ChatConfig) -> Template:
    """The template that a recipe's `data.chat` means."""
    jinja, roles = config.jinja, config.roles
    if jinja is not None:
        return JinjaTemplate(jinja)
    if roles:
        for role in roles.values():
            _: Any = (role.before, role.after)  # read here, whichever roles the data has
        return PlainTemplate("data.chat.roles", Preset(roles))
    return PlainTemplate(config.template, PRESETS[config.template])
