"""Two interleaved half circles with noise: a table of two features and two classes, drawn from a seed."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from tauon.config import Count, register
from tauon.data import Arrays, SourceConfig

__all__ = ["MoonsConfig"]


@register("moons")
class MoonsConfig(SourceConfig):
    """Two moons."""

    rows: Count = Field(400, ge=2)
    """Points, half of each moon."""
    noise: float = Field(0.1, ge=0)
    """Standard deviation of each coordinate, in radii."""
    seed: Count = 0
    """Of the noise and the positions."""

    provides: ClassVar[Literal["arrays"]] = "arrays"

    def arrays(self) -> Arrays:
        g = np.random.default_rng(self.seed)
        moon = np.arange(self.rows) % 2
        angle = np.pi * (g.random(self.rows) + moon)
        points = np.stack([np.cos(angle) + moon, np.sin(angle) + 0.5 * moon], axis=1)
        noisy = points + self.noise * g.standard_normal(points.shape)
        return Arrays(noisy.astype(np.float32), moon.astype(np.int64), ("x", "y"), ("upper", "lower"))
