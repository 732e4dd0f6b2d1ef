"""Log-mel features of waveforms, made inside the model, so that what is served hears what was trained; and SpecAugment.

Triangles on the mel scale (Stevens et al. 1937; the HTK formula 2595 log10(1 + f / 700)), as transformers' and torchaudio's
`mel_filter_bank` with mel_scale="htk", norm=None. Each recording is normalised by itself: every band to mean 0 and variance 1 over
its valid frames, so that nothing is fitted on data.

Shape legend: B batch, T samples, S frames, M mel bands, K frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Fraction
from tauon.errors import Problem, RecipeError
from tauon.models.base import Model, ModelConfig, Size
from tauon.models.randomness import uniform_rows
from tauon.types import DataSpec

__all__ = ["LogMel", "SpeechConfig", "SpeechModel", "frame_mask", "mel_filters", "spec_augment"]


class SpeechConfig(ModelConfig):
    """What every model of recordings shares: features, and sizes that the data gives."""

    input_kind = "signals"

    mels: Size = 40
    """Mel bands."""
    window_ms: float = Field(25.0, gt=0, le=1000)
    """Length of the window of a frame, in milliseconds."""
    hop_ms: float = Field(10.0, gt=0, le=1000)
    """Time from a frame to the next, in milliseconds."""
    freq_masks: Count = Field(0, ge=0, le=16)
    """SpecAugment (Park et al. 2019, arXiv:1904.08779): bands that are hidden in training, so many stretches of up to a fifth of all."""
    time_masks: Count = Field(0, ge=0, le=16)
    """SpecAugment: frames that are hidden in training, so many stretches of up to a tenth of the recording."""
    dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of activations dropped in training."""
    sample_rate: Size | None = None
    """Samples a second. Left out: the data's."""
    samples: Size | None = None
    """Samples of an example. Left out: the data's."""
    outputs: Size | None = None
    """Classes, or characters with CTC's blank. Left out: the data's."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("hop_ms") > self.raw_value("window_ms"):
            yield (
                "hop_ms",
                f"{self.raw_value('hop_ms'):g} is longer than window_ms {self.raw_value('window_ms'):g}: sound between frames would be lost.",
            )

    @classmethod
    def random_fields(cls) -> tuple[str, ...]:
        return (*super().random_fields(), "freq_masks", "time_masks")

    def resolve(self, spec: DataSpec) -> Self:
        if spec.sample_rate is None or spec.input_shape is None or spec.outputs is None:
            raise RecipeError([Problem("model.kind", f"{self.kind_} hears recordings, and this data has none. Take another model.")])
        known = {"sample_rate": spec.sample_rate, "samples": spec.input_shape[0], "outputs": spec.outputs}
        for name, value in known.items():
            asked = getattr(self, name)
            if asked not in (None, value):
                raise RecipeError([Problem(f"model.{name}", f"{asked:,}, but the data has {value:,}. Leave it out.")])
        if spec.sample_rate * self.window_ms / 1000 < 16:
            raise RecipeError(
                [Problem("model.window_ms", f"{self.window_ms:g} ms are under 16 samples at {spec.sample_rate:,} a second. Take more.")]
            )
        return self.model_copy(update=known)

    def features(self) -> LogMel:
        """The first layer. Raises `RecipeError` before the config was resolved."""
        if self.sample_rate is None or self.samples is None or self.outputs is None:
            raise RecipeError(
                [Problem("model", "sample_rate, samples and outputs are not known yet: resolve the config against the data first.")]
            )
        return LogMel(self.sample_rate, self.mels, self.window_ms, self.hop_ms, self.freq_masks, self.time_masks)


class LogMel(nn.Module):
    """Waveforms BT -> normalised log-mel energies BSM, frames in the middle of their windows. No parameters."""

    def __init__(self, rate: int, mels: int, window_ms: float, hop_ms: float, freq_masks: int = 0, time_masks: int = 0) -> None:
        super().__init__()
        self.rate, self.mels = rate, mels
        self.window, self.hop = round(rate * window_ms / 1000), max(1, round(rate * hop_ms / 1000))
        self.fft = 1 << (self.window - 1).bit_length()
        self.freq_masks, self.time_masks = freq_masks, time_masks
        self.register_buffer("hann", torch.empty(self.window), persistent=False)
        self.register_buffer("filters", torch.empty(self.fft // 2 + 1, mels), persistent=False)

    hann: Tensor
    filters: Tensor

    def fill(self) -> None:
        """Window and filters, once the module has left the meta device."""
        self.hann.copy_(torch.hann_window(self.window))
        self.filters.copy_(mel_filters(self.fft // 2 + 1, self.mels, self.rate))

    def frames(self, lengths_B: Tensor) -> Tensor:
        """Valid frames of recordings of so many samples."""
        return lengths_B // self.hop + 1

    def forward(self, x_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """(features BSM in fp32, valid frames B)."""
        with torch.autocast(x_BT.device.type, enabled=False):
            x_BT = x_BT.float()
            spectrum = torch.stft(
                x_BT, self.fft, self.hop, self.window, self.hann, center=True, pad_mode="constant", return_complex=True
            )  # fmt: skip
            power_BSK = spectrum.abs().square().transpose(1, 2)
            mel_BSM = torch.log(power_BSK @ self.filters + 1e-6)
            frames_B = self.frames(lengths_B)
            mask_BS1 = frame_mask(frames_B, mel_BSM.shape[1]).unsqueeze(-1)
            count_B11 = frames_B.view(-1, 1, 1)
            mean = (mel_BSM * mask_BS1).sum(1, keepdim=True) / count_B11
            spread = ((mel_BSM - mean).square() * mask_BS1).sum(1, keepdim=True) / count_B11
            mel_BSM = (mel_BSM - mean) / (spread + 1e-5).sqrt() * mask_BS1
        if self.training and (self.freq_masks or self.time_masks):
            mel_BSM = spec_augment(mel_BSM, frames_B, self.freq_masks, self.time_masks)
        return mel_BSM, frames_B


def frame_mask(frames_B: Tensor, n: int) -> Tensor:
    """BS: 1 at valid frames, 0 behind them."""
    return (torch.arange(n, device=frames_B.device) < frames_B.unsqueeze(1)).float()


def mel_filters(frequencies: int, mels: int, rate: int) -> Tensor:
    """(K, M): triangles that are 1 at their centres, evenly spaced in mel from 0 to half the rate. Computed in float64."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2, dtype=torch.float64) / 2595) - 1)
    at = torch.linspace(0, rate / 2, frequencies, dtype=torch.float64)
    rising = (at[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at[:, None]) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


def spec_augment(mel_BSM: Tensor, frames_B: Tensor, freq_masks: int, time_masks: int) -> Tensor:
    """Hide stretches of bands and frames: zero is the mean. Each recording has draws of its own."""
    B, S, M = mel_BSM.shape
    keep = torch.ones(B, S, M, device=mel_BSM.device)
    for along, number, most in ((M, freq_masks, 0.2), (S, time_masks, 0.1)):
        at = torch.arange(along, device=mel_BSM.device)
        valid_B = torch.full((B,), M, device=mel_BSM.device) if along == M else frames_B
        for _ in range(number):
            width_B = uniform_rows(B, mel_BSM.device) * most * valid_B
            first_B = uniform_rows(B, mel_BSM.device) * (valid_B - width_B)
            hidden = (at >= first_B[:, None]) & (at < (first_B + width_B)[:, None])
            keep = keep * (~hidden).float().unsqueeze(1 if along == M else 2)
    return mel_BSM * keep


class SpeechModel(Model):
    """Waveforms to outputs: of the whole recording, or of each frame that is left after subsampling."""

    features: LogMel

    def forward(self, x_BT: Tensor, lengths_B: Tensor, frames: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Outputs BC of recordings; with `frames`, (outputs BSC, valid frames B)."""
        return self.from_features(*self.features(x_BT, lengths_B), frames=frames)

    def from_features(self, mel_BSM: Tensor, frames_B: Tensor, *, frames: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """`forward` behind the features."""
        hidden_BSD, frames_B = self.encode(mel_BSM, frames_B)
        if frames:
            return self.outputs(hidden_BSD), frames_B
        mask = frame_mask(frames_B, hidden_BSD.shape[1]).unsqueeze(-1)
        return self.outputs((hidden_BSD * mask).sum(1) / frames_B.unsqueeze(1))

    def encode(self, mel_BSM: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden states BSD, valid frames B)."""
        raise NotImplementedError

    def outputs(self, hidden: Tensor) -> Tensor:
        """From hidden states to outputs."""
        raise NotImplementedError

    def init_buffers(self) -> None:
        self.features.fill()
