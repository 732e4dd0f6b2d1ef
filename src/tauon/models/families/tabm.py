"""TabM: a perceptron for tables that is an ensemble of K, trained as one (Gorishniy et al. 2025, arXiv:2410.24210).

The members share the matrices; each scales the inputs and outputs of every layer by vectors of its own (BatchEnsemble, Wen et al. 2020,
arXiv:2002.06715) and has its own bias and head. Each member's loss counts alike in training (`Task` averages them); the prediction is their mean.
Numbers become piecewise-linear vectors first (Gorishniy et al. 2022, arXiv:2203.05556): with `data.normalize: quantile` the borders of the bins,
quantiles of the normal distribution, are quantiles of the training rows, so that nothing is measured here.

Shapes: B batch, F columns, N numeric ones, Q bins, E width of a number's vector, K members, D width, C outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from statistics import NormalDist

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Fraction, register
from tauon.models.base import Model, Size
from tauon.models.families.columns import TabularConfig
from tauon.models.randomness import dropout
from tauon.types import DataSpec

__all__ = ["TabM", "TabMConfig"]

_REACH = 3.0
"""Deviations from the mean at which the first and the last bin end."""


@register("tabm")
class TabMConfig(TabularConfig):
    """An ensemble of perceptrons that share their matrices: the default for tables. Best with data.normalize: quantile."""

    members: Count = Field(8, ge=1, le=256)
    """Perceptrons in the ensemble, K. The paper's 32 are slower, and better by little."""
    layers: Count = Field(2, ge=1, le=100)
    """Hidden layers."""
    width: Size = 64
    """Of a hidden layer, D."""
    bins: Count = Field(16, ge=0, le=1000)
    """Bins of the piecewise-linear encoding of a number, Q. 0: numbers enter as they are."""
    number_width: Size = 8
    """Numbers that stand for a number, E."""
    embedding: Size = 8
    """Numbers that stand for a category."""
    dropout: Fraction = Field(0.1, ge=0, lt=1)
    """Share of hidden activations dropped in training, of an example the same in every member."""

    def build(self) -> TabM:
        inputs, outputs = self.sizes
        embed = TableEmbedding(inputs, self.categories, self.bins, self.number_width, self.embedding)
        return TabM(embed, (embed.width, *[self.width] * self.layers), outputs, self.members, self.dropout)


class PiecewiseLinear(nn.Module):
    """BN -> BNE: relu(W ple(x) + w x + b) for each column by itself. ple(x) fills its Q bins from the left to the right, each from 0 to 1."""

    borders: Tensor

    def __init__(self, columns: int, bins: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(columns, bins, width))
        self.slope = nn.Parameter(torch.empty(columns, width))
        self.bias = nn.Parameter(torch.empty(columns, width))
        self.register_buffer("borders", torch.empty(bins + 1), persistent=False)

    def forward(self, x_BN: Tensor) -> Tensor:
        low_Q, span_Q = self.borders[:-1], self.borders.diff()
        filled_BNQ = ((x_BN.unsqueeze(-1) - low_Q) / span_Q).clamp(0, 1)
        vectors_NBE = torch.bmm(filled_BNQ.transpose(0, 1), self.weight)
        line_BNE = x_BN.clamp(-2 * _REACH, 2 * _REACH).unsqueeze(-1) * self.slope + self.bias
        return F.relu(vectors_NBE.transpose(0, 1) + line_BNE)

    def init_buffers(self) -> None:
        """Borders at the quantiles of the standard normal distribution."""
        normal, bins = NormalDist(), len(self.borders) - 1
        inner = [normal.inv_cdf(q / bins) for q in range(1, bins)]
        self.borders.copy_(torch.tensor([-_REACH, *inner, _REACH]))


class TableEmbedding(nn.Module):
    """BF -> B(N E + sum of the categories' widths)."""

    def __init__(self, inputs: int, categories: tuple[int, ...], bins: int, number_width: int, width: int) -> None:
        super().__init__()
        self.numbers = [j for j in range(inputs) if not categories or categories[j] == 0]
        self.coded = [j for j, n in enumerate(categories) if n]
        self.linear = PiecewiseLinear(len(self.numbers), bins, number_width) if self.numbers and bins else None
        counts = [n for n in categories if n]
        self.table = nn.Embedding(sum(counts), width) if counts else None
        self.starts = [sum(counts[:i]) for i in range(len(counts))]
        self.width = len(self.numbers) * (number_width if self.linear is not None else 1) + len(counts) * width

    def forward(self, x_BF: Tensor) -> Tensor:
        numbers_BN = x_BF if not self.coded else x_BF[:, self.numbers]
        parts = [numbers_BN if self.linear is None else self.linear(numbers_BN).flatten(1)] if self.numbers else []
        if self.table is not None:  # one table for all columns, each with codes of its own
            starts = torch.tensor(self.starts, device=x_BF.device)
            parts.append(self.table(x_BF[:, self.coded].long() + starts).flatten(1))
        return torch.cat(parts, dim=1)


