r"""Hugging Face chat templates (Jinja): rendered as transformers' `apply_chat_template` renders them, in the same sandbox, with the same
extensions: `{% generation %}`, `{% break %}`, `{% continue %}`, `tojson`, `raise_exception`, `strftime_now`.

The loss of an answer covers what `{% generation %}` encloses. Without it: what the template writes after the prompt for this answer
(`add_generation_prompt`), or without such a prompt, the answer itself; plus the end marker after it. An answer that the template writes
differently when others follow it (Qwen 3 and DeepSeek remove their thoughts) is not what the model should generate at that point: it is
context without loss. Which characters belong to an answer is found by rendering again with another text instead of it.

Does not depend on tokens (`chat_encoder.py` does) or files.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tauon.data.chat_template import ANSWER
from tauon.data.jinja_sandbox import compiled
from tauon.data.sources.base import Message
from tauon.errors import DataError, MissingExtra

__all__ = ["JinjaTemplate", "Written"]


@dataclass(frozen=True)
class Written:
    """A conversation as rendered by a template."""

    text: str
    learned: tuple[tuple[int, int], ...]
    """Character ranges that the loss covers."""
    plain: tuple[tuple[int, int], ...] = ()
    """Character ranges of message content that looks like a special token: they stay plain text."""
    rewritten: int = 0
    """Answers without loss, because the template writes them differently than when they are last."""


@dataclass(frozen=True)
class Layout:
    """What a template writes for given roles, independent of content: the markup between the contents."""

    parts: tuple[str | int, ...]
    """Markup, and message numbers."""
    leads: Mapping[int, str] = field(default_factory=dict)
    """For each answer: the text between its prompt and its content, which the model generates."""
    last_leads: Mapping[int, str] = field(default_factory=dict)
    """The same, if the conversation ends with that answer."""


class JinjaTemplate:
    """Renders messages to text, and finds which characters are trained."""

    name = "jinja"

    def __init__(self, source: str, date: datetime.date | None = None) -> None:
        """`date`: the date for `strftime_now`. `DataError` if the template is invalid."""
        try:
            from jinja2 import TemplateError
        except ImportError as err:
            raise MissingExtra("a Hugging Face chat template", "chat") from err
        self._error: type[Exception] = TemplateError
        self._date = date
        try:
            self._render = compiled(source, self._strftime)
        except TemplateError as err:
            raise DataError(f"data.chat.jinja: not a valid Jinja template ({err})") from None
        self._tags = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        self._layouts: dict[tuple[Any, ...], Layout] = {}

    def _strftime(self, form: str) -> str:
        if self._date is None:
            raise DataError(
                "the chat template writes today's date (strftime_now), so the data would change every day. Fix the date that it should "
                "write: data.chat.date: 2026-01-31"
            )
        return datetime.datetime.combine(self._date, datetime.time()).strftime(form)

    def write(
        self, messages: Sequence[Message], where: str, tokens: Mapping[str, str], special: Sequence[str] = (), ends: Sequence[str] = (),
    ) -> Written:  # fmt: skip
        """Render a whole conversation.

        Args:
            messages: in order.
            where: its location, for messages.
            tokens: `bos_token`, `eos_token` and the like.
            special: texts of the tokenizer's special tokens: in message content they stay plain text.
            ends: texts of tokens that may end an answer.
        """
        joined = joined_inputs(messages)
        said, shielded = _shield([m.content for m in joined], special, where)
        scene = _Scene(self, joined, said, where, tokens)
        text, spans = scene.whole()
        rewritten = 0
        if self._tags:
            learned = _of_answers(spans, joined, where)
        else:
            learned, rewritten = scene.answers(text, ends)
        text, plain = _unshield(text, shielded)
        return Written(text, tuple(learned), tuple(plain), rewritten)

    def prompt(self, messages: Sequence[Message], where: str, tokens: Mapping[str, str], special: Sequence[str] = ()) -> Written:
        """Render the text before the next answer."""
        joined = joined_inputs(messages)
        said, shielded = _shield([m.content for m in joined], special, where)
        scene = _Scene(self, joined, said, where, tokens)
        text, plain_text = (scene.render(range(len(joined)), prompt=p) for p in (True, False))
        if text == plain_text:  # the template has no generation prompt: use the text before an answer, without blanks
            mark = _mark(len(joined))
            longer = _Scene(self, [*joined, Message(ANSWER, "")], [*said, mark], where, tokens)
            before = longer.render(range(len(joined) + 1)).partition(mark)[0]
            text = before if before[len(text) :].strip() or not before.startswith(text) else text
        text, plain = _unshield(text, shielded)
        return Written(text, (), tuple(plain))

    def render(
        self, messages: Sequence[dict[str, str]], where: str, tokens: Mapping[str, str], prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return (text, ranges that `{% generation %}` encloses)."""
        values = {**tokens, "messages": messages, "tools": None, "documents": None, "add_generation_prompt": prompt}
        try:
            return self._render(values)
        except DataError as err:
            raise DataError(f"{where}: {err}") from None
        except Exception as err:  # templates can fail in many ways: raise_exception, the sandbox, a filter on the wrong type
            roles = ", ".join(m["role"] for m in messages)
            raise DataError(
                f"{where}: the chat template raised an error for the roles {roles} ({err}). Correct the roles, or use another template"
            ) from None

    def layout(self, roles: tuple[str, ...], where: str, tokens: Mapping[str, str]) -> Layout:
        """Return the layout for these roles. `DataError` if the template drops or repeats a message."""
        key = (roles, tuple(sorted(tokens.items())))
        if key not in self._layouts:
            self._layouts[key] = self._laid_out(roles, where, tokens)
        return self._layouts[key]

    def _laid_out(self, roles: tuple[str, ...], where: str, tokens: Mapping[str, str]) -> Layout:
        numbers = range(len(roles))
        scene = _Scene(self, [Message(r, "") for r in roles], [_mark(i) for i in numbers], where, tokens)
        text = scene.render(numbers)
        split = _MARKED.split(text)
        found = [int(n) for n in split[1::2]]
        if sorted(found) != list(numbers):
            lost = [f"{i} ({roles[i]})" for i in numbers if found.count(i) != 1]
            raise DataError(
                f"{where}: the chat template drops or repeats the content of message {', '.join(lost)}. Correct data.chat.jinja, or remove such "
                "conversations out"
            )
        leads: dict[int, str] = {}
        last_leads: dict[int, str] = {}
        for i in (i for i in numbers if roles[i] == ANSWER):
            content, here = text.index(_mark(i)), scene.lead(text, i)
            last = here
            if i < len(roles) - 1:
                with suppress(DataError):  # the template does not allow the conversation to end there
                    last = scene.lead(scene.render(range(i + 1)), i)
            if here is None:  # the prompt changed because messages follow
                here = last if last is not None and text.endswith(last, 0, content) else ""
            leads[i], last_leads[i] = here, here if last is None else last
        return Layout(tuple(int(p) if n % 2 else p for n, p in enumerate(split)), leads, last_leads)


