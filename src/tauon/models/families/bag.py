"""A bag of n-grams: fastText's classifier over tokens (Joulin et al. 2016, arXiv:1607.01759).

A text is the mean of the vectors of its tokens and of its runs of two to N tokens, and a linear layer makes logits of it. Runs share a fixed
number of vectors by a hash. Reads nothing of order beyond N tokens, and trains in seconds. With `pooling: attention` the mean is weighted: each
n-gram has a score of its own, whose softmax over the text says how much it counts (Yang et al. 2016, eq. 5 to 7, with a score that does not
depend on its neighbours): what TF-IDF takes from counts, learned.

Shapes: B batch, T time, G n-grams of a text, D width, C classes.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Fraction, register
from tauon.errors import Problem, RecipeError
from tauon.models.base import Model, ModelConfig, Size
from tauon.models.randomness import dropout
from tauon.types import DataSpec

__all__ = ["TextBag", "TextBagConfig"]


@register("text-bag")
class TextBagConfig(ModelConfig):
    """fastText's bag of n-grams of tokens: quick, and hard to beat with little data."""

    input_kind = "labelled-text"

    width: Size = 16
    """Numbers that stand for an n-gram, D."""
    ngrams: Count = Field(3, ge=1, le=8)
    """Longest run of tokens that counts, N."""
    buckets: Size = 2**17
    """Vectors that runs of two and more share."""
    pooling: Literal["mean", "attention"] = "mean"
    """mean: all n-grams of a text count alike; attention: as much as each one's learned score says."""
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
        return TextBag(
            self.vocab, self.width, self.ngrams, self.buckets, self.dropout, self.number_dropout, self.outputs,
            attention=self.pooling == "attention",
        )  # fmt: skip


class TextBag(Model):
    """Tokens BT, segments BT (-1 where nothing is) -> logits BC."""

    shard_plan = {  # noqa: RUF012 - plain data, read only
        "embed.weight": "replicate", "runs.weight": "replicate", "embed_score.weight": "replicate", "runs_score.weight": "replicate",
        "head.*": "replicate",
    }  # fmt: skip
    modules_to_save = ("head.*",)

    def __init__(
        self, vocab: int, width: int, ngrams: int, buckets: int, dropout: float, number_dropout: float, outputs: int, *,
        attention: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ngrams, self.buckets, self.dropout, self.number_dropout = ngrams, buckets, dropout, number_dropout
        self.embed = nn.Embedding(vocab, width)
        self.runs = nn.Embedding(buckets, width)
        self.embed_score = nn.Embedding(vocab, 1) if attention else None
        self.runs_score = nn.Embedding(buckets, 1) if attention else None
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        there_BT = torch.ones_like(tokens_BT, dtype=torch.bool) if segments_BT is None else segments_BT >= 0
        ids, there, hashed_BG = [tokens_BT], [there_BT], tokens_BT
        for n in range(2, min(self.ngrams, tokens_BT.shape[1]) + 1):
            hashed_BG = mixed(hashed_BG[:, :-1] * 0x9E3779B1 + tokens_BT[:, n - 1 :] + n)
            ids.append(hashed_BG % self.buckets)
            there.append(there_BT[:, n - 1 :])  # padding is at the end: where the last token is there, all are
        weights = self._weights(ids, there)
        sums_BD = self._sum(self.embed, ids[0], weights[0])
        for ids_BG, weights_BG in zip(ids[1:], weights[1:], strict=True):
            sums_BD = sums_BD + self._sum(self.runs, ids_BG, weights_BG)
        logits_BC: Tensor = self.head(sums_BD)
        return logits_BC

    def _weights(self, ids: list[Tensor], there: list[Tensor]) -> list[Tensor]:
        """Of each n-gram in its text; a text's sum to one."""
        there_BG = torch.cat(there, 1)
        if self.embed_score is None or self.runs_score is None:
            weights_BG = there_BG.to(self.embed.weight.dtype) / there_BG.sum(1, keepdim=True).clamp(min=1)
        else:
            scores = [self.embed_score(ids[0]), *(self.runs_score(i) for i in ids[1:])]
            scores_BG = torch.cat(scores, 1).squeeze(-1).masked_fill(~there_BG, -1e9)
            weights_BG = scores_BG.softmax(1) * there_BG
        return list(weights_BG.split([i.shape[1] for i in ids], 1))

    def _sum(self, table: nn.Embedding, ids_BG: Tensor, weight_BG: Tensor) -> Tensor:
        if self.training and self.dropout:
            weight_BG = dropout(weight_BG, self.dropout)
        if self.training and self.number_dropout:
            numbers_BGD = dropout(table(ids_BG), self.number_dropout)
            dropped: Tensor = torch.einsum("bgd,bg->bd", numbers_BGD, weight_BG)
            return dropped
        return F.embedding_bag(ids_BG, table.weight, mode="sum", per_sample_weights=weight_BG)

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """Vectors and head normal with deviation 0.1; biases and scores zero, so that all count alike at first."""
        nn.init.zeros_(p) if p.ndim == 1 or "_score" in name else nn.init.normal_(p, 0.0, 0.1, generator=g)

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
