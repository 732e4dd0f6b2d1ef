"""Recordings made here: tones with a little noise, written as WAV files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np


def tone(frequency: float, seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """A sine with a little noise, in [-1, 1]."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng([seed, round(frequency), len(t)]).standard_normal(len(t))
    return (0.5 * np.sin(2 * np.pi * frequency * t) + 0.01 * noise).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    """16 bits, one channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(rate)
        w.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
