"""Texts with labels as training examples: rows of tokens of one length: [BOS] text, truncated at the end or padded (segment -1).

Shape legend: B batch, T time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tauon.data.augment import Draws
from tauon.data.text_augment import TextAugmentConfig
from tauon.data.text_files import refuse_surrogates
from tauon.data.tokenizer import Tokenizer
from tauon.errors import DataError
from tauon.types import Batch, DataSpec

__all__ = ["LabelledTextDataset", "inputs_from_texts", "rows_of"]


class LabelledTextDataset:
    """Texts as rows of tokens. Example `i` of epoch `e` is a pure function of (seed, e, i); safe to share between threads."""

    def __init__(
        self, ids: Sequence[NDArray[np.uint32]], targets: NDArray[np.int64], spec: DataSpec, bos: int, mask: int, *, seed: int = 0,
        augments: Sequence[TextAugmentConfig] = (), texts: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`ids` of each text without BOS; `texts`: the original texts, for display."""
        assert spec.seq_len is not None
        self.spec, self._targets, self._bos, self._mask, self._seed, self._augments = spec, targets, bos, mask, seed, tuple(augments)
        self.texts = texts
        self._tokens, self._lengths = rows_of(ids, spec.seq_len, bos)
        counts = np.bincount(targets, minlength=len(spec.labels)).tolist()
        self.facts: dict[str, Any] = {
            "texts": len(targets), "tokens": int(sum(len(i) for i in ids)), "cut": sum(len(i) + 1 > spec.seq_len for i in ids),
            "classes": dict(zip(spec.labels, counts, strict=True)),
        }  # fmt: skip

    @property
    def targets(self) -> NDArray[np.int64]:
        """Class of each text, (N)."""
        return self._targets

    def __len__(self) -> int:
        return len(self._targets)

    def without_augmentation(self) -> Self:
        """Return the same examples without augmentation."""
        shown = copy.copy(self)
        shown._augments = ()
        return shown

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Return the texts `index`: inputs BT int64, targets B int64, weights B of 1, segments BT int32, -1 for padding."""
        import torch

        index = np.asarray(index, np.int64)
        tokens_BT, lengths_B = self._tokens[index].astype(np.int64), self._lengths[index]
        for place, step in enumerate(self._augments):
            tokens_BT, lengths_B = step.rewrite(tokens_BT, lengths_B, self._mask, Draws(self._seed, place, epoch, index))
        there_BT = np.arange(tokens_BT.shape[1]) < lengths_B[:, None]
        tokens_BT = np.where(there_BT, tokens_BT, self._bos)
        return Batch(
            torch.from_numpy(tokens_BT), torch.from_numpy(self._targets[index]), torch.ones(len(index)),
            torch.from_numpy(np.where(there_BT, 0, -1).astype(np.int32)), torch.from_numpy(index.copy()),
        )  # fmt: skip


def rows_of(ids: Sequence[NDArray[np.uint32]], seq_len: int, bos: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return (tokens NT, lengths N): [BOS] text, truncated at the end, padded with BOS."""
    tokens = np.full((len(ids), seq_len), bos, np.uint32)
    lengths = np.array([min(len(i) + 1, seq_len) for i in ids], np.int64)
    for row, (i, n) in enumerate(zip(ids, lengths.tolist(), strict=True)):
        tokens[row, 1:n] = i[: n - 1]
    return tokens, lengths


def inputs_from_texts(preprocess: Mapping[str, Any], texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return (inputs BT, segments BT) of new texts, from a checkpoint's `preprocess`. Raises `DataError` for an empty one."""
    if not texts or any(not t.strip() for t in texts):
        raise DataError("a text is empty, expected at least one word" if texts else "got no texts, expected at least one")
    for i, text in enumerate(texts):
        refuse_surrogates(text, f"text {i}")
    tokenizer = Tokenizer.from_json(preprocess["tokenizer"])
    tokens, lengths = rows_of(tokenizer.encode_many(list(texts)), preprocess["seq_len"], tokenizer.bos)
    there = np.arange(tokens.shape[1]) < lengths[:, None]
    return tokens.astype(np.int64), np.where(there, 0, -1).astype(np.int32)
