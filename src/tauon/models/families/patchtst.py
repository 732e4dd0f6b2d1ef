"""PatchTST: each series by itself, its context cut into patches that a transformer encoder reads (Nie et al. 2023, arXiv:2211.14730).

As in the paper: channels share all weights, instances are normalised reversibly, the end is padded by one stride, norms come after
each branch. Unlike its code: LayerNorm instead of BatchNorm (no example sees another; as many parameters), and attention scores of a
layer are not added to the next one's. So it computes what transformers' PatchTSTForPrediction computes with norm_type=layernorm.
Shapes: B batch, T context, F columns, K targets, H horizon, N patches, P steps of a patch, D width, Q outputs a target.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Fraction, register
from tauon.errors import Problem, RecipeError
from tauon.models.base import Model, Size
from tauon.models.families.forecast import ForecasterConfig, backward_scale, forward_scale
from tauon.models.randomness import dropout
from tauon.types import DataSpec

__all__ = ["PatchTST", "PatchTSTConfig"]


@register("patchtst")
class PatchTSTConfig(ForecasterConfig):
    """A transformer over patches of each series; the defaults are the paper's for small sets (ETTh1)."""

    patch: Count = Field(16, ge=1)
    """Steps of a patch."""
    stride: Count = Field(8, ge=1)
    """Steps between the beginnings of two patches."""
    pad_end: bool = True
    """Repeat the last value for one stride, so that it begins no patch too late."""
    layers: Count = Field(3, ge=1, le=1000)
    """Blocks."""
    width: Size = 16
    """Of a token, D."""
    heads: Size = 4
    """Attention heads; must divide the width."""
    mlp_width: Size = 128
    """Hidden size of the feed-forward part."""
    dropout: Fraction = Field(0.3, ge=0, lt=1)
    """Share of tokens' values, of each branch's output and of hidden activations dropped in training."""
    head_dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of the head's inputs dropped in training."""
    revin: bool = True
    """Scale each window to mean 0 and variance 1 first, and the forecast back."""

    def problems(self) -> Iterator[tuple[str, str]]:
        width, heads = self.raw_value("width"), self.raw_value("heads")
        if width % heads:
            yield "heads", f"{heads} heads do not divide width {width}. Take a divisor of {width}."

    def resolve(self, spec: DataSpec) -> Self:
        resolved = super().resolve(spec)
        self.refuse_inputs(spec)
        assert resolved.context is not None
        if resolved.context < self.patch:
            message = f"{self.patch} steps, longer than the context of {resolved.context}. Shorten it, or raise data.window.context."
            raise RecipeError([Problem("model.patch", message)])
        return resolved

    def build(self) -> PatchTST:
        T, H, _, K, O = self.sizes
        blocks = [_Block(self.width, self.heads, self.mlp_width, self.dropout) for _ in range(self.layers)]
        padding = self.stride if self.pad_end else 0
        return PatchTST(
            (T, H, K, O // K), (self.patch, self.stride, padding), self.width, blocks, (self.dropout, self.head_dropout), revin=self.revin
        )


class _Block(nn.Module):
    """Attention over patches, then GELU, each added and then normalised."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.attention_norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mlp_norm = nn.LayerNorm(width)

    def forward(self, x_BND: Tensor) -> Tensor:
        B, N, D = x_BND.shape
        q, k, v = (m(x_BND).view(B, N, self.heads, D // self.heads).transpose(1, 2) for m in (self.q, self.k, self.v))
        mixed = self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D))
        x_BND = self.attention_norm(x_BND + dropout(mixed, self.dropout, self.training))
        h = self.down(dropout(F.gelu(self.up(x_BND)), self.dropout, self.training))
        out: Tensor = self.mlp_norm(x_BND + dropout(h, self.dropout, self.training))
        return out


class PatchTST(Model):
    """BTF -> BHO."""

    shard_plan = {"*": "replicate"}  # noqa: RUF012 - plain data, read only

    def __init__(
        self, shape: tuple[int, int, int, int], patch: tuple[int, int, int], width: int, blocks: list[_Block], dropout: tuple[float, float],
        *, revin: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        T, H, _, Q = shape
        self.shape, self.revin = shape, revin
        self.patch, self.stride, self.padding = patch
        self.dropout, self.head_dropout = dropout
        self.patches = (T + self.padding - self.patch) // self.stride + 1
        self.embed = nn.Linear(self.patch, width)
        self.positions = nn.Parameter(torch.empty(self.patches, width))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(self.patches * width, H * Q)

    def forward(self, x_BTF: Tensor) -> Tensor:
        _, H, K, Q = self.shape
        if self.revin:
            x_BTF, mean, deviation = forward_scale(x_BTF)
        x_BKT = x_BTF.transpose(1, 2)
        if self.padding:
            x_BKT = F.pad(x_BKT, (0, self.padding), mode="replicate")
        start = x_BKT.shape[2] - (self.patch + self.stride * (self.patches - 1))  # what does not fill a patch is left out at the beginning
        x_BKNP = x_BKT[:, :, start:].unfold(2, self.patch, self.stride)
        B = x_BTF.shape[0]  # not len(): torch.export would fix the number
        h = self.embed(x_BKNP).flatten(0, 1) + self.positions
        h = dropout(h, self.dropout, self.training)
        for block in self.blocks:
            h = block(h)
        out = self.head(dropout(h.flatten(1), self.head_dropout, self.training))
        out_BHO = out.view(B, K, H, Q).permute(0, 2, 1, 3).reshape(B, H, K * Q)
        return backward_scale(out_BHO, mean, deviation, K) if self.revin else out_BHO

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """Torch's rule for matrices; positions U(-0.02, 0.02), as the paper's code."""
        if name == "positions":
            nn.init.uniform_(p, -0.02, 0.02, generator=g)
        else:
            super().init_parameter(name, p, g)

    def blocks_to_compile(self) -> list[nn.Module]:
        return list(self.blocks)

    def flops_per_example(self, spec: DataSpec) -> float:
        """6 for each weight, series and patch (the head once a series), and attention over patches."""
        K, N, D = self.shape[2], self.patches, self.positions.shape[1]
        tokens = sum(m.weight.numel() for m in [self.embed, *self.blocks.modules()] if isinstance(m, nn.Linear))
        return K * (6.0 * N * tokens + 12.0 * len(self.blocks) * N * N * D + 6.0 * self.head.weight.numel())

    def activations_per_example(self, spec: DataSpec) -> float:
        """About 12 widths and two hidden layers a block, series and patch."""
        first = self.blocks[0]
        assert isinstance(first, _Block)
        K, N, D = self.shape[2], self.patches, self.positions.shape[1]
        return float(K * N * len(self.blocks) * (12 * D + 2 * first.up.out_features + 2 * first.heads * N))
