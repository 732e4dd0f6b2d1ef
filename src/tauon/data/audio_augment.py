"""Augmentation of recordings: speed, gain, shift, noise. Deterministic in (seed, place in the list, epoch, example).

Masks of the spectrogram (SpecAugment) are applied inside the models, which compute it. Sources: Ko et al. 2015 (speed perturbation).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Fraction, register
from tauon.data.augment import AugmentConfig, Draws

__all__ = ["AudioAugmentConfig", "AudioNoiseConfig", "AudioShiftConfig", "GainConfig", "SpeedConfig"]

Waves = Sequence[NDArray[np.float32]]


class AudioAugmentConfig(AugmentConfig):
    """Base class of random changes of recordings."""

    def play(self, waves: Waves, rate: int, draws: Draws) -> list[NDArray[np.float32]]:
        """Return the changed recordings; the input is not modified."""
        raise NotImplementedError


@register("speed")
class SpeedConfig(AudioAugmentConfig):
    """Play faster or slower, which changes the pitch too; linear resampling."""

    by: Fraction = Field(0.1, gt=0, lt=0.9)
    """The factor is drawn uniformly from 1 - by to 1 + by."""

    def play(self, waves: Waves, rate: int, draws: Draws) -> list[NDArray[np.float32]]:
        factors = draws.uniform(1, 1 - self.by, 1 + self.by)[:, 0]
        changed = []
        for wave, factor in zip(waves, factors.tolist(), strict=True):
            n = max(2, round(len(wave) / factor))
            changed.append(np.interp(np.linspace(0, len(wave) - 1, n), np.arange(len(wave)), wave).astype(np.float32))
        return changed


@register("gain")
class GainConfig(AudioAugmentConfig):
    """Louder or softer."""

    decibels: float = Field(6.0, gt=0, le=60)
    """Drawn uniformly from -decibels to decibels."""

    def play(self, waves: Waves, rate: int, draws: Draws) -> list[NDArray[np.float32]]:
        factors = 10 ** (draws.uniform(1, -self.decibels, self.decibels)[:, 0] / 20)
        return [wave * np.float32(f) for wave, f in zip(waves, factors, strict=True)]


@register("shift-audio")
class AudioShiftConfig(AudioAugmentConfig):
    """Start earlier or later: add silence at the start, or cut part of it off."""

    seconds: float = Field(0.05, gt=0, le=60)
    """Drawn uniformly from -seconds to seconds."""

    def play(self, waves: Waves, rate: int, draws: Draws) -> list[NDArray[np.float32]]:
        by = np.round(draws.uniform(1, -self.seconds, self.seconds)[:, 0] * rate).astype(int)
        return [
            np.concatenate([np.zeros(n, np.float32), wave]) if n > 0 else wave[min(-n, len(wave) - 1) :]
            for wave, n in zip(waves, by.tolist(), strict=True)
        ]


@register("noise-audio")
class AudioNoiseConfig(AudioAugmentConfig):
    """Add white noise at a random signal-to-noise ratio."""

    decibels: tuple[float, float] = (15.0, 40.0)
    """Range of the signal-to-noise ratio, drawn uniformly."""

    def play(self, waves: Waves, rate: int, draws: Draws) -> list[NDArray[np.float32]]:
        low, high = self.decibels
        ratios = draws.uniform(1, low, high)[:, 0]
        seeds = (draws.uniform(2)[:, 1] * 2**31).astype(np.int64)
        changed = []
        for wave, ratio, seed in zip(waves, ratios.tolist(), seeds.tolist(), strict=True):
            noise = np.random.default_rng(seed).standard_normal(len(wave), np.float32)
            loud = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
            changed.append(wave + noise * np.float32(loud * 10 ** (-ratio / 20)))
        return changed
