"""A 1-D convolutional network over log-mel frames: convolution, LayerNorm over channels, GELU, stage by stage.

Norms look at one frame at a time, so that padding behind a recording changes nothing. Shape legend: as in `mel.py`; D channels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, register
from tauon.models.base import Size
from tauon.models.families.mel import SpeechConfig, SpeechModel, frame_mask
from tauon.models.randomness import dropout
from tauon.types import DataSpec

__all__ = ["SpeechCNN", "SpeechCNNConfig"]


@register("speech-cnn")
class SpeechCNNConfig(SpeechConfig):
    """1-D CNN on log-mel features, for words and sounds of about a second; with CTC for short texts."""

    channels: tuple[Size, ...] = (96, 128, 160)
    """Channels of each stage. The first two stages halve the frames."""
    kernel: Count = Field(5, ge=1, le=99)
    """Frames that a convolution sees; odd."""
    convs_per_stage: Count = Field(2, ge=1, le=100)
    """Convolutions in a stage; all but the first are added to what they read."""

    def build(self) -> SpeechCNN:
        return SpeechCNN(self)


class SpeechCNN(SpeechModel):
    """See `SpeechCNNConfig`."""

    modules_to_save = ("head.*",)
    shard_plan = {"*": "replicate"}  # noqa: RUF012 - plain data

    def __init__(self, config: SpeechCNNConfig) -> None:
        super().__init__()
        self.features = config.features()
        assert config.outputs is not None
        widths = [config.mels, *config.channels]
        kernel = config.kernel | 1
        self.per_stage, self.drop = config.convs_per_stage, config.dropout
        self.convs = nn.ModuleList(
            nn.Conv1d(a if i == 0 else b, b, kernel, padding=kernel // 2)
            for a, b in pairwise(widths)
            for i in range(config.convs_per_stage)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(b) for b in widths[1:] for _ in range(config.convs_per_stage))
        self.head = nn.Linear(widths[-1], config.outputs)
        self.samples = config.samples or 0

    def encode(self, mel_BSM: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
        x = mel_BSM
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            mask = frame_mask(frames_B, x.shape[1]).unsqueeze(-1)
            y = F.gelu(norm(conv((x * mask).transpose(1, 2)).transpose(1, 2)))
            x = x + dropout(y, self.drop, self.training) if i % self.per_stage else y
            if (i + 1) % self.per_stage == 0 and i // self.per_stage < 2:
                mask = frame_mask(frames_B, x.shape[1]).unsqueeze(-1)
                x = F.max_pool1d((x * mask).transpose(1, 2), 2, ceil_mode=True).transpose(1, 2)
                frames_B = (frames_B + 1) // 2
        return x, frames_B

    def outputs(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.head(dropout(hidden, self.drop, self.training))
        return out

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """He initialisation over fan-in (arXiv:1502.01852); the head at zero."""
        if p.ndim == 3:
            nn.init.normal_(p, 0.0, (2 / p[0].numel()) ** 0.5, generator=g)
        elif name.startswith("head."):
            nn.init.zeros_(p)
        else:
            super().init_parameter(name, p, g)

    def _frames(self, conv: int) -> float:
        frames: float = self.samples / self.features.hop / 2 ** min(2, conv // self.per_stage)
        return frames

    def map_layer(self) -> str | None:
        return f"norms.{len(self.norms) - 1}"

    def flops_per_example(self, spec: DataSpec) -> float:
        """6 for each weight times the frames that it visits."""
        visited: float = sum(cast(nn.Conv1d, c).weight.numel() * self._frames(i) for i, c in enumerate(self.convs))
        return 6.0 * (visited + self.head.weight.numel())

    def activations_per_example(self, spec: DataSpec) -> float:
        """Waveform and spectrum, and four of each convolution's output."""
        spectrum = 4.0 * (self.samples / self.features.hop) * self.features.fft
        return spectrum + sum(4.0 * cast(nn.LayerNorm, n).weight.numel() * self._frames(i) for i, n in enumerate(self.norms))