class _Scene:
    """One conversation rendered by one template."""

    def __init__(
        self, template: JinjaTemplate, messages: Sequence[Message], said: Sequence[str], where: str, tokens: Mapping[str, str]
    ) -> None:
        self.template, self.messages, self.said, self.where, self.tokens = template, messages, said, where, tokens

    def _given(self, numbers: Sequence[int], instead: Mapping[int, str]) -> list[dict[str, str]]:
        return [{"role": self.messages[i].role, "content": instead.get(i, self.said[i])} for i in numbers]

    def whole(self) -> tuple[str, list[tuple[int, int]]]:
        return self.template.render(self._given(range(len(self.messages)), {}), self.where, self.tokens, False)

    def render(self, numbers: Sequence[int], *, prompt: bool = False, instead: Mapping[int, str] | None = None) -> str:
        return self.template.render(self._given(numbers, instead or {}), self.where, self.tokens, prompt)[0]

    def answers(self, text: str, ends: Sequence[str]) -> tuple[list[tuple[int, int]], int]:
        """Return (covered characters of `text`, answers without loss because they are written differently than when last)."""
        layout = self.template.layout(tuple(m.role for m in self.messages), self.where, self.tokens)
        exact = text == "".join(p if isinstance(p, str) else self.said[p] for p in layout.parts)
        starts, at = {}, 0
        for part in layout.parts:
            if isinstance(part, int):
                starts[part] = at
            at += len(part if isinstance(part, str) else self.said[part])
        learned, rewritten = [], 0
        for i, m in enumerate(self.messages):
            if m.role != ANSWER or not m.learn:
                continue
            if exact:
                first, last = starts[i] - len(layout.leads[i]), starts[i] + len(self.said[i])
                same = layout.leads[i] == layout.last_leads[i]
            else:
                first, last = self.place(text, range(len(self.messages)), i)
                alone = self._when_last(i)
                same = alone is None or alone.strip() == text[first:last].strip()
                if alone is not None and same and text.endswith(alone, 0, last):
                    first = last - len(alone)  # with the blanks after its prompt
            if last <= first or not text[first:last].strip():
                raise DataError(
                    f"{self.where}: the chat template removes all of the answer in message {i} ({_short(self.said[i])}), so only the end token "
                    "would be trained on. Remove such conversations"
                )
            if same:
                learned.append((first, last + self._end(text[last:], i, ends)))
            rewritten += not same
        return learned, rewritten

    def _end(self, markup: str, i: int, ends: Sequence[str]) -> int:
        """Return the length of the token that ends answer `i`, with blanks before it, within the markup after it."""
        blanks = len(markup) - len(markup.lstrip())
        found = max((s for s in ends if markup.startswith(s, blanks)), key=len, default=None)
        if found is None:
            raise DataError(
                f"{self.where}: after the answer in message {i} the chat template writes {_short(markup[:20])}, which does not begin with a token of "
                "this tokenizer, so the model would not learn to stop. Write {{ eos_token }} after an answer, or use the model that the "
                "template belongs to"
            )
        return blanks + len(found)

    def _when_last(self, i: int) -> str | None:
        """Return the text for answer `i` if the conversation ended with it; None if the template does not allow that, or if it does end there."""
        if i == len(self.messages) - 1:
            return None
        try:
            shorter = self.render(range(i + 1))
            first, last = self.place(shorter, range(i + 1), i)
        except DataError:
            return None
        return shorter[first:last]

    def place(self, text: str, numbers: Sequence[int], i: int) -> tuple[int, int]:
        """Return (first character, end) of the text for answer `i`."""
        mark = _mark(len(self.messages))
        before, found, after = self.render(numbers, instead={i: mark}).partition(mark)
        if not found or mark in after:
            raise DataError(
                f"{self.where}: the chat template drops or repeats the content of message {i} ({ANSWER}). Correct data.chat.jinja"
            )
        start = self._after_prompt(text, i, len(before)) if text.startswith(before) else self._after_prompt(text, i, None)
        first = start if start is not None else len(before) if text.startswith(before) else None
        if first is None or not text.endswith(after):
            raise DataError(
                f"{self.where}: the chat template writes the rest of the conversation differently depending on the content of message {i} ({ANSWER}), so "
                "the answer cannot be located. Mark it in the template: {% generation %} ... {% endgeneration %}"
            )
        return first, len(text) - len(after)

    def lead(self, text: str, i: int) -> str | None:
        """Return the text between the prompt for answer `i` and its content (a placeholder) in `text`; None if there is no such prompt."""
        content = text.index(self.said[i])
        start = self._after_prompt(text, i, content)
        return None if start is None else text[start:content]

    def _after_prompt(self, text: str, i: int, content: int | None) -> int | None:
        """Return where the prompt for answer `i` ends in `text`; None if there is no such prompt. `content`: where the answer's content begins.

        The prompt is what `add_generation_prompt` adds; if it adds nothing, the conversation so far, if only blanks are before the content.
        """
        if not i:
            return None
        try:
            prompt, plain = (self.render(range(i), prompt=p) for p in (True, False))
        except DataError:
            return None
        if prompt != plain and prompt.startswith(plain):
            return len(prompt) if text.startswith(prompt) and (content is None or len(prompt) <= content) else None
        blank = content is not None and text.startswith(plain) and len(plain) <= content and not text[len(plain) : content].strip()
        return len(plain) if blank else None


