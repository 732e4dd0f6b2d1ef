"""Conformer: convolution beside attention for speech (Gulati et al. 2020, arXiv:2005.08100).

As in the paper: two 3x3 convolutions with stride 2 first; blocks of half a feed-forward, attention, convolution, half a feed-forward, and a
norm. Otherwise than there: positions are rotary (arXiv:2104.09864) instead of relative encodings, and LayerNorm stands for the batch norm
of the convolution module, so that a recording's outputs do not depend on others in its batch.

Shape legend: as in `mel.py`; D width, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, register
from tauon.models.base import Size
from tauon.models.families.mel import SpeechConfig, SpeechModel, frame_mask
from tauon.models.randomness import attention, dropout
from tauon.types import DataSpec

__all__ = ["Conformer", "ConformerConfig"]


@register("conformer")
class ConformerConfig(SpeechConfig):
    """Conformer on log-mel features, for speech with CTC; or for sounds."""

    mels: Size = 80
    layers: Count = Field(4, ge=1, le=1000)
    """Blocks."""
    width: Size = 144
    """Width of the hidden states (144 is the paper's Conformer S, with 16 layers and 4 heads)."""
    heads: Count = Field(4, ge=1, le=1024)
    """Attention heads; must divide width into even parts."""
    kernel: Count = Field(31, ge=1, le=255)
    """Frames that the convolution module sees; odd."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        width, heads = self.raw_value("width"), self.raw_value("heads")
        if width % (2 * heads):
            yield "heads", f"{heads} heads do not cut width {width} into even parts. Take a divisor of {width // 2}."
        if self.raw_value("mels") < 4:
            yield "mels", f"{self.raw_value('mels')} bands are quartered before the first block. Take at least 4."

    def build(self) -> Conformer:
        return Conformer(self)


class FeedForward(nn.Module):
    """Norm, widen four times, SiLU, narrow."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.norm, self.up, self.down, self.drop = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width), drop

    def forward(self, x_BSD: Tensor) -> Tensor:
        hidden = dropout(F.silu(self.up(self.norm(x_BSD))), self.drop, self.training)
        return dropout(self.down(hidden), self.drop, self.training)


class SelfAttention(nn.Module):
    """Rotary self-attention over valid frames."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.drop = heads, drop

    def forward(self, x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        B, S, D = x_BSD.shape
        q, k, v = self.qkv(self.norm(x_BSD)).view(B, S, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotated(q), rotated(k)
        seen = (mask_BS > 0)[:, None, None, :]
        y = attention(q, k, v, attn_mask=seen, dropout_p=self.drop if self.training else 0.0)
        out: Tensor = self.out(y.transpose(1, 2).reshape(B, S, D))
        return dropout(out, self.drop, self.training)


class Convolution(nn.Module):
    """Pointwise with a gate, depthwise, norm, SiLU, pointwise."""

    def __init__(self, width: int, kernel: int, drop: float) -> None:
        super().__init__()
        kernel |= 1
        self.norm, self.up, self.down, self.drop = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(width, width), drop
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.middle = nn.LayerNorm(width)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        y = F.glu(self.up(self.norm(x_BSD)), -1) * mask_BS.unsqueeze(-1)
        y = self.depthwise(y.transpose(1, 2)).transpose(1, 2)
        return dropout(self.down(F.silu(self.middle(y))), self.drop, self.training)


class Block(nn.Module):
    """One Conformer block."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.before, self.after = FeedForward(config.width, config.dropout), FeedForward(config.width, config.dropout)
        self.attention = SelfAttention(config.width, config.heads, config.dropout)
        self.convolution = Convolution(config.width, config.kernel, config.dropout)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        x_BSD = x_BSD + 0.5 * self.before(x_BSD)
        x_BSD = x_BSD + self.attention(x_BSD, mask_BS)
        x_BSD = x_BSD + self.convolution(x_BSD, mask_BS)
        out: Tensor = self.norm(x_BSD + 0.5 * self.after(x_BSD))
        return out


class Conformer(SpeechModel):
    """See `ConformerConfig`."""

    modules_to_save = ("head.*",)
    shard_plan = {"*": "replicate"}  # noqa: RUF012 - plain data

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.features = config.features()
        assert config.outputs is not None
        width = config.width
        self.subsample = nn.ModuleList([nn.Conv2d(1, width, 3, 2, 1), nn.Conv2d(width, width, 3, 2, 1)])
        self.embed = nn.Linear(width * -(-config.mels // 4), width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = nn.Linear(width, config.outputs)
        self.samples, self.drop = config.samples or 0, config.dropout

    def map_layer(self) -> str | None:
        return f"blocks.{len(self.blocks) - 1}"

    def blocks_to_compile(self) -> list[nn.Module]:
        return list(self.blocks)

    def encode(self, mel_BSM: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
        x = mel_BSM.unsqueeze(1)
        for conv in self.subsample:
            x = F.relu(conv(x * frame_mask(frames_B, x.shape[2])[:, None, :, None]))
            frames_B = (frames_B + 1) // 2
        x = dropout(self.embed(x.transpose(1, 2).flatten(2)), self.drop, self.training)
        mask_BS = frame_mask(frames_B, x.shape[1])
        for block in self.blocks:
            x = block(x, mask_BS)
        return x, frames_B

    def outputs(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.head(hidden)
        return out

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        if name.startswith("head."):
            nn.init.zeros_(p)
        else:
            super().init_parameter(name, p, g)

    def flops_per_example(self, spec: DataSpec) -> float:
        """6 for each weight times the frames that it visits, and the attention's two products."""
        frames = self.samples / self.features.hop / 4
        weights = sum(p.numel() for n, p in self.named_parameters() if p.ndim >= 2 and not n.startswith(("subsample", "head")))
        width = self.head.in_features
        pixels = frames * self.features.mels / 4
        first = sum(cast(nn.Conv2d, c).weight.numel() * pixels * more for c, more in zip(self.subsample, (4, 1), strict=True))
        return 6.0 * (weights * frames + first) + 12.0 * len(self.blocks) * frames**2 * width

    def activations_per_example(self, spec: DataSpec) -> float:
        """About thirty of a block's hidden states, the attention's weights, the first convolutions, the spectrum."""
        frames, width = self.samples / self.features.hop / 4, self.head.in_features
        first = 4.0 * frames * self.features.mels * width
        return first + len(self.blocks) * (30.0 * frames * width + 8.0 * frames**2) + 16.0 * frames * self.features.fft


def rotated(x_BHSE: Tensor) -> Tensor:
    """Rotary positions on pairs (first half, second half) of each head."""
    half = x_BHSE.shape[-1] // 2
    at = torch.arange(x_BHSE.shape[2], device=x_BHSE.device, dtype=torch.float32)
    speed = 10000.0 ** (-torch.arange(half, device=x_BHSE.device, dtype=torch.float32) / half)
    cos, sin = (at[:, None] * speed).cos().to(x_BHSE.dtype), (at[:, None] * speed).sin().to(x_BHSE.dtype)
    a, b = x_BHSE[..., :half], x_BHSE[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
