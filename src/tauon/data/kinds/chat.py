"""Conversations -> packed rows of tokens with a loss on the answers only (`ChatDataset`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from tauon.config import register
from tauon.data.chat import ChatDataset
from tauon.data.chat_encoder import Encoder
from tauon.data.chat_template import ANSWER
from tauon.data.files import canonical
from tauon.data.kinds.dialogue import DialogueKind
from tauon.data.own_tokenizer import digest_of
from tauon.data.sources.base import Conversation, Message, SourceConfig
from tauon.data.split import Part
from tauon.data.text_files import refuse_surrogates
from tauon.errors import DataError
from tauon.types import Dataset, DataSpec

__all__ = ["ChatKind"]

_VERSION = 1


@register("chat")
class ChatKind(DialogueKind[Conversation]):
    """Conversations."""

    input_kind, output_kind, words = "chat", "chat", "conversations"

    def rows_of(self, source: SourceConfig) -> list[Conversation]:
        return source.conversations()

    def with_answer(self, rows: Sequence[Conversation], empty: str) -> list[Conversation]:
        kept = []
        for c in rows:
            for m in c.messages:
                refuse_surrogates(m.content, c.place)
            blank = next((i for i, m in enumerate(c.messages) if _is_blank(m)), None)
            if blank is None:
                kept.append(c)
            elif empty == "refuse":
                n = sum(any(map(_is_blank, c.messages)) for c in rows)
                which = "the last answer" if blank == len(c.messages) - 1 else f"the answer in message {blank}"
                raise DataError(
                    f"{c.place}: {which} is empty ({n} such conversations); empty answers would be trained on. Fill it in, give it weight 0, "
                    "or set data.chat.empty_answers: drop"
                )
        return kept

    def texts(self, row: Conversation) -> list[str]:
        return [m.content for m in row.messages]

    def dataset(self, rows: Sequence[Conversation], encoder: Encoder, spec: DataSpec, part: Part) -> Dataset:
        return ChatDataset(rows, encoder, spec, name=part)

    def identity(self, rows: Mapping[Part, Sequence[Conversation]], datasets: Mapping[Part, Dataset]) -> tuple[str, list[Any]]:
        content = [
            [c.place.rpartition(", ")[2], [(m.role, m.content) if m.learn else (m.role, m.content, 0) for m in c.messages]]
            for mine in rows.values()
            for c in mine
        ]
        made_of = hashlib.sha256(canonical([_VERSION, content, {p: len(mine) for p, mine in rows.items()}]).encode()).hexdigest()
        return made_of, [digest_of([str(d.facts["sha256"]) for d in datasets.values()])]

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        notes = [
            f"{n:,} conversations of the {p} source are left out, because an answer is empty"
            for p, n in facts["left_out_empty"].items()
            if n
        ]
        for part, d in facts["parts"].items():
            cut = [
                (d["prompts_cut"], "lost the beginning of the text before the last answer"),
                (d["answers_cut"], "lost the end of an answer"),
            ]
            notes += [f"{n:,} conversations of the {part} part {what}: they are longer than data.seq_len" for n, what in cut if n]
            if d["answers_rewritten"]:
                notes.append(
                    f"{d['answers_rewritten']:,} answers of the {part} part are context only (no loss): the chat template writes them differently when others "
                    "follow"
                )
        return notes


def _is_blank(message: Message) -> bool:
    """Return whether this is an empty answer that the loss would cover."""
    return message.role == ANSWER and message.learn and not message.content.strip()
