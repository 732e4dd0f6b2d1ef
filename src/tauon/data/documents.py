"""Token sequences that never cross a document border: required if the privacy unit is a document. Windows over the stream of all
documents (`tokens.py`) waste no tokens, but join the end of one document with the start of the next.

Shape legend: B batch, T time.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tauon.data.shards import Shards
from tauon.data.tokenizer import Tokenizer
from tauon.types import Batch, DataSpec

__all__ = ["DocumentDataset"]


class DocumentDataset:
    """Consecutive sequences of `seq_len` tokens of each document; the last one is padded with weight 0."""

    def __init__(self, shards: Shards, tokenizer: Tokenizer, seq_len: int) -> None:
        self.shards, self.tokenizer, self.seq_len = shards, tokenizer, seq_len
        self.spec = DataSpec(vocab=tokenizer.vocab_size, seq_len=seq_len)
        ends = np.append(shards.starts[1:], len(shards) - 1)  # the BOS after a document is its last target
        pieces = -(-(ends - shards.starts) // seq_len)
        self.document: NDArray[np.int64] = np.repeat(np.arange(len(ends)), pieces)
        """(N) document number of each sequence."""
        within = np.arange(len(self.document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        self._starts = shards.starts[self.document] + within * seq_len
        self._ends = ends[self.document]
        self.facts: dict[str, Any] = {"documents": len(ends), "sequences": len(self.document), "seq_len": seq_len}

    def __len__(self) -> int:
        return len(self.document)

    def without_augmentation(self) -> Self:
        """Return the data set itself: it has no augmentation."""
        return self

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Return the sequences `index`, the same in every epoch. Inputs, targets (B, T) int64; weights (B, T) float32."""
        import torch

        index = np.asarray(index, np.int64)
        T = self.seq_len
        rows = np.full((len(index), T + 1), self.shards.bos, np.int64)
        weights = np.zeros((len(index), T), np.float32)
        for row, (start, end) in enumerate(zip(self._starts[index].tolist(), self._ends[index].tolist(), strict=True)):
            stop = min(start + T, end) + 1
            rows[row, : stop - start] = self.shards.read(start, stop)
            weights[row, : stop - start - 1] = 1.0
        tokens = torch.from_numpy(rows)
        return Batch(
            tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.from_numpy(weights), None, torch.from_numpy(index.copy())
        )
