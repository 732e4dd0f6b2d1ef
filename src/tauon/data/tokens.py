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
from tauon.data.mixture_order import MixtureOrder
from tauon.data.shards import Shards
from tauon.data.tokenizer import Tokenizer
from tauon.errors import DataError
from tauon.types import Batch, DataSpec

__all__ = ["TokenDataset"]


_SHIFTS = 1024
"""Offsets of epochs that are remembered."""


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
        self.order: MixtureOrder | None = None
        """The order of training windows, if several sources are mixed by weights."""
        self._seed, self._training, self._segments = seed, training, segments
        self._shifts: dict[tuple[int, int], int] = {}
        self.spec = DataSpec(vocab=tokenizer.vocab_size, seq_len=seq_len)
        self._targets = len(shards) - 1  # every token but the first has one before it
        self._stride = seq_len if training else seq_len - int(seq_len * overlap)
        ranges = shards.ranges if training and len(shards.ranges) > 1 else [(0, 0, len(shards) - 1)]
        self.sources = [source for source, _, _ in ranges]
        """Numbers of the sources that are sampled by themselves; [0] for held-out parts."""
        self._begins = np.array([begin for _, begin, _ in ranges], np.int64)
        targets = np.array([end - begin for _, begin, end in ranges], np.int64)
        if training:
            for (source, _, _), n in zip(ranges, targets.tolist(), strict=True):
                if n < seq_len:
                    where = f"the {name} part" + (f" of source {shards.source_name(source)!r}" if len(ranges) > 1 else "")
                    raise DataError(
                        f"{where} has {n + 1:,} tokens (BOS included), "
                        f"fewer than one sequence of seq_len={seq_len} and the token after it. Lower data.seq_len, or add text"
                    )
            self.windows_of = np.maximum(1, (targets - seq_len + 1) // seq_len)  # as many as fit after the largest offset
            self._offsets = np.minimum(seq_len, targets - self.windows_of * seq_len + 1)
        else:
            self.windows_of = 1 + np.maximum(0, -(-(targets - seq_len) // self._stride))
            self._offsets = np.ones(len(ranges), np.int64)
        self.first_window = np.cumsum(self.windows_of) - self.windows_of
        """Number of the first window of each source."""
        self._windows = int(self.windows_of.sum())
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

    def offset(self, epoch: int, source: int = 0) -> int:
        """Return how far the windows of an epoch are shifted, in tokens. `source`: its place among `sources`."""
        if not self._training:
            return 0
        found = self._shifts.get((epoch, source))
        if found is None:
            name = ("window", source) if source else ("window",)
            found = int(bits(key(self._seed, *name), np.array([epoch], np.uint64))[0] % np.uint64(self._offsets[source]))
            if len(self._shifts) >= _SHIFTS:
                self._shifts.clear()
            self._shifts[epoch, source] = found
        return found

    def starts_of(self, index: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Return the position in the stream at which each window begins."""
        if len(self._begins) == 1:
            return self.offset(epoch) + index * self._stride
        source = np.searchsorted(self.first_window, index, side="right") - 1
        shift = np.zeros(len(self._begins), np.int64)
        for k in np.unique(source).tolist():
            shift[k] = self._begins[k] + self.offset(epoch, k)
        found: NDArray[np.int64] = shift[source] + (index - self.first_window[source]) * self._stride
        return found

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Return the windows `index`. Inputs, targets (B, T) int64; weights (B, T) float32; segments (B, T) int32 or None."""
        import torch

        index = np.asarray(index, np.int64)
        if index.size and (index.min() < 0 or index.max() >= self._windows):
            raise IndexError(f"windows are 0 to {self._windows - 1}, got {index.min()} to {index.max()}")
        T = self.seq_len
        starts = self.starts_of(index, epoch)
        rows = self.shards.windows(starts, T + 1)
        weights = np.ones((len(index), T), np.float32)
        if not self._training:
            left = np.maximum(len(self.shards) - starts - 1, 0)  # tokens that the last window has to predict
            weights[np.arange(T) >= left[:, None]] = 0.0
            if self._stride < T:
                weights[index > 0, : T - self._stride] = 0.0
        segments = torch.from_numpy(self._numbered(starts)) if self._segments else None
        inputs, targets = rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)
        return Batch(
            torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(weights), segments, torch.from_numpy(index.copy())
        )

    def _numbered(self, starts: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the document number within the row of each input. The closing BOS and the padding after it are a document of their own."""
        T = self.seq_len
        begins = self.shards.starts
        first, last = np.searchsorted(begins, starts, side="right"), np.searchsorted(begins, starts + T, side="left")
        count = last - first
        row = np.repeat(np.arange(len(starts)), count)
        document = np.arange(len(row)) + np.repeat(first - (np.cumsum(count) - count), count)
        changes = np.zeros((len(starts), T), np.int32)
        changes[row, begins[document] - starts[row]] = 1
        end = len(self.shards) - 1 - starts
        (closed,) = np.nonzero((end > 0) & (end < T))
        changes[closed, end[closed]] += 1
        return np.cumsum(changes, axis=1, dtype=np.int32)
