"""More learning-rate schedules: step, exponential, polynomial, cosine with restarts, one-cycle, and plateau, the only one that depends
on validation. Like those in `schedule.py`, each is a pure function of (step, total steps); the state of plateau is in the job's notes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from tauon.config import Count, Fraction, register
from tauon.optim.schedule import ScheduleConfig

__all__ = ["CosineRestarts", "Exponential", "OneCycle", "Plateau", "Polynomial", "StepDecay"]


@register("step")
class StepDecay(ScheduleConfig):
    """Multiply the rate by `gamma` at each milestone (He et al. 2015 divide it by 10 at 50% and 75%)."""

    at: tuple[Fraction | Count, ...] = (0.5, 0.75)
    """Milestones: shares of the steps after the warm-up if below 1 (50%), otherwise numbers of such steps."""
    gamma: Fraction = Field(0.1, gt=0, lt=1)
    """Factor at each milestone."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        at = self.raw_value("at")
        if not at:
            yield "at", "has no milestone. Set one (50%), or use the kind constant."
        elif any((a < 1) != (at[0] < 1) for a in at) or list(at) != sorted(set(at)) or at[0] <= 0:
            yield "at", f"got {list(at)}, expected rising milestones above 0, all shares (50%) or all step numbers."

    def factor(self, step: int, total: int) -> float:
        rise = self.warmup_steps(total)
        if step < rise:
            return (step + 1) / (rise + 1)
        after = max(1, total - rise)
        return float(self.gamma ** sum(step - rise >= (round(a * after) if a < 1 else a) for a in self.at))


@register("exponential")
class Exponential(ScheduleConfig):
    """The same factor at every step, so that `final` is reached at the end: torch's `ExponentialLR` with gamma = final ** (1 / steps)."""

    final: Fraction = Field(0.01, gt=0, le=1)
    """Share of the peak at the end."""

    def after_warmup(self, progress: float) -> float:
        return float(self.final ** min(1.0, progress))


@register("polynomial")
class Polynomial(ScheduleConfig):
    """(1 - progress) ** power from the peak to `final`."""

    power: float = Field(2.0, gt=0)
    """1 is linear; above 1 it falls earlier."""
    final: Fraction = Field(0.0, ge=0, le=1)
    """Share of the peak at the end."""

    def after_warmup(self, progress: float) -> float:
        return float(self.final + (1 - self.final) * (1 - min(1.0, progress)) ** self.power)


@register("cosine-restarts")
class CosineRestarts(ScheduleConfig):
    """Several half cosines: after each the rate jumps back to the peak (SGDR, Loshchilov & Hutter 2017, arXiv:1608.03983)."""

    cycles: Count = Field(3, ge=1)
    """Number of cycles."""
    longer: float = Field(1.0, ge=1)
    """Length of each cycle relative to the previous one (SGDR's T_mult)."""
    final: Fraction = Field(0.0, ge=0, le=1)
    """Share of the peak at the end of each cycle."""

    def after_warmup(self, progress: float) -> float:
        lengths = [self.longer**i for i in range(self.cycles)]
        at = min(1.0, progress) * sum(lengths)
        for length in lengths[:-1]:
            if at < length - 1e-9:
                break
            at, lengths = at - length, lengths[1:]
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, at / lengths[0])))


@register("one-cycle")
class OneCycle(ScheduleConfig):
    """Up and down once, along cosines: from `start` to the peak during the warm-up, then to `final` (Smith & Topin 2018,
    arXiv:1708.07120); torch's `OneCycleLR`, with constant momentum.
    """

    warmup: Fraction | Count = Field(0.3, ge=0)
    start: Fraction = Field(0.04, gt=0, lt=1)
    """Share of the peak at the first step."""
    final: Fraction = Field(4e-6, ge=0, lt=1)
    """Share of the peak at the last step."""

    def factor(self, step: int, total: int) -> float:
        top = self.warmup * total - 1 if self.warmup < 1 else self.warmup - 1.0  # torch's: the step of the peak, as a fraction of a step
        low, high, progress = (self.start, 1.0, step / top) if step <= top else (1.0, self.final, (step - top) / max(total - 1 - top, 1e-9))
        return high + (low - high) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@register("plateau")
class Plateau(ScheduleConfig):
    """Multiply the rate by `gamma` when the validation loss has stopped falling; torch's `ReduceLROnPlateau`."""

    gamma: Fraction = Field(0.5, gt=0, lt=1)
    """Factor of each decrease."""
    patience: Count = Field(3, ge=0)
    """Validations without improvement before a decrease."""
    threshold: Fraction = Field(1e-4, ge=0, lt=1)
    """Relative decrease of the validation loss that counts as improvement."""
    least: Fraction = Field(0.001, ge=0, lt=1)
    """Minimum, as a share of the peak."""

    def after_warmup(self, progress: float) -> float:
        return 1.0

    def observe(self, loss: float, seen: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the new state after a validation: `factor` multiplies the rate from now on. `seen`: result of the last call."""
        gamma, patience, threshold, least = self.gamma, self.patience, self.threshold, self.least
        seen = dict(seen or {"factor": 1.0, "best": None, "waited": 0})
        if seen["best"] is None or loss < seen["best"] * (1 - math.copysign(threshold, seen["best"])):
            return seen | {"best": loss, "waited": 0}
        if seen["waited"] < patience:
            return seen | {"waited": seen["waited"] + 1}
        return seen | {"factor": max(least, seen["factor"] * gamma), "waited": 0}
