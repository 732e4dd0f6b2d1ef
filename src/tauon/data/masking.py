"""Masked language modelling: the model predicts masked tokens of a window (Devlin et al. 2018, arXiv:1810.04805, 3.1).

15% of the tokens are chosen; of these 80% become the mask token, 10% a random token, 10% stay. The choice in window i of epoch e is a
pure function of (seed, e, i): different in each epoch, always the same in held-out windows. Special tokens are never chosen.

Shape legend: B batch, T time.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tauon.data.counter import bits, key, uniform
from tauon.data.mixture_order import MixtureOrder
from tauon.data.tokenizer import SubwordTokenizer, Tokenizer
from tauon.data.tokens import TokenDataset
from tauon.types import Batch, DataSpec

__all__ = ["MASKS", "MaskedDataset", "mask_token"]

MASKS = ("[MASK]", "<mask>", "<|mask|>")
RATE, BECOMES_MASK, BECOMES_RANDOM = 0.15, 0.8, 0.1


def mask_token(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return (id of the mask token, number of ids): the tokenizer's own, or a new id after all others."""
    if isinstance(tokenizer, SubwordTokenizer):
        for name in MASKS:
            found = tokenizer.id_of(name)
            if found is not None:
                return found, tokenizer.vocab_size
    return tokenizer.vocab_size, tokenizer.vocab_size + 1


class MaskedDataset:
    """Windows of tokens with some masked. Inputs: masked tokens; targets: original tokens; weights: one at chosen tokens."""

    def __init__(self, tokens: TokenDataset, *, seed: int, name: str) -> None:
        self.tokens, self._seed, self._name = tokens, seed, name
        self.mask, vocab = mask_token(tokens.tokenizer)
        self.spec = DataSpec(vocab=vocab, seq_len=tokens.seq_len)
        self.facts: dict[str, Any] = tokens.facts | {"masked": RATE, "mask_token": self.mask}

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def shards(self) -> Any:
        """The folder of the tokens."""
        return self.tokens.shards

    @property
    def order(self) -> MixtureOrder | None:
        """The order of training windows, if several sources are mixed by weights."""
        return self.tokens.order

    def without_augmentation(self) -> Self:
        """Return the same windows in every epoch. The masked tokens still depend on the epoch: they are the training task."""
        shown = copy.copy(self)
        shown.tokens = self.tokens.without_augmentation()
        return shown

    def batch(self, index: NDArray[np.int64], *, epoch: int = 0) -> Batch:
        """Return the windows `index`: inputs, targets (B, T) int64; weights (B, T) float32; segments (B, T) int32 or None."""
        import torch

        whole = self.tokens.batch(index, epoch=epoch)
        seen, there = whole.inputs, whole.inputs
        T = there.shape[1]
        at = (np.asarray(index, np.int64)[:, None] * T + np.arange(T)).astype(np.uint64)
        draws = key(self._seed, "mask", self._name, epoch)
        usable = (whole.weights > 0) & (there != self.tokens.tokenizer.bos)
        chosen = torch.from_numpy(uniform(key(draws, "which"), at) < RATE) & usable
        how = torch.from_numpy(uniform(key(draws, "how"), at))
        other = torch.from_numpy((bits(key(draws, "token"), at) % np.uint64(self.tokens.tokenizer.vocab_size)).astype(np.int64))
        seen = torch.where(chosen & (how < BECOMES_MASK), self.mask, seen)
        seen = torch.where(chosen & (how >= BECOMES_MASK) & (how < BECOMES_MASK + BECOMES_RANDOM), other, seen)
        return replace(whole, inputs=seen, targets=there, weights=chosen.float())
