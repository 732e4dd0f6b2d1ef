"""Messages to tokens, with a chat template and a tokenizer.

A template of plain data is [BOS] and pieces, each tokenised by itself: message content cannot merge with markup. A Hugging Face template
is rendered and tokenised as a whole, like transformers does, without adding BOS; message content that looks like a special token stays
plain text.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.config import parse
from tauon.data.chat_jinja import JinjaTemplate, Written
from tauon.data.chat_template import ANSWER, BEGIN, END, PRESETS, ChatConfig, Piece, PlainTemplate, Preset, is_marker
from tauon.data.sources.base import Message
from tauon.data.tokenizer import SubwordTokenizer, Tokenizer
from tauon.errors import DataError

__all__ = ["RENDERS", "Encoded", "Encoder", "PromptEncoder", "chat_prompt", "template_for"]

RENDERS = 2
"""Version of how Hugging Face templates are rendered, saved with a checkpoint. 1: piece by piece, BOS first."""
ENDS = ("<|eot_id|>", "<|im_end|>", "</s>", "<|endoftext|>", "<eos>", "<|end_of_text|>")
"""Usual names of the token that ends an answer; used if the tokenizer has one, otherwise its own end token."""
_STAND_INS = {"bos_token": "\U0010f000", "eos_token": "\U0010f001"}
"""Placeholder text for tokens of a tokenizer whose tokens have no text."""


def template_for(config: ChatConfig) -> PlainTemplate | JinjaTemplate:
    """Return the template of a recipe's `data.chat`."""
    jinja, roles = config.jinja, config.roles
    if jinja is not None:
        return JinjaTemplate(jinja, None if config.date is None else datetime.date.fromisoformat(config.date))
    if roles:
        for role in roles.values():
            _: Any = (role.before, role.after)  # read the settings even if the data does not have the role
        return PlainTemplate("data.chat.roles", Preset(roles))
    return PlainTemplate(config.template, PRESETS[config.template])


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens, at most a row long."""

    ids: NDArray[np.uint32]
    """(n)."""
    covered: NDArray[np.bool_]
    """Which of them belong to an answer, (n)."""
    cut: int = 0
    """Number of tokens cut before the last answer."""
    cut_answer: int = 0
    """Number of tokens cut at its end."""
    answers: tuple[str, ...] = ()
    """The trained part as text."""
    rewritten: int = 0
    """Answers without loss, because the template writes them differently than when they are last."""


class Encoder:
    """Converts messages to tokens, with one template and one tokenizer."""

    def __init__(self, template: PlainTemplate | JinjaTemplate, tokenizer: Tokenizer) -> None:
        self.template, self.tokenizer = template, tokenizer
        if isinstance(tokenizer, SubwordTokenizer):
            self._tokens, own = dict(tokenizer.named), tokenizer.added()
            self._special = [*tokenizer.added(special=True)]
        else:
            self._tokens, own = _STAND_INS, dict.fromkeys(_STAND_INS.values(), tokenizer.eos)
            self._special = [*own]
        self._ends = {text: i for text, i in own.items() if text.strip()}
        ends = (self._id(name) for name in ENDS)
        self.end = next((i for i in ends if i is not None), tokenizer.eos)
        """Id of the token that ends an answer."""
        if isinstance(template, JinjaTemplate):
            self.end = self._end_of(template)

    def _end_of(self, template: JinjaTemplate) -> int:
        """Return the token that a template writes after an answer, by default the tokenizer's own end token."""
        try:
            messages = [Message("user", "a"), Message(ANSWER, "b")]
            ids, covered, _ = self._whole(template.write(messages, "the chat template", self._tokens, self._special, [*self._ends]))
        except DataError:
            return self.tokenizer.eos
        own = {*self._ends.values()}
        behind = ids[int(np.flatnonzero(covered)[-1]) :].tolist() if covered.any() else []
        return next((i for i in behind if i in own), self.tokenizer.eos)

    def _id(self, name: str) -> int | None:
        return self.tokenizer.id_of(name) if isinstance(self.tokenizer, SubwordTokenizer) else None

    def encode(self, messages: Sequence[Message], where: str) -> Encoded:
        """Encode a whole conversation. `DataError` if the template does not write all of it."""
        if isinstance(self.template, JinjaTemplate):
            written = self.template.write(messages, where, self._tokens, self._special, [*self._ends])
            ids, covered, answers = self._whole(written)
            return Encoded(ids, covered, answers=answers, rewritten=written.rewritten)
        ids, covered = self.tokens(self.template.pieces(messages, where))
        return Encoded(ids, covered, answers=tuple(m.content for m in messages if m.role == ANSWER and m.learn))

    def prompt(self, messages: Sequence[Message], where: str) -> NDArray[np.uint32]:
        """Encode the text before the next answer."""
        if isinstance(self.template, JinjaTemplate):
            return self._whole(self.template.prompt(messages, where, self._tokens, self._special))[0]
        return self.tokens(self.template.prompt(messages, where))[0]

    def fitted(self, messages: Sequence[Message], where: str, most: int) -> Encoded:
        """Return at most `most` tokens of a conversation."""
        whole = self.encode(messages, where)
        over = len(whole.ids) - most
        if over <= 0:
            return whole
        ids, covered = whole.ids, whole.covered
        edges = np.flatnonzero(covered[1:] & ~covered[:-1]) + 1
        last = int(edges[-1]) if len(edges) else len(ids)
        kept = int(ids[0] == self.tokenizer.bos)
        cut = min(over, last - 1 - kept)  # keep BOS and the token before the answer
        ids, covered = np.delete(ids, slice(kept, kept + cut)), np.delete(covered, slice(kept, kept + cut))
        return Encoded(ids[:most], covered[:most], cut, over - cut, whole.answers, whole.rewritten)

    # ------------------------------------------------------------------------------------------ plain data

    def _marker(self, text: str) -> int:
        if text in (END, BEGIN):
            return self.end if text == END else self.tokenizer.bos
        found = self._id(text)
        if found is None:
            raise DataError(
                f"the chat template {self.template.name} writes {text!r}, which is not a token of this tokenizer "
                f"({self.tokenizer.vocab_size:,} ids): the model would read it letter by letter. Set data.chat.template: alpaca, which has no "
                "markers, or use the model that the template belongs to"
            )
        return found

    def tokens(self, pieces: Sequence[Piece]) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Return (ids n, covered n) of pieces, BOS first."""
        ids: list[int] = [self.tokenizer.bos]
        covered = [False]
        for piece in pieces:
            for text in piece.markers if piece.message is None else [piece.text]:
                if piece.message is None and is_marker(text):
                    if text == BEGIN and len(ids) == 1:
                        continue  # already written
                    new = [self._marker(text)]
                else:
                    new = self.tokenizer.encode(text).tolist()
                ids += new
                covered += [piece.covered] * len(new)
        return np.array(ids, np.uint32), np.array(covered)

    # ------------------------------------------------------------------------------------------ rendered texts

    def _whole(self, written: Written) -> tuple[NDArray[np.uint32], NDArray[np.bool_], tuple[str, ...]]:
        """Return (ids n, covered n, trained text) of a rendered conversation: a token is covered if it has a covered character."""
        ids, at = self._read(written)
        learned = np.zeros(len(written.text) + 1, bool)
        for first, last in written.learned:
            learned[first:last] = True
        before = np.concatenate(([0], np.cumsum(learned)))
        covered = before[at[:, 1]] > before[at[:, 0]]
        answers = tuple(self._said(written.text[first:last]) for first, last in written.learned)
        return ids, covered, answers

    def _said(self, text: str) -> str:
        """Return part of a rendered text without the token that ends it."""
        end = next((s for s in sorted(self._ends, key=len, reverse=True) if text.endswith(s)), "")
        return text.removesuffix(end)

    def _read(self, written: Written) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return (ids n, first and last character n2)."""
        ids: list[int] = []
        at: list[tuple[int, int]] = []
        start = 0
        for first, last in [*written.plain, (len(written.text), len(written.text))]:
            for a, b, as_text in ((start, first, False), (first, last, True)):
                if a < b:
                    found, spans = self._segment(written.text[a:b], as_text, goes_on=a > 0)
                    ids += found
                    at += [(a + i, a + j) for i, j in spans]
            start = last
        return np.array(ids, np.uint32), np.array(at, np.int64).reshape(-1, 2)

    def _segment(self, text: str, as_text: bool, goes_on: bool) -> tuple[list[int], list[tuple[int, int]]]:
        if isinstance(self.tokenizer, SubwordTokenizer):
            return self.tokenizer.encode_rendered(text, as_text=as_text, goes_on=goes_on)
        ids: list[int] = []
        at: list[tuple[int, int]] = []
        own = {} if as_text else {_STAND_INS["bos_token"]: self.tokenizer.bos, _STAND_INS["eos_token"]: self.tokenizer.eos}
        for i, character in enumerate(text):  # a character or its bytes: tokens never merge
            new = [own[character]] if character in own else self.tokenizer.encode(character).tolist()
            ids += new
            at += [(i, i + 1)] * len(new)
        return ids, at


class PromptEncoder:
    """Turns conversations into the tokens before their answer, as the model was trained; opened once for many prompts."""

    def __init__(self, preprocess: Mapping[str, Any]) -> None:
        config = parse(ChatConfig, preprocess["chat"])
        self.encoder = Encoder(template_for(config), Tokenizer.from_json(preprocess["tokenizer"]))
        self.adds_bos = config.jinja is not None and preprocess.get("renders", 1) < RENDERS
        """Whether an earlier version trained the model, which always added BOS."""
        self.end = int(preprocess.get("end", self.encoder.end))
        """Token that ends an answer."""

    def __call__(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens before the answer."""
        ids: list[int] = self.encoder.prompt(messages, "the conversation").tolist()
        bos = self.encoder.tokenizer.bos
        return [bos, *ids] if self.adds_bos and ids[:1] != [bos] else ids


def chat_prompt(preprocess: Mapping[str, Any], messages: Sequence[Message]) -> tuple[list[int], int]:
    """Return (tokens before the answer to `messages`, token that ends it), for a checkpoint's `preprocess`."""
    encode = PromptEncoder(preprocess)
    return encode(messages), encode.end
