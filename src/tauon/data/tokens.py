"""Tokens as training examples: windows of `seq_len` tokens over a stream of documents.

Shape legend: B batch, T time. A window predicts each next token: inputs are positions s..s+T-1 of the stream, targets s+1..s+T.
Training windows are contiguous, shifted by another random offset each epoch, so that a token is not always at the same
position. Held-out windows start at 0, and every token but the first BOS is predicted exactly once.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tauon.data.counter import bits, key
from tauon.data.shards import Shards
from tauon.data.tokenizer import Tokenizer
from tauon.errors import DataError
from tauon.types import Batch, DataSpec

__all__ = ["TokenDataset"]


class TokenDataset:
    """Windows over token shards. Example `i` of epoch `e` is a pure function of (seed, e, i); safe to share between threads."""

    def __init__(
        self,
        shards: Shards,
        tokenizer: Tokenizer,
        seq_len: int,
        *,
        seed: int = 0,
        training: bool = False,
        segments: bool = True,
        overlap: float = 0.0,
        name: str = "data",
    ) -> None:
        """`segments`: number the documents in each row, so that attention can stay inside them.

        `overlap`: held-out only; this share of a window's start repeats the window before as context, with weight 0.
        """
        if shards.vocab != tokenizer.vocab_size:
            raise DataError(
                f"{shards.folder}: made for {shards.vocab} tokens, but the tokenizer has {tokenizer.vocab_size}. Delete the folder to prepare it again"
            )
        self.shards, self.tokenizer, self.seq_len = shards, tokenizer, seq_len
        self._seed, self._training, self._segments = seed, training, segments
        self.spec = DataSpec(vocab=tokenizer.vocab_size, seq_len=seq_len)
        self._targets = len(shards) - 1  # every token but the first has one before it
        self._stride = seq_len if training else seq_len - int(seq_len * overlap)
        if training:
            if self._targets < seq_len:
                raise DataError(
                    f"the {name} part has {len(shards):,} tokens (BOS included), "
                    f"fewer than one sequence of seq_len={seq_len} and the token after it. Lower data.seq_len, or add text"
                )
            self._windows = max(1, (self._targets - seq_len + 1) // seq_len)  # as many as fit after the largest offset
            self._offsets = min(seq_len, self._targets - self._windows * seq_len + 1)
        else:
            self._windows = 1 + max(0, -(-(self._targets - seq_len) // self._stride))
        counts = shards.counts
        self.n_tokens, self.n_bytes, self.n_words = self._targets, counts["bytes"], counts["words"]
        self.n_documents, self.n_lines = counts["documents"], counts["lines"]
        self.facts: dict[str, Any] = {
            "documents": self.n_documents, "bytes": self.n_bytes, "words": self.n_words, "lines": self.n_lines,
            "tokens": counts["tokens"], "predicted_tokens": self._targets, "windows": self._windows, "seq_len": seq_len,
            "bytes_per_token": round(self.n_bytes / max(counts["tokens"], 1), 4),
        }  # fmt: skip

    def without_augmentation(self) -> Self:
        """Return the same text in contiguous windows from the start of the stream, the same in every epoch."""
        shown = copy.copy(self)
        shown._training = False
        return shown

    def __len__(self) -> int:
        return self._windows

    @property
    def token_bytes(self) -> NDArray[np.int64]:
        """(V) bytes of text that each token stands for, 0 for BOS: converts loss per token to bits per byte."""
        return self.tokenizer.token_bytes

    def offset(self, epoch: int) -> int:
        """Return the position of the first window of an epoch in the stream."""
        if not self._training:
            return 0
        return int(bits(key(self._seed, "window"), np.array([epoch], np.uint64))[0] % np.uint64(self._offsets))

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Return the windows `index`. Inputs, targets (B, T) int64; weights (B, T) float32; segments (B, T) int32 or None."""
        import torch

        index = np.asarray(index, np.int64)
        if index.size and (index.min() < 0 or index.max() >= self._windows):
            raise IndexError(f"windows are 0 to {self._windows - 1}, got {index.min()} to {index.max()}")
        T = self.seq_len
        starts = self.offset(epoch) + index * self._stride
        rows = np.full((len(index), T + 1), self.shards.bos, np.int64)
        weights = np.ones((len(index), T), np.float32)
        for row, start in enumerate(starts.tolist()):
            stop = min(start + T + 1, len(self.shards))
            rows[row, : stop - start] = self.shards.read(start, stop)
            weights[row, stop - start - 1 :] = 0.0
        if not self._training and self._stride < T:
            weights[index > 0, : T - self._stride] = 0.0
        segments = torch.from_numpy(self._numbered(starts)) if self._segments else None
        tokens = torch.from_numpy(rows)
        return Batch(
            tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.from_numpy(weights), segments, torch.from_numpy(index.copy())
        )

    def _numbered(self, starts: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the document number within the row of each input. The closing BOS and the padding after it are a document of their own."""
        place = np.minimum(starts[:, None] + np.arange(self.seq_len), len(self.shards) - 1)
        number = self.shards.document_at(place) + (place == len(self.shards) - 1)
        relative: NDArray[np.int32] = (number - number[:, :1]).astype(np.int32)
        return relative
