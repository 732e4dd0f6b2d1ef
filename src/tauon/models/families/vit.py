"""ViT: an image as a sequence of patches through a transformer encoder (Dosovitskiy et al. 2020, arXiv:2010.11929).

Pre-norm blocks, exact GELU, learned positions, the class token's last state into a linear head: Hugging Face's `ViTForImageClassification`
to the unit (ViT-B/16: 86,567,656 parameters at 224 pixels and 1,000 classes). A patch is flattened (channels, rows, columns) and goes
through a linear layer, which is the same as the convolution of stride P whose weights that layout holds.

Attention keeps all that mixes positions in `attend`, as in `transformer.py`, so that tensor parallelism cuts it as it cuts a GPT.

Shapes: B batch, N patches, T = N + 1 positions, D width, H heads, K head size, P pixels of a patch's side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Fraction, register
from tauon.errors import Problem, RecipeError
from tauon.models.attention import attend_heads
from tauon.models.base import Model, ModelConfig, Size, block_number
from tauon.models.families.mlp import array_sizes
from tauon.models.families.transformer import Attention
from tauon.models.kv_cache import KVCache, RowCache
from tauon.models.norm import drop_path
from tauon.models.randomness import dropout
from tauon.types import DataSpec

__all__ = ["ViT", "ViTConfig"]

EPS = 1e-12
"""Of every LayerNorm, as in the published configurations."""


@register("vit")
class ViTConfig(ModelConfig):
    """Vision transformer; the defaults are ViT-B/16. For small images take a small patch: 4 at 32 pixels."""

    patch: Size = 16
    """Side of a patch, in pixels; must divide height and width."""
    layers: Count = Field(12, ge=1, le=10_000)
    """Number of blocks."""
    width: Size = 768
    """Size of the residual stream, D."""
    heads: Size = 12
    """Attention heads; each has width / heads dimensions."""
    mlp_width: Size | None = None
    """Hidden size of the MLP. Left out: 4 x width."""
    dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of activations dropped behind the embeddings, attention and the MLP, in training."""
    drop_path: Fraction = Field(0.0, ge=0, lt=1)
    """Stochastic depth: share of examples that skip the last block's parts; it rises evenly from 0 at the first (arXiv:1603.09382)."""
    input_shape: tuple[Size, Size, Size] | None = None
    """(channels, height, width) of an image. Left out: the data's."""
    outputs: Size | None = None
    """Classes or targets. Left out: the data's."""

    def problems(self) -> Iterator[tuple[str, str]]:
        width, heads = self.raw_value("width"), self.raw_value("heads")
        if width % heads:
            yield "heads", f"{heads} heads do not divide width {width}. Take a divisor of {width}."

    def resolve(self, spec: DataSpec) -> Self:
        shape, outputs = array_sizes(self, spec)
        wrong = []
        if len(shape) != 3:
            wrong.append(Problem("model.kind", f"vit needs images (channels, height, width), and an example here is {shape}. Take mlp."))
        elif shape[1] % self.patch or shape[2] % self.patch:
            wrong.append(Problem("model.patch", f"{self.patch} does not divide {shape[1]}x{shape[2]} pixels. Take a common divisor."))
        if self.input_shape not in (None, shape):
            wrong.append(Problem("model.input_shape", f"{self.input_shape}, but an example here is {shape}. Leave it out."))
        if self.outputs not in (None, outputs):
            wrong.append(Problem("model.outputs", f"{self.outputs}, but the data has {outputs}. Leave it out."))
        if wrong:
            raise RecipeError(wrong)
        return self.model_copy(update={"input_shape": shape, "outputs": outputs})

    def build(self) -> ViT:
        if self.input_shape is None or self.outputs is None:
            raise RecipeError([Problem("model", "input_shape and outputs are not known yet: resolve the config against the data first.")])
        hidden = self.mlp_width or 4 * self.width
        last = max(1, self.layers - 1)
        blocks = [_Block(self.width, self.heads, hidden, self.dropout, self.drop_path * i / last) for i in range(self.layers)]
        return ViT(blocks, self.input_shape, self.patch, self.width, self.outputs, self.dropout)


class _Attention(Attention):
    """Self-attention in which every position sees every other."""

    def attend(
        self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, rotate: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None,
        cache: tuple[KVCache | RowCache, int] | None = None,
    ) -> Tensor:  # fmt: skip
        q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
        return attend_heads(q, k, v, mask, kernel=self.kernel).transpose(1, 2)


