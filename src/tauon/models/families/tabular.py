"""Models of tables with columns of categories: wide-and-deep and the FT-Transformer. The plain perceptron with embeddings is `mlp`.

Sources: Cheng et al. 2016, arXiv:1606.07792; Gorishniy et al. 2021, arXiv:2106.11959 (and its code: pre-norm, ReGLU, no norm before the
first attention). Both take any table: numbers, codes of categories, or both.
Shapes: B batch, F columns, N numeric ones, D width, H heads, C outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Fraction, register
from tauon.models.base import Model, Size
from tauon.models.families.columns import ColumnsInput, TabularConfig
from tauon.models.randomness import attention, dropout
from tauon.types import DataSpec

__all__ = ["FTTransformer", "FTTransformerConfig", "WideAndDeep", "WideAndDeepConfig"]


@register("wide-and-deep")
class WideAndDeepConfig(TabularConfig):
    """A linear model of all columns and a perceptron over embeddings, added."""

    hidden: tuple[Size, ...] = (128, 64)
    """Sizes of the deep part's hidden layers."""
    embedding: Size | None = None
    """Numbers that stand for a category in the deep part. Left out: 1.6 codes^0.56."""
    crosses: bool = False
    """The wide part also sees the cross product of every two columns of codes."""
    dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of hidden activations dropped in training."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.raw_value("hidden"):
            yield "hidden", "is empty, so there is no deep part. Give one layer, or take logistic or linear."

    def build(self) -> WideAndDeep:
        inputs, outputs = self.sizes
        return WideAndDeep(inputs, outputs, self.categories, self.hidden, self.embedding, crosses=self.crosses, dropout=self.dropout)


class WideAndDeep(Model):
    """BF -> BC."""

    shard_plan = {"*": "replicate"}  # noqa: RUF012 - plain data, read only

    def __init__(
        self, inputs: int, outputs: int, categories: tuple[int, ...], hidden: tuple[int, ...], embedding: int | None, *, crosses: bool,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.columns = ColumnsInput(inputs, categories, embedding)
        self.dropout = dropout
        sizes = (self.columns.width, *hidden)
        self.deep = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.out = nn.Linear(sizes[-1], outputs)
        self.wide_numbers = nn.Linear(len(self.columns.numbers), outputs, bias=False) if self.columns.numbers else None
        counts = [n for n in categories if n]
        self.wide_codes = nn.ModuleList(nn.Embedding(n, outputs) for n in counts)
        self.pairs = list(itertools.combinations(range(len(counts)), 2)) if crosses else []
        self.wide_pairs = nn.ModuleList(nn.Embedding(counts[a] * counts[b], outputs) for a, b in self.pairs)
        self.counts = counts

    def forward(self, x_BF: Tensor) -> Tensor:
        h = self.columns(x_BF)
        for layer in self.deep:
            h = dropout(F.relu(layer(h)), self.dropout, self.training)
        out: Tensor = self.out(h)
        if self.wide_numbers is not None:
            out = out + self.wide_numbers(x_BF[:, self.columns.numbers])
        codes = [x_BF[:, j].long() for j in self.columns.coded]
        for code, table in zip(codes, self.wide_codes, strict=True):
            out = out + table(code)
        for (a, b), table in zip(self.pairs, self.wide_pairs, strict=True):
            out = out + table(codes[a] * self.counts[b] + codes[b])
        return out

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """He initialisation of the deep part; the wide part and the output layer at zero, so that every class starts equally likely."""
        if p.ndim == 1 or name.startswith(("out.", "wide_")):
            nn.init.zeros_(p)
        elif name.startswith("columns."):
            nn.init.normal_(p, 0.0, 0.1, generator=g)
        else:
            nn.init.normal_(p, 0.0, (2 / p.shape[1]) ** 0.5, generator=g)

    def flops_per_example(self, spec: DataSpec) -> float:
        """6 for each weight of a matrix; looking up an embedding multiplies nothing."""
        return 6.0 * sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))


