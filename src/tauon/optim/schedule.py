"""Learning-rate schedules. Each is a pure function of (step, total steps), so resuming needs no state.

Factors are relative to the peak rate; steps count from 0 (the first update) to total - 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydantic import Field

from tauon.config import Count, Fraction, Registered, register

__all__ = ["WSD", "Constant", "Cosine", "Linear", "ScheduleConfig"]


class ScheduleConfig(Registered, family="schedule", default="cosine"):
    """Learning-rate schedule."""

    warmup: Fraction | Count = Field(0.02, ge=0)
    """Linear warm-up from zero: a share of all steps if below 1 (5%), otherwise a number of steps."""

    def problems(self) -> Iterator[tuple[str, str]]:
        warmup = self.raw_value("warmup")
        if isinstance(warmup, float) and warmup >= 1 and (warmup == 1 or not warmup.is_integer()):
            yield "warmup", f"is {warmup:g}: expected a share below 100% or a whole number of steps, e.g. 5% or 200."

    def warmup_steps(self, total: int) -> int:
        return round(self.warmup * total) if self.warmup < 1 else int(self.warmup)

    def factor(self, step: int, total: int) -> float:
        """Learning rate at `step` as a share of the peak: in (0, 1]."""
        rise = self.warmup_steps(total)
        if step < rise:
            return (step + 1) / (rise + 1)
        return self.after_warmup((step - rise) / max(1, total - rise))

    def after_warmup(self, progress: float) -> float:
        """The share of the peak at `progress` in [0, 1) after the warm-up."""
        raise NotImplementedError


@register("constant")
class Constant(ScheduleConfig):
    """Warm-up, then constant at the peak."""

    def after_warmup(self, progress: float) -> float:
        return 1.0


@register("cosine")
class Cosine(ScheduleConfig):
    """Half a cosine from the peak to `final` (Loshchilov & Hutter 2017, arXiv:1608.03983)."""

    final: Fraction = Field(0.1, ge=0, le=1)
    """Share of the peak at the end."""

    def after_warmup(self, progress: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@register("linear")
class Linear(ScheduleConfig):
    """Linear from the peak to `final` (arXiv:2502.15938: decay to zero is hard to beat)."""

    final: Fraction = Field(0.0, ge=0, le=1)
    """Share of the peak at the end."""

    def after_warmup(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 - min(1.0, progress))


@register("wsd")
class WSD(ScheduleConfig):
    """Warm-up, stable, decay: the peak rate, then linear to `final` (MiniCPM, arXiv:2404.06395)."""

    decay: Fraction = Field(0.2, gt=0, le=1)
    """Length of the final decay, as a share of the steps after warm-up."""
    final: Fraction = Field(0.0, ge=0, le=1)
    """Share of the peak at the end."""

    def after_warmup(self, progress: float) -> float:
        left = (1 - progress) / self.decay
        return 1.0 if left >= 1 else self.final + (1 - self.final) * max(0.0, left)
