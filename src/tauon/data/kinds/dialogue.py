"""Shared by conversations and preferences: rows of messages that a chat template writes, split at random, with a tokenizer trained on the
training rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tauon.config import dump
from tauon.data.chat_encoder import RENDERS, Encoder, template_for
from tauon.data.config import DataConfig
from tauon.data.kinds.base import DataKind, Fitted, Parts, Request, own_data
from tauon.data.kinds.steps import refuse_split_by_document
from tauon.data.own_tokenizer import SEQ_LEN_DEFAULT, tokenizer_for
from tauon.data.progress import report
from tauon.data.sources.base import Conversation, Pair, SourceConfig
from tauon.data.split import Part
from tauon.errors import DataError
from tauon.types import Dataset, DataSpec

__all__ = ["DialogueKind", "Dialogues"]

R = TypeVar("R", bound=Conversation | Pair)


@dataclass(frozen=True)
class Dialogues(Generic[R]):
    """The rows of one source."""

    rows: Sequence[R]
    """Rows whose answers are not empty."""
    left_out: int
    """Number of rows with an empty answer."""


class DialogueKind(DataKind[Dialogues[R]], Generic[R]):
    """Base class of rows of messages. A subclass defines what its rows are, and which data set they become."""

    reads = ("tokenizer", "seq_len", "chat", "decontaminate")

    @classmethod
    def problems(cls, config: DataConfig) -> Iterator[tuple[str, str]]:
        yield from refuse_split_by_document(config, cls.words)

    def rows_of(self, source: SourceConfig) -> list[R]:
        """Yield every row of a source."""
        raise NotImplementedError

    def with_answer(self, rows: Sequence[R], empty: str) -> list[R]:
        """Return the rows whose answers are not empty. `empty`: refuse (an empty one is a `DataError`) or drop."""
        raise NotImplementedError

    def texts(self, row: R) -> list[str]:
        """Return all texts of a row that the tokenizer is trained on."""
        raise NotImplementedError

    def dataset(self, rows: Sequence[R], encoder: Encoder, spec: DataSpec, part: Part) -> Dataset:
        """Return the rows as a data set."""
        raise NotImplementedError

    def identity(self, rows: Mapping[Part, Sequence[R]], datasets: Mapping[Part, Dataset]) -> tuple[str, list[Any]]:
        """Return (`Fitted.content`, what the written rows add to `Fitted.decides`)."""
        raise NotImplementedError

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return notes on what was left out and what was cut."""
        raise NotImplementedError

    def warnings(self, datasets: Mapping[Part, Dataset], seq_len: int) -> list[str]:
        """Return a warning if training rows lost their beginning, with the lengths that would keep them."""
        facts = datasets["train"].facts
        cut, rows = facts["prompts_cut"], facts.get("conversations", facts.get("pairs", 0))
        if not cut:
            return []
        keep = facts["lengths_to_keep"]
        some = f", {keep['95%']:,} keeps 95% of them" if seq_len < keep["95%"] < keep["all"] else ""
        return [
            f"{cut:,} of {rows:,} {self.words} lose their beginning, because they are longer than data.seq_len {seq_len:,}. "
            f"data.seq_len: {keep['all']:,} keeps all{some}"
        ]

    def read(self, source: SourceConfig, part: Part, request: Request) -> Dialogues[R]:
        report(f"read {part}", 0)
        rows = self.rows_of(source)
        if source.limit is not None:
            rows = rows[: source.limit]
        kept = self.with_answer(rows, request.config.chat.empty_answers)
        if not kept:
            rows_name = "conversations with an answer" if self.output_kind == "chat" else "pairs"
            raise DataError(f"the {part} source has no {rows_name}. Check its path and its limit")
        return Dialogues(kept, len(rows) - len(kept))

    def compared(self, data: Dialogues[R], index: NDArray[np.int64]) -> list[str]:
        return ["\n".join(self.texts(data.rows[i])) for i in index]

    def strata(self, data: Dialogues[R]) -> NDArray[Any]:
        return np.zeros(len(data.rows))

    def groups(self, data: Dialogues[R]) -> NDArray[np.int64] | None:
        named = [row.group for row in data.rows]
        return np.unique(named, return_inverse=True)[1].astype(np.int64) if any(named) else None

    def fit(self, parts: Parts[Dialogues[R]], request: Request) -> Fitted:
        config, whole = request.config, own_data(parts, request)
        rows = {part: [mine.data.rows[i] for i in mine.index] for part, mine in parts.items()}
        tokenizer, made = tokenizer_for(config, [text for row in rows["train"] for text in self.texts(row)])
        template = template_for(config.chat)
        encoder = Encoder(template, tokenizer)
        seq_len, why = (config.seq_len, "as set") if config.seq_len is not None else (SEQ_LEN_DEFAULT, "default")
        spec = DataSpec(vocab=tokenizer.vocab_size, seq_len=seq_len)
        datasets = {part: self.dataset(mine, encoder, spec, part) for part, mine in rows.items()}
        content, written = self.identity(rows, datasets)
        facts: dict[str, Any] = {
            "tokenizer": made, "template": template.name, "end_token": encoder.end, "seq_len": {"value": seq_len, "why": why},
            "left_out_empty": {p: d.left_out for p, d in whole.items()},
            "ignored_keys": {p: _count_ignored(d.rows) for p, d in whole.items()}, "parts": {p: d.facts for p, d in datasets.items()},
        }  # fmt: skip
        keys = sorted({k for counts in facts["ignored_keys"].values() for k in counts})
        facts["notes"] = self.notes(facts) + ([f"keys of the rows that were not read: {', '.join(keys)}"] if keys else [])
        facts["warnings"] = self.warnings(datasets, seq_len)
        preprocess = {
            "kind": self.kind_, "tokenizer": tokenizer.to_json(), "seq_len": seq_len, "end": encoder.end,
            "chat": dump(config.chat), "renders": RENDERS,
        }  # fmt: skip
        return Fitted(datasets, content, [*written, tokenizer.sha256, seq_len, request.seed], preprocess, facts, tokenizer)


def _count_ignored(rows: Sequence[Any]) -> dict[str, int]:
    """Count how often each key of the rows was not read."""
    return dict(Counter(k for row in rows for k in row.ignored).most_common())
