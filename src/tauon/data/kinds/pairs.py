"""Preferences -> pairs of rows: the preferred answer and the rejected one (`PairDataset`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from tauon.config import register
from tauon.data.chat_encoder import Encoder
from tauon.data.files import canonical
from tauon.data.kinds.dialogue import DialogueKind
from tauon.data.pairs import PairDataset
from tauon.data.sources.base import Pair, SourceConfig
from tauon.data.split import Part
from tauon.data.text_files import refuse_surrogates
from tauon.errors import DataError
from tauon.types import Dataset, DataSpec

__all__ = ["PairsKind"]

_VERSION = 1


@register("pairs")
class PairsKind(DialogueKind[Pair]):
    """Preferences between two answers."""

    input_kind, output_kind, words = "pairs", "pairs", "preferences"

    def rows_of(self, source: SourceConfig) -> list[Pair]:
        return source.pairs()

    def with_answer(self, rows: Sequence[Pair], empty: str) -> list[Pair]:
        for p in rows:
            for text in (p.chosen, p.rejected, *(m.content for m in p.prompt)):
                refuse_surrogates(text, p.place)
        kept = [p for p in rows if p.chosen.strip() and p.rejected.strip()]
        if len(kept) < len(rows) and empty == "refuse":
            place = next(p.place for p in rows if not (p.chosen.strip() and p.rejected.strip()))
            raise DataError(
                f"{place}: an answer is empty ({len(rows) - len(kept)} such pairs). Fill it in, or set data.chat.empty_answers: drop"
            )
        return kept

    def texts(self, row: Pair) -> list[str]:
        return [*(m.content for m in row.prompt), row.chosen, row.rejected]

    def dataset(self, rows: Sequence[Pair], encoder: Encoder, spec: DataSpec, part: Part) -> Dataset:
        return PairDataset(rows, encoder, spec, name=part)

    def identity(self, rows: Mapping[Part, Sequence[Pair]], datasets: Mapping[Part, Dataset]) -> tuple[str, list[Any]]:
        written = {p: d.facts["sha256"] for p, d in datasets.items()}
        return hashlib.sha256(canonical([_VERSION, written]).encode()).hexdigest(), []

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        notes = [f"{n:,} pairs of the {p} source are left out, because an answer is empty" for p, n in facts["left_out_empty"].items() if n]
        for part, d in facts["parts"].items():
            cut = [(d["prompts_cut"], "pairs", "the beginning of their prompt"), (d["answers_cut"], "answers", "their end")]
            notes += [f"{n:,} {what} of the {part} part lost {lost}: they are longer than data.seq_len" for n, what, lost in cut if n]
        return notes
