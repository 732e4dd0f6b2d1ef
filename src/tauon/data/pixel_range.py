"""Images deeper than 8 bits: one range of values for the whole data set, so that a dark image stays darker than a bright one.

The range is set (`data.source.value_range`) or measured over the training part, and saved in `data.json` and in every checkpoint. Values
become numbers from 0 (black) to 255 (white) without rounding to bytes, so that 12 bits keep their 4,096 levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["PixelRange"]


@dataclass(frozen=True)
class PixelRange:
    """value -> 255 (value - low) / (high - low)."""

    low: float
    high: float
    why: str
    clip: bool = False
    """Whether values outside become black or white: if the range was set in the recipe."""

    @classmethod
    def measure(cls, pictures: NDArray[Any], by: Literal["bits", "values"]) -> PixelRange:
        """Return the range of training images (N, C, H, W).

        Args:
            pictures: their raw values.
            by: bits: 0 to the largest number with the bits in use, if no value is negative; values: 0 to 1 or 0 to 255 if all values
                fit, else from the lowest to the highest value.

        >>> PixelRange.measure(np.array([[[[17, 4000]]]]), "bits").high
        4095.0
        """
        low, high = float(pictures.min()), float(pictures.max())
        if by == "bits" and low >= 0:
            bits = max(8, int(high).bit_length())
            return cls(0.0, float(2**bits - 1), f"{bits} bits are in use in the training images")
        if low >= 0 and high <= 255:
            top = 1.0 if high <= 1 else 255.0
            return cls(0.0, top, f"the training images go from {low:g} to {high:g}")
        return cls(low, high if high > low else low + 1, "lowest and highest value of the training images")

    def __call__(self, pictures: NDArray[Any]) -> NDArray[np.float32]:
        """Return float32 from 0 to 255; outside that range if a new image exceeds the measured range and there is no clipping."""
        out = np.empty(pictures.shape, np.float32)
        for start in range(0, len(pictures), 256):  # in chunks: float64 would need eight times the bytes of the data set
            part = (pictures[start : start + 256].astype(np.float64) - self.low) * (255.0 / (self.high - self.low))
            out[start : start + 256] = np.clip(part, 0, 255) if self.clip else part
        return out

    def to_json(self) -> dict[str, Any]:
        """All that `from_json` needs; JSON values only."""
        return {"low": self.low, "high": self.high, "why": self.why, "clip": self.clip}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PixelRange:
        """What `to_json` gave."""
        return cls(data["low"], data["high"], data["why"], data["clip"])
