"""Noise schedules that depend on the step only. Those that depend on the data are in `adaptive.py`, noise that is correlated over steps is in
`correlated.py`.

A factor multiplies the base noise multiplier, that of the first step. Each step is accounted with its own multiplier (`NoisePlan.releases`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from tauon.config import Count, Fraction, Registered, register

__all__ = ["Constant", "Cosine", "Exponential", "Linear", "NoiseConfig", "Steps"]


class NoiseConfig(Registered, family="noise", default="constant"):
    """Noise schedule over the steps."""

    def factor(self, step: int, total: int, seen: Mapping[str, Any] | None = None) -> float:
        """Noise multiplier of step `step` (0 to total - 1), relative to the first step. `seen`: decisions of an adaptive kind."""
        raise NotImplementedError


@register("constant")
class Constant(NoiseConfig):
    """The same noise in every step."""

    def factor(self, step: int, total: int, seen: Mapping[str, Any] | None = None) -> float:
        return 1.0


class _Falling(NoiseConfig):
    final: float = Field(0.5, gt=0, le=20)
    """Noise of the last step, relative to the first; above 1 it grows."""

    def factor(self, step: int, total: int, seen: Mapping[str, Any] | None = None) -> float:
        return self.at(min(1.0, step / max(1, total - 1)))

    def at(self, progress: float) -> float:
        """The factor at `progress` in [0, 1]."""
        raise NotImplementedError


@register("linear")
class Linear(_Falling):
    """Linear from the first step's noise to `final` times it."""

    def at(self, progress: float) -> float:
        return 1 + (self.final - 1) * progress


@register("exponential")
class Exponential(_Falling):
    """Exponential: the same ratio from each step to the next (Yu et al. 2019, arXiv:1904.02200, per epoch there)."""

    def at(self, progress: float) -> float:
        return float(self.final**progress)


@register("cosine")
class Cosine(_Falling):
    """Half a cosine from the first step's noise to `final` times it."""

    def at(self, progress: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@register("step")
class Steps(NoiseConfig):
    """Multiply the noise by `gamma` at each milestone."""

    at: tuple[Fraction | Count, ...] = (0.5, 0.75)
    """Milestones: shares of all steps if below 1 (50%), otherwise step numbers."""
    gamma: float = Field(0.7, gt=0, le=20)
    """Factor at each milestone; above 1 the noise grows."""

    def problems(self) -> Iterator[tuple[str, str]]:
        at = self.raw_value("at")
        if not at:
            yield "at", "has no milestone. Set one (50%), or use the kind constant."
        elif any((a < 1) != (at[0] < 1) for a in at) or list(at) != sorted(set(at)) or at[0] <= 0:
            yield "at", f"got {list(at)}, expected rising milestones above 0, all shares (50%) or all step numbers."

    def factor(self, step: int, total: int, seen: Mapping[str, Any] | None = None) -> float:
        return float(self.gamma ** sum(step >= (round(a * total) if a < 1 else a) for a in self.at))
