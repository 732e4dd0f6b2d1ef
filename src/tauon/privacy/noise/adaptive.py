"""Noise that falls by what is seen: validation loss, or the norm of the gradients. Looking costs privacy, so each look is itself a noisy
answer that is accounted for.

    validation-loss   every `every` steps, the mean over the validation examples of min(loss, bound), with Gaussian noise of `query_noise`
                      times what one example can add. Counted as a full-batch Gaussian release each time, on top of the steps, although
                      validation examples are not trained on: so it also holds where the two parts are not kept apart.
    gradient-norm     every `every` steps, the mean over the batch of min(||g_i||, C) / C, noised the same way. It is told of the very sample
                      that the step is told of, so both are one Gaussian of multiplier (z^-2 + query_noise^-2)^-1/2, sampled once.

Before a run the worst case counts: every decision as early and as deep as the kind allows. The noise of a step depends on earlier answers, and
the theorem that allows to charge what really happened is one about Renyi divergence (Feldman & Zrnic 2021, arXiv:2008.11193; Lecuyer 2021,
arXiv:2103.01379): the realised figure by `rdp` is a valid charge, that by `pld` an estimate, the planned worst case is a promise by both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from tauon.config import Count, Fraction, register
from tauon.privacy.noise.schedule import NoiseConfig

__all__ = ["Adaptive", "GradientNorm", "ValidationLoss"]


class Adaptive(NoiseConfig):
    """Base of the kinds that look. What they decide is kept as `seen["decisions"]`: [(first step, factor), ...]."""

    every: Count = Field(100, ge=1)
    """Steps between two looks."""
    query_noise: float = Field(20.0, gt=0, le=1e6)
    """Standard deviation of a look's noise over what one example can add to its sum."""
    least: Fraction = Field(0.5, gt=0, lt=1)
    """Share of the first step's noise below which it does not fall: what the worst case is made of."""

    def factor(self, step: int, total: int, seen: Mapping[str, Any] | None = None) -> float:
        found = 1.0
        for first, factor in (seen or {}).get("decisions", ()):
            found = factor if step >= first else found
        return float(found)

    def looks(self, step: int, total: int) -> bool:
        """Whether step `step` has a look."""
        raise NotImplementedError

    def worst(self, step: int, total: int, seen: Mapping[str, Any], done: int) -> float:
        """The least factor that step `step` can have after what was `seen` in the first `done` steps."""
        raise NotImplementedError

    def decide(self, step: int, answer: float, seen: dict[str, Any]) -> dict[str, Any]:
        """What is remembered after the noisy `answer` of the look at `step`; a decision holds from step + 1 on."""
        raise NotImplementedError


@register("validation-loss")
class ValidationLoss(Adaptive):
    """Multiply the noise by `gamma` when the noisy validation loss has not fallen for a while: little is left to learn coarsely."""

    gamma: Fraction = Field(0.8, gt=0, lt=1)
    """Factor at each fall of the noise."""
    patience: Count = Field(1, ge=0)
    """Looks without improvement that are let pass before it falls."""
    bound: float = Field(5.0, gt=0)
    """An example's loss counts as at most this."""

    def looks(self, step: int, total: int) -> bool:
        return (step + 1) % self.every == 0 and step + 1 < total

    def worst(self, step: int, total: int, seen: Mapping[str, Any], done: int) -> float:
        if step < done:
            return self.factor(step, total, seen)
        now, waited = self.factor(done, total, seen), int(seen.get("waited", 0))
        looks = step // self.every - done // self.every  # between the last step done and this one
        first = 0 if seen.get("best") is not None else 1  # the very first look only sets the mark
        falls = max(0, (looks - first + waited) // (self.patience + 1))
        return float(max(self.least, now * self.gamma**falls)) if falls else now

    def decide(self, step: int, answer: float, seen: dict[str, Any]) -> dict[str, Any]:
        gamma, patience, least = self.gamma, self.patience, self.least
        best, waited = seen.get("best"), int(seen.get("waited", 0))
        if best is None or answer < best:
            return seen | {"best": answer, "waited": 0}
        if waited < patience:
            return seen | {"waited": waited + 1}
        fallen = max(least, self.factor(step + 1, step + 2, seen) * gamma)
        return seen | {"waited": 0, "decisions": [*seen.get("decisions", []), [step + 1, fallen]]}


@register("gradient-norm")
class GradientNorm(Adaptive):
    """Noise in proportion to the mean clipped norm of the examples' gradients, never above the first step's."""

    def looks(self, step: int, total: int) -> bool:
        return step % self.every == 0 and step + 1 < total

    @property
    def bound(self) -> float:
        """What one example adds at most: its norm is clipped, and told in units of the clipping norm."""
        return 1.0

    def worst(self, step: int, total: int, seen: Mapping[str, Any], done: int) -> float:
        if step < done:
            return self.factor(step, total, seen)
        now = self.factor(done, total, seen)
        # the first look ever sets the mark, any later one may let the noise fall to the floor, or rise
        marked = seen.get("first") is not None
        looks = -(-step // self.every) - -(-done // self.every)
        return float(min(now, self.least)) if looks - (0 if marked else 1) > 0 else now

    def decide(self, step: int, answer: float, seen: dict[str, Any]) -> dict[str, Any]:
        first = seen.get("first")
        if first is None:
            return seen | {"first": max(answer, 1e-6)}
        return seen | {"decisions": [*seen.get("decisions", []), [step + 1, min(1.0, max(self.least, answer / first))]]}
