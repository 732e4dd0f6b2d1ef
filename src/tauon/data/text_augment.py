"""Augmentation of tokens: mask some, remove some. Deterministic in (seed, position in the list, epoch, example).

The first token (BOS, where an encoder reads the answer) and padding are unchanged. Shape legend: B batch, T time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Fraction, register
from tauon.data.augment import AugmentConfig, Draws

__all__ = ["DropTokensConfig", "MaskTokensConfig", "TextAugmentConfig"]

Tokens = NDArray[np.int64]


class TextAugmentConfig(AugmentConfig):
    """Base class of random changes of tokens."""

    def rewrite(self, tokens_BT: Tokens, lengths_B: Tokens, mask: int, draws: Draws) -> tuple[Tokens, Tokens]:
        """Return changed (tokens BT, lengths B); the input is not modified. Tokens after a length are ignored."""
        raise NotImplementedError


@register("mask-tokens")
class MaskTokensConfig(TextAugmentConfig):
    """Replace some by the mask token, as masked language modelling does."""

    share: Fraction = Field(0.1, gt=0, lt=1)
    """Share of the tokens."""

    def rewrite(self, tokens_BT: Tokens, lengths_B: Tokens, mask: int, draws: Draws) -> tuple[Tokens, Tokens]:
        hidden_BT = draws.uniform(tokens_BT.shape[1]) < self.share
        hidden_BT[:, 0] = False
        return np.where(hidden_BT, mask, tokens_BT), lengths_B


@register("drop-tokens")
class DropTokensConfig(TextAugmentConfig):
    """Remove some; the others close the gaps."""

    share: Fraction = Field(0.1, gt=0, lt=1)
    """Share of the tokens."""

    def rewrite(self, tokens_BT: Tokens, lengths_B: Tokens, mask: int, draws: Draws) -> tuple[Tokens, Tokens]:
        T = tokens_BT.shape[1]
        kept_BT = (draws.uniform(T) >= self.share) & (np.arange(T) < lengths_B[:, None])
        kept_BT[:, 0] = True
        order = np.argsort(~kept_BT, axis=1, kind="stable")
        return np.take_along_axis(tokens_BT, order, 1), kept_BT.sum(1)