class _MLP(nn.Module):
    """down(gelu(up x)), the exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x_BTD)))
        return out


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, EPS)
        self.attention = _Attention(width, heads, heads, bias=True, qk_norm=False)
        self.mlp_norm = nn.LayerNorm(width, EPS)
        self.mlp = _MLP(width, hidden)
        self.dropout, self.drop_path = dropout, drop_path

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self._thinned(self.attention(self.attention_norm(x_BTD), None, None))
        return x_BTD + self._thinned(self.mlp(self.mlp_norm(x_BTD)))

    def _thinned(self, x_BTD: Tensor) -> Tensor:
        return drop_path(dropout(x_BTD, self.dropout, self.training), self.drop_path, self.training)


class ViT(Model):
    """BCHW -> B outputs."""

    modules_to_save = ("head.*",)
    shard_plan = {  # noqa: RUF012 - plain data, read only
        "patches.*": "replicate",
        "first.weight": "replicate",
        "positions.weight": "replicate",
        "*norm*": "replicate",
        "*.q.*": "colwise",
        "*.k.*": "colwise",
        "*.v.*": "colwise",
        "*.out.*": "rowwise",
        "*.up.*": "colwise",
        "*.down.*": "rowwise",
        "head.*": "replicate",
    }

    def __init__(self, blocks: list[_Block], image: tuple[int, int, int], patch: int, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.image, self.patch, self.dropout = image, patch, dropout
        self.count = (image[1] // patch) * (image[2] // patch)
        self.patches = nn.Linear(image[0] * patch * patch, width)
        # Modules of their own, not bare parameters: what cuts a model goes by modules.
        self.first = nn.Embedding(1, width)
        self.positions = nn.Embedding(self.count + 1, width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, EPS)
        self.head = nn.Linear(width, outputs)

    @property
    def layers(self) -> list[_Block]:
        """The blocks, in order."""
        return cast(list[_Block], list(self.blocks))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        P = self.patch
        x = x_BCHW.reshape(B, C, H // P, P, W // P, P).permute(0, 2, 4, 1, 3, 5).reshape(B, self.count, C * P * P)
        at = torch.arange(self.count + 1, device=x.device)
        x_BND = self.patches(x)
        first_B1D = self.first(torch.zeros(B, 1, dtype=torch.int64, device=x.device)).to(x_BND.dtype)
        x_BTD = torch.cat([first_B1D, x_BND], dim=1) + self.positions(at)
        x_BTD = dropout(x_BTD, self.dropout, self.training)
        for block in self.layers:
            x_BTD = block(x_BTD)
        out: Tensor = self.head(self.norm(x_BTD[:, 0]))
        return out

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """Matrices and positions from a normal of deviation 0.02 cut at two deviations, the class token and the head at zero (the paper's
        code); norms at 1.
        """
        if name.startswith("head.") or name == "first.weight":
            nn.init.zeros_(p)
        elif p.ndim >= 2:
            nn.init.trunc_normal_(p, 0.0, 0.02, -0.04, 0.04, generator=g)
        else:
            super().init_parameter(name, p, g)

    def head_counts(self) -> list[tuple[str, int]]:
        return [("heads", self.layers[0].attention.heads)]

    def map_layer(self) -> str | None:
        return f"blocks.{len(self.blocks) - 1}.attention_norm"  # behind the last attention, the class token sees no patch

    def blocks_to_compile(self) -> list[nn.Module]:
        return list(self.layers)

    def layer_of(self, name: str) -> tuple[int, int]:
        return block_number(name, len(self.blocks))

    def flops_per_example(self, spec: DataSpec) -> float:
        """6 for each weight that multiplies, times its positions; attention's 12 T T D a layer."""
        T = self.count + 1
        inside = sum(p.numel() for block in self.blocks for p in block.parameters() if p.ndim == 2)
        width = self.head.in_features
        attention = 12.0 * T * T * width * len(self.blocks)
        return 6.0 * (inside * T + self.patches.weight.numel() * self.count + self.head.weight.numel()) + attention

    def activations_per_example(self, spec: DataSpec) -> float:
        """About 10 D + 2 hidden numbers a position and block, and attention's probabilities where no fused kernel spares them."""
        T, width = self.count + 1, self.head.in_features
        block = self.layers[0]
        return len(self.blocks) * T * (10.0 * width + 2.0 * block.mlp.up.out_features + block.attention.heads * T)
