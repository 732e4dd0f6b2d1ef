"""Conversations -> packed rows of tokens whose loss covers the answers, and nothing else.

Each conversation is what its chat template writes (`chat_encoder.py`); whole conversations are packed into rows of one length, a segment each.
One that is longer loses the beginning of what stands before its last answer; an answer that is too long by itself loses its end.

Shape legend: B batch, T time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.config import dump
from tauon.data.chat_encoder import RENDERS, Encoder, template_for
from tauon.data.chat_template import ANSWER
from tauon.data.config import DataConfig
from tauon.data.files import canonical
from tauon.data.own_tokenizer import SEQ_LEN_DEFAULT, digest_of, tokenizer_for
from tauon.data.preparation import DataSplits
from tauon.data.progress import report
from tauon.data.sources.base import Conversation, Message, SourceConfig
from tauon.data.split import PARTS, Part, split_rows
from tauon.data.text_files import refuse_surrogates
from tauon.errors import DataError
from tauon.types import Batch, DataSpec

__all__ = ["ChatDataset", "count_ignored", "prepare_chat"]

_VERSION = 1


def prepare_chat(config: DataConfig, sources: dict[Part, SourceConfig], seed: int) -> DataSplits:
    """Read, split by conversation, write with the template, pack."""
    held = {part: _read(source, part, config.chat.empty_answers) for part, source in sources.items()}
    main, _ = held["train"]
    rows, split_facts = split_rows(np.zeros(len(main)), config.split, [p for p in PARTS if p not in sources])
    chosen: dict[Part, list[Conversation]] = {}
    for part in PARTS:
        if part in rows:
            chosen[part] = [main[i] for i in rows[part]]
        elif part in held:
            chosen[part] = held[part][0]
    tokenizer, made = tokenizer_for(config, [m.content for c in chosen["train"] for m in c.messages])
    template = template_for(config.chat)
    encoder = Encoder(template, tokenizer)
    seq_len, why = (config.seq_len, "as set") if config.seq_len is not None else (SEQ_LEN_DEFAULT, "default")
    spec = DataSpec(vocab=tokenizer.vocab_size, seq_len=seq_len)
    parts = {part: ChatDataset(found, encoder, spec, name=part) for part, found in chosen.items()}
    content = [
        [c.place.rpartition(", ")[2], [(m.role, m.content) if m.learn else (m.role, m.content, 0) for m in c.messages]]
        for found in chosen.values()
        for c in found
    ]
    made_of = hashlib.sha256(canonical([_VERSION, content, {p: len(c) for p, c in chosen.items()}]).encode()).hexdigest()
    written = digest_of([str(d.facts["sha256"]) for d in parts.values()])
    facts = {
        "kind": "chat", "sources": {p: s.describe() for p, s in sources.items()}, "tokenizer": made, "template": template.name,
        "end_token": encoder.end, "left_out_empty": {p: n for p, (_, n) in held.items()}, "split": split_facts,
        "ignored_keys": {p: count_ignored(found) for p, (found, _) in held.items()},
        "seq_len": {"value": seq_len, "why": why}, "parts": {p: d.facts for p, d in parts.items()}, "content": made_of,
    }  # fmt: skip
    facts["notes"] = _notes(facts)
    preprocess = {
        "kind": "chat", "tokenizer": tokenizer.to_json(), "seq_len": seq_len, "end": encoder.end,
        "chat": dump(config.chat), "renders": RENDERS,
    }  # fmt: skip
    return DataSplits(
        parts["train"], parts.get("validation"), parts.get("test"), spec, facts,
        hashlib.sha256(canonical([made_of, written, tokenizer.sha256, seq_len, seed]).encode()).hexdigest(), tokenizer, preprocess,
    )  # fmt: skip


def _read(source: SourceConfig, part: str, empty: str) -> tuple[list[Conversation], int]:
    """(conversations with answers, how many were left out)."""
    report(f"read {part}", 0)
    found = source.conversations()
    if source.limit is not None:
        found = found[: source.limit]
    kept = []
    for c in found:
        for m in c.messages:
            refuse_surrogates(m.content, c.place)
        blank = next((i for i, m in enumerate(c.messages) if m.role == ANSWER and m.learn and not m.content.strip()), None)
        if blank is None:
            kept.append(c)
        elif empty == "refuse":
            n = sum(any(m.role == ANSWER and m.learn and not m.content.strip() for m in c.messages) for c in found)
            what = "the last answer" if blank == len(c.messages) - 1 else f"the answer in message {blank}"
            raise DataError(
                f"{c.place}: {what} is empty ({n} such conversations), and the model would learn to say nothing. Fill it in, give it weight 0, or set "
                "data.chat.empty_answers: drop"
            )
    if not kept:
        raise DataError(f"the {part} source has no conversation with an answer. Check its path and its limit")
    return kept, len(found) - len(kept)


def count_ignored(rows: Sequence[Any]) -> dict[str, int]:
    """How often each key of the rows was not read."""
    return dict(Counter(k for row in rows for k in row.ignored).most_common())


def _notes(facts: dict[str, Any]) -> list[str]:
    """What was left out, in words."""
    notes = [f"{n:,} conversations of the {p} source with an empty answer are left out" for p, n in facts["left_out_empty"].items() if n]
    keys = sorted({k for found in facts["ignored_keys"].values() for k in found})
    notes += [f"keys of the rows that are not read: {', '.join(keys)}"] if keys else []
    for part, d in facts["parts"].items():
        if d["answers_rewritten"]:
            notes.append(
                f"{d['answers_rewritten']:,} answers of the {part} part are context only: the chat template writes them otherwise when others follow"
            )
    return notes


class ChatDataset:
    """Packed rows of conversations. Example `i` is the same in every epoch: a pure function of the data; threads may share it."""

    def __init__(self, conversations: Sequence[Conversation], encoder: Encoder, spec: DataSpec, *, name: str = "data") -> None:
        assert spec.seq_len is not None
        self.spec, self.tokenizer, self._encoder = spec, encoder.tokenizer, encoder
        self._conversations = conversations
        self._encoded = [encoder.fitted(c.messages, c.place, spec.seq_len + 1) for c in conversations]
        self._rows = packed([len(e.ids) - 1 for e in self._encoded], spec.seq_len)
        covered = sum(int(e.covered.sum()) for e in self._encoded)
        tokens = sum(len(e.ids) - 1 for e in self._encoded)
        if not covered:
            raise DataError(f"the {name} part has no answer within data.seq_len {spec.seq_len}. Give more tokens to an example")
        digest = hashlib.sha256()
        for e in self._encoded:
            digest.update(e.ids.tobytes() + e.covered.tobytes())
        self.facts: dict[str, Any] = {
            "conversations": len(conversations), "rows": len(self._rows), "tokens": tokens, "answer_tokens": covered,
            "padding": round(1 - tokens / (len(self._rows) * spec.seq_len), 4), "prompts_cut": sum(e.cut > 0 for e in self._encoded),
            "answers_cut": sum(e.cut_answer > 0 for e in self._encoded), "answer_tokens_cut": sum(e.cut_answer for e in self._encoded),
            "answers_rewritten": sum(e.rewritten for e in self._encoded), "sha256": digest.hexdigest(),
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def token_bytes(self) -> NDArray[np.int64]:
        """(V) bytes of text that each token stands for."""
        return self.tokenizer.token_bytes

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """The rows `index`: inputs, targets BT int64; weights BT, one where the target is an answer's; segments BT, -1 for padding."""
        import torch

        index = np.asarray(index, np.int64)
        shape = (len(index), self.spec.seq_len or 0)
        inputs = np.full(shape, self.tokenizer.bos, np.int64)
        targets, weights, segments = inputs.copy(), np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
        for row, i in enumerate(index.tolist()):
            at = 0
            for number, which in enumerate(self._rows[i]):
                e = self._encoded[which]
                to = at + len(e.ids) - 1
                inputs[row, at:to], targets[row, at:to] = e.ids[:-1], e.ids[1:]
                weights[row, at:to], segments[row, at:to] = e.covered[1:], number
                at = to
        return Batch(*(torch.from_numpy(a) for a in (inputs, targets, weights, segments, index.copy())))

    def answers(self, row: int) -> list[list[str]] | None:
        """What the loss of a row must cover, as text: the answers of each conversation in it; None where one of them may be cut."""
        found = [list(self._encoded[i].answers) for i in self._rows[row]]
        cut = (e.cut_answer or (e.cut and len(f) > 1) for e, f in zip((self._encoded[i] for i in self._rows[row]), found, strict=True))
        return None if any(cut) else found

    def prompts(self, n: int) -> list[tuple[Message, ...]]:
        """What stands before the last answer of the first n conversations."""
        found = []
        for c in self._conversations[:n]:
            last = max(i for i, m in enumerate(c.messages) if m.role == ANSWER)
            found.append(c.messages[:last])
        return found


def packed(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which items lie in each row of `size`, none of them divided: best fit, the longest first (at most 11/9 of the fewest rows)."""
    rows: list[list[int]] = []
    room: dict[int, list[int]] = {}  # free places -> rows that have as many
    free: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        best = next((r for r in range(lengths[i], size + 1) if room.get(r)), None)
        if best is None:
            rows.append([i])
            free.append(size - lengths[i])
            room.setdefault(free[-1], []).append(len(rows) - 1)
            continue
        row = room[best].pop(0)
        rows[row].append(i)
        free[row] = best - lengths[i]
        room.setdefault(free[row], []).append(row)
    return rows