def joined_inputs(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with each input merged into the message before it."""
    out: list[Message] = []
    for m in messages:
        if m.role == "input" and out:
            out[-1] = Message(out[-1].role, f"{out[-1].content}\n\n{m.content}", out[-1].learn)
        else:
            out.append(m)
    return out


def _of_answers(spans: Sequence[tuple[int, int]], messages: Sequence[Message], where: str) -> list[tuple[int, int]]:
    """Return the ranges that `{% generation %}` encloses, without answers of weight 0."""
    answers = [m for m in messages if m.role == ANSWER]
    if not spans:
        raise DataError(
            f"{where}: {{% generation %}} of the chat template encloses nothing, so there is nothing to train on. Correct data.chat.jinja"
        )
    if all(m.learn for m in answers):
        return list(spans)
    if len(spans) != len(answers):
        raise DataError(
            f"{where}: some answers have weight 0, and the chat template's {{% generation %}} encloses {len(spans)} parts for {len(answers)} answers. "
            "Remove such conversations"
        )
    return [span for span, m in zip(spans, answers, strict=True) if m.learn]


# ---------------------------------------------------------------------------------------------- marks


def _mark(i: int) -> str:
    return f"\ue000{i}\ue001"


_MARKED = re.compile("\ue000(\\d+)\ue001")


def _shield(said: Sequence[str], special: Sequence[str], where: str) -> tuple[list[str], dict[str, str]]:
    """Replace characters that look like a special token with private-use characters; return the text and the mapping. Lengths do not change."""
    found = sorted({s for s in special if s and any(s in text for text in said)}, key=lambda s: (-len(s), s))
    if not found:
        return list(said), {}
    used = {c for text in said for c in text if ord(c) >= 0xF0000}
    free = (chr(c) for c in range(0xF0000, 0xFFFFE) if chr(c) not in used)
    stand_for = {next(free) * len(s): s for s in found}
    out = []
    for text in said:
        for stand_in, s in stand_for.items():
            text = text.replace(s, stand_in)
        out.append(text)
    return out, stand_for


def _unshield(text: str, stand_for: Mapping[str, str]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text with the original characters restored."""
    if not stand_for:
        return text, []
    pattern = re.compile("|".join(map(re.escape, stand_for)))
    plain = [found.span() for found in pattern.finditer(text)]
    return pattern.sub(lambda found: stand_for[found.group()], text), plain


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else shown[:57] + "..."
