"""Conversations as training examples: packed rows of tokens with a loss on the answers only.

Each conversation is written by its chat template (`chat_encoder.py`); whole conversations are packed into rows of one length, a segment each.
A conversation that is too long loses the start of the text before its last answer; an answer that is too long by itself loses its end.

Shape legend: B batch, T time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.data.chat_encoder import Encoded, Encoder
from tauon.data.chat_template import ANSWER
from tauon.data.progress import report
from tauon.data.sources.base import Conversation, Message
from tauon.errors import DataError
from tauon.types import Batch, DataSpec

__all__ = ["ChatDataset", "lengths_to_keep", "packed"]

_REPORT_EVERY = 1000
"""Conversations between two progress reports."""


class ChatDataset:
    """Packed rows of conversations. Example `i` is the same in every epoch: a pure function of the data; safe to share between threads."""

    def __init__(self, conversations: Sequence[Conversation], encoder: Encoder, spec: DataSpec, *, name: str = "data") -> None:
        assert spec.seq_len is not None
        self.spec, self.tokenizer, self._encoder = spec, encoder.tokenizer, encoder
        self._conversations = conversations
        self._encoded: list[Encoded] = []
        for c in conversations:
            self._encoded.append(encoder.fitted(c.messages, c.place, spec.seq_len + 1))
            if len(self._encoded) % _REPORT_EVERY == 0:
                report(f"{name}: conversations to tokens", len(self._encoded), len(conversations))
        self._rows = packed([len(e.ids) - 1 for e in self._encoded], spec.seq_len)
        covered = sum(int(e.covered.sum()) for e in self._encoded)
        tokens = sum(len(e.ids) - 1 for e in self._encoded)
        if not covered:
            raise DataError(f"the {name} part has no answer within data.seq_len {spec.seq_len}. Raise data.seq_len")
        digest = hashlib.sha256()
        for e in self._encoded:
            digest.update(e.ids.tobytes() + e.covered.tobytes())
        self.facts: dict[str, Any] = {
            "conversations": len(conversations), "rows": len(self._rows), "tokens": tokens, "answer_tokens": covered,
            "padding": round(1 - tokens / (len(self._rows) * spec.seq_len), 4), "prompts_cut": sum(e.cut > 0 for e in self._encoded),
            "answers_cut": sum(e.cut_answer > 0 for e in self._encoded), "answer_tokens_cut": sum(e.cut_answer for e in self._encoded),
            "answers_rewritten": sum(e.rewritten for e in self._encoded), "lengths_to_keep": lengths_to_keep(self._encoded), "sha256": digest.hexdigest(),
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def token_bytes(self) -> NDArray[np.int64]:
        """(V) bytes of text that each token stands for."""
        return self.tokenizer.token_bytes

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Return the rows `index`: inputs, targets BT int64; weights BT, one if the target belongs to an answer; segments BT, -1 for padding."""
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
        """Return the text that the loss of a row must cover: the answers of each conversation in it; None if one of them may be cut."""
        found = [list(self._encoded[i].answers) for i in self._rows[row]]
        cut = (e.cut_answer or (e.cut and len(f) > 1) for e, f in zip((self._encoded[i] for i in self._rows[row]), found, strict=True))
        return None if any(cut) else found

    def prompts(self, n: int) -> list[tuple[Message, ...]]:
        """Return the text before the last answer of the first n conversations."""
        found = []
        for c in self._conversations[:n]:
            last = max(i for i, m in enumerate(c.messages) if m.role == ANSWER)
            found.append(c.messages[:last])
        return found


def lengths_to_keep(encoded: Sequence[Encoded]) -> dict[str, int]:
    """Return the row lengths that keep all of the conversations, and 95% of them."""
    whole = np.array([len(e.ids) - 1 + e.cut + e.cut_answer for e in encoded])
    return {"all": int(whole.max()), "95%": int(np.ceil(np.quantile(whole, 0.95)))}


def packed(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Pack items into rows of `size` without dividing any: best fit decreasing (at most 11/9 of the fewest rows)."""
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