@register("ft-transformer")
class FTTransformerConfig(TabularConfig):
    """Each column becomes a token, and a transformer reads them; the defaults are the paper's."""

    layers: Count = Field(3, ge=1, le=1000)
    """Blocks."""
    width: Size = 192
    """Of a token, D."""
    heads: Size = 8
    """Attention heads; must divide the width."""
    mlp_width: Size | None = None
    """Hidden size of the feed-forward part. Left out: 4/3 of the width (ReGLU has two matrices in)."""
    attention_dropout: Fraction = Field(0.2, ge=0, lt=1)
    """Share of attention weights dropped in training."""
    mlp_dropout: Fraction = Field(0.1, ge=0, lt=1)
    """Share of hidden activations dropped in training."""
    residual_dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of each branch's output dropped in training."""

    def problems(self) -> Iterator[tuple[str, str]]:
        width, heads = self.raw_value("width"), self.raw_value("heads")
        if width % heads:
            yield "heads", f"{heads} heads do not divide width {width}. Take a divisor of {width}."

    def build(self) -> FTTransformer:
        inputs, outputs = self.sizes
        hidden = self.mlp_width or int(self.width * 4 / 3)
        drop = (self.attention_dropout, self.mlp_dropout, self.residual_dropout)
        blocks = [_Block(self.width, self.heads, hidden, drop, first=i == 0) for i in range(self.layers)]
        return FTTransformer(inputs, outputs, self.categories, self.width, blocks)


class _Block(nn.Module):
    """Attention over columns, then ReGLU; normalised before each."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: tuple[float, float, float], *, first: bool) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout, self.mlp_dropout, self.residual_dropout = dropout
        self.attention_norm = None if first else nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x_BFD: Tensor) -> Tensor:
        B, T, D = x_BFD.shape
        h = x_BFD if self.attention_norm is None else self.attention_norm(x_BFD)
        q, k, v = (m(h).view(B, T, self.heads, D // self.heads).transpose(1, 2) for m in (self.q, self.k, self.v))
        mixed = attention(q, k, v, dropout_p=self.attention_dropout if self.training else 0.0)
        x_BFD = x_BFD + dropout(self.o(mixed.transpose(1, 2).reshape(B, T, D)), self.residual_dropout, self.training)
        a, b = self.up(self.mlp_norm(x_BFD)).chunk(2, dim=-1)
        h = self.down(dropout(a * F.relu(b), self.mlp_dropout, self.training))
        return x_BFD + dropout(h, self.residual_dropout, self.training)


class FTTransformer(Model):
    """BF -> BC: what a token that stands for the answer has read from the columns."""

    modules_to_save = ("head.*",)
    shard_plan = {"*": "replicate"}  # noqa: RUF012 - plain data, read only

    def __init__(self, inputs: int, outputs: int, categories: tuple[int, ...], width: int, blocks: list[_Block]) -> None:
        super().__init__()
        self.numbers = [j for j in range(inputs) if not categories or categories[j] == 0]
        self.coded = [j for j, n in enumerate(categories) if n]
        self.weight = nn.Parameter(torch.empty(len(self.numbers), width)) if self.numbers else None
        self.tables = nn.ModuleList(nn.Embedding(n, width) for n in categories if n)
        self.column_bias = nn.Parameter(torch.empty(inputs, width))  # numbers first, as the tokens are
        self.answer = nn.Parameter(torch.empty(1, width))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    @property
    def token_columns(self) -> list[int]:
        """The column of each token behind the answer's, in order."""
        return [*self.numbers, *self.coded]

    def forward(self, x_BF: Tensor) -> Tensor:
        tokens = [x_BF[:, self.numbers, None] * self.weight] if self.weight is not None else []
        tokens += [table(x_BF[:, j].long())[:, None] for j, table in zip(self.coded, self.tables, strict=True)]
        columns = torch.cat(tokens, dim=1) + self.column_bias
        x_BTD = torch.cat([self.answer.expand(x_BF.shape[0], 1, -1), columns], dim=1)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        out: Tensor = self.head(F.relu(self.norm(x_BTD[:, 0])))
        return out

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """Tokens U(-1/sqrt D, 1/sqrt D), as the paper's code; matrices by fan-in; the head at zero."""
        if name in ("weight", "column_bias", "answer") or name.startswith("tables."):
            bound = p.shape[1] ** -0.5
            nn.init.uniform_(p, -bound, bound, generator=g)
        elif name.startswith("head."):
            nn.init.zeros_(p)
        else:
            super().init_parameter(name, p, g)

    def blocks_to_compile(self) -> list[nn.Module]:
        return list(self.blocks)

    def flops_per_example(self, spec: DataSpec) -> float:
        """6 for each weight of the blocks and each of F + 1 tokens, and attention over them."""
        T, D = len(self.column_bias) + 1, self.column_bias.shape[1]
        matrices = sum(m.weight.numel() for m in self.blocks.modules() if isinstance(m, nn.Linear))
        return 6.0 * T * matrices + 12.0 * len(self.blocks) * T * T * D + 6.0 * self.head.weight.numel()

    def activations_per_example(self, spec: DataSpec) -> float:
        """About 16 widths a block and token, and the attention weights."""
        T, D = len(self.column_bias) + 1, self.column_bias.shape[1]
        heads = cast(_Block, self.blocks[0]).heads
        return float(len(self.blocks) * T * (16 * D + 2 * heads * T))