class _Layer(nn.Module):
    """BKI -> BKO: ((x * r) W) * s + b with one W for all members. r, s and b are stored flat: vectors do not decay. In memory K comes first,
    so that the heads are one batched product without copies.
    """

    def __init__(self, inputs: int, outputs: int, members: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.r = nn.Parameter(torch.empty(members * inputs))
        self.s = nn.Parameter(torch.empty(members * outputs))
        self.bias = nn.Parameter(torch.empty(members * outputs))
        self.members = members

    def forward(self, x_BKI: Tensor) -> Tensor:
        r_K1I, s_K1O, bias_K1O = (p.view(self.members, 1, -1) for p in (self.r, self.s, self.bias))
        return torch.addcmul(bias_K1O, F.linear(x_BKI.transpose(0, 1) * r_K1I, self.weight), s_K1O).transpose(0, 1)


class _Heads(nn.Module):
    """BKD -> BKC: a linear layer for each member."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(members * outputs))

    def forward(self, h_BKD: Tensor) -> Tensor:
        members, _, outputs = self.weight.shape
        return torch.bmm(h_BKD.transpose(0, 1), self.weight).transpose(0, 1) + self.bias.view(members, outputs)


class TabM(Model):
    """BF -> BC, the mean of the members; in training BKC, the output of each."""

    modules_to_save = ("head.*",)
    shard_plan = {"*": "replicate"}  # noqa: RUF012 - plain data, read only

    def __init__(self, embed: TableEmbedding, sizes: tuple[int, ...], outputs: int, members: int, dropout: float) -> None:
        super().__init__()
        self.embed, self.members, self.dropout = embed, members, dropout
        self.layers = nn.ModuleList(_Layer(a, b, members) for a, b in pairwise(sizes))
        self.head = _Heads(members, sizes[-1], outputs)

    def forward(self, x_BF: Tensor) -> Tensor:
        h_BKD = self.embed(x_BF.flatten(1)).unsqueeze(1)
        for layer in self.layers:
            h_BKD = F.relu(layer(h_BKD))
            if self.training and self.dropout:  # one mask for all members: random numbers cost more than products
                h_BKD = h_BKD * dropout(torch.ones_like(h_BKD[:, 0]), self.dropout).unsqueeze(1)
        out_BKC: Tensor = self.head(h_BKD)
        return out_BKC if self.training else out_BKC.mean(1)

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """As the paper's code: random signs for the first scaling and ones for the others; matrices by fan-in; bins at zero, so that a number begins
        as a line.
        """
        leaf = name.rpartition(".")[2]
        if name == "layers.0.r":
            p.copy_(torch.randint(0, 2, p.shape, generator=g) * 2.0 - 1)
        elif leaf in ("r", "s"):
            nn.init.ones_(p)
        elif name == "embed.linear.weight" or name == "head.bias":
            nn.init.zeros_(p)
        elif name.startswith("embed."):
            bound = p.shape[1] ** -0.5
            nn.init.uniform_(p, -bound, bound, generator=g)
        else:
            fan_in = p.shape[1] if p.ndim > 1 else self._fan_in(name)
            nn.init.uniform_(p, -(fan_in**-0.5), fan_in**-0.5, generator=g)

    def _fan_in(self, name: str) -> int:
        layer = self.layers[int(name.split(".")[1])]
        assert isinstance(layer, _Layer)
        return layer.weight.shape[1]

    def init_buffers(self) -> None:
        if self.embed.linear is not None:
            self.embed.linear.init_buffers()

    def flops_per_example(self, spec: DataSpec) -> float:
        """6 for each shared weight and member, each head, and each bin."""
        shared = sum(layer.weight.numel() for layer in self._layers())
        bins = 0 if self.embed.linear is None else self.embed.linear.weight.numel()
        return 6.0 * (self.members * shared + self.head.weight.numel() + bins)

    def activations_per_example(self, spec: DataSpec) -> float:
        """The bins and vectors, and about four widths a layer and member."""
        bins = 0 if self.embed.linear is None else self.embed.linear.weight.shape[0] * self.embed.linear.weight.shape[1]
        return float(3 * bins + 3 * self.embed.width + self.members * sum(4 * sum(layer.weight.shape) for layer in self._layers()))

    def _layers(self) -> Iterator[_Layer]:
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            yield layer
