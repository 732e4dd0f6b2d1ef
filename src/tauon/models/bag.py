"""A bag of n-grams: fastText's classifier over tokens (Joulin et al. 2016, arXiv:1607.01759).

A text is the mean of the vectors of its tokens and of its runs of two to N tokens, and a linear layer makes logits of it. Runs share a fixed
number of vectors by a hash. Reads nothing of order beyond N tokens, and trains in seconds.

Shapes: B batch, T time, G n-grams of a text, D width, C classes.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Fraction, register
from tauon.errors import Problem, RecipeError
from tauon.models.base import Model, ModelConfig, Size
from tauon.types import DataSpec

__all__ = ["TextBag", "TextBagConfig"]


@register("text-bag")
class TextBagConfig(ModelConfig):
    """fastText's bag of n-grams of tokens: quick, and hard to beat with little data."""

    needs = "labelled-text"

    width: Size = 16
    """Numbers that stand for an n-gram, D."""
    ngrams: Count = Field(3, ge=1, le=8)
    """Longest run of tokens that counts, N."""
    buckets: Size = 2**17
    """Vectors that runs of two and more share."""
    dropout: Fraction = Field(0.3, ge=0, lt=1)
    """Share of n-grams left out in training."""
    number_dropout: Fraction = Field(0.2, ge=0, lt=1)
    """Share of the numbers of each n-gram dropped in training."""
    vocab: Size | None = None
    """Token ids. Left out: the tokenizer's."""
    outputs: Size | None = None
    """Classes. Left out: the data's."""

    def resolve(self, spec: DataSpec) -> Self:
        if spec.vocab is None or spec.outputs is None:
            raise RecipeError(
                [Problem("model.kind", f"{self.kind_} sorts texts, and this data has no texts with labels. Take another model.")]
            )
        for name, mine, theirs in (("vocab", self.vocab, spec.vocab), ("outputs", self.outputs, spec.outputs)):
            if mine not in (None, theirs):
                raise RecipeError([Problem(f"model.{name}", f"{mine}, but the data has {theirs}. Leave it out.")])
        return self.model_copy(update={"vocab": spec.vocab, "outputs": spec.outputs})

    def build(self) -> TextBag:
        assert self.vocab is not None
        assert self.outputs is not None
        return TextBag(self.vocab, self.width, self.ngrams, self.buckets, self.dropout, self.number_dropout, self.outputs)


class TextBag(Model):
    """Tokens BT, segments BT (-1 where nothing is) -> logits BC."""

    shard_plan = {"embed.weight": "replicate", "runs.weight": "replicate", "head.*": "replicate"}  # noqa: RUF012 - plain data, read only
    own_head = ("head.*",)

    def __init__(self, vocab: int, width: int, ngrams: int, buckets: int, dropout: float, number_dropout: float, outputs: int) -> None:
        super().__init__()
        self.ngrams, self.buckets, self.dropout, self.number_dropout = ngrams, buckets, dropout, number_dropout
        self.embed = nn.Embedding(vocab, width)
        self.runs = nn.Embedding(buckets, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        there_BT = torch.ones_like(tokens_BT, dtype=torch.bool) if segments_BT is None else segments_BT >= 0
        sums_BD = self._sum(self.embed, tokens_BT, there_BT)
        count_B = there_BT.sum(1)
        hashed_BG = tokens_BT
        for n in range(2, min(self.ngrams, tokens_BT.shape[1]) + 1):
            hashed_BG = mixed(hashed_BG[:, :-1] * 0x9E3779B1 + tokens_BT[:, n - 1 :] + n)
            whole_BG = there_BT[:, n - 1 :]  # padding is at the end: where the last token is there, all are
            sums_BD = sums_BD + self._sum(self.runs, hashed_BG % self.buckets, whole_BG)
            count_B = count_B + whole_BG.sum(1)
        logits_BC: Tensor = self.head(sums_BD / count_B.clamp(min=1)[:, None])
        return logits_BC

    def _sum(self, table: nn.Embedding, ids_BG: Tensor, there_BG: Tensor) -> Tensor:
        weight_BG = there_BG.to(table.weight.dtype)
        if self.training and self.dropout:
            weight_BG = F.dropout(weight_BG, self.dropout)
        if self.training and self.number_dropout:
            numbers_BGD = F.dropout(table(ids_BG), self.number_dropout)
            dropped: Tensor = torch.einsum("bgd,bg->bd", numbers_BGD, weight_BG)
            return dropped
        return F.embedding_bag(ids_BG, table.weight, mode="sum", per_sample_weights=weight_BG)

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """Vectors and head normal with deviation 0.1; biases zero."""
        nn.init.zeros_(p) if p.ndim == 1 else nn.init.normal_(p, 0.0, 0.1, generator=g)

    def flops_per_example(self, spec: DataSpec) -> float:
        """Additions of the vectors, forward and backward; the head."""
        return 4.0 * (spec.seq_len or 1) * self.ngrams * self.embed.embedding_dim + 6.0 * self.head.weight.numel()

    def activations_per_example(self, spec: DataSpec) -> float:
        """The n-grams' numbers and weights."""
        return 4.0 * (spec.seq_len or 1) * self.ngrams + 4.0 * self.embed.embedding_dim


def mixed(z: Tensor) -> Tensor:
    """A hash of 64-bit integers, not negative: neighbours come to lie anywhere (a round of SplitMix64, signed)."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    return (z ^ ((z >> 27) & 0x1FFFFFFFFF)) & 0x7FFFFFFFFFFFFFFF
