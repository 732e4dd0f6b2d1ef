"""Adaptive noise, which falls with the validation loss or with the gradient norm. Queries cost privacy, so each query is a noisy answer that is
counted by the accountant.

    validation-loss   every `every` steps, the mean over the validation examples of min(loss, bound), with Gaussian noise of `query_noise`
                      times the sensitivity. Counted as a full-batch Gaussian release each time, on top of the steps, although validation
                      examples are not trained on: so the guarantee also covers data with people in both splits.
    gradient-norm     every `every` steps, the mean over the batch of min(||g_i||, C) / C, noised the same way. It reads the same sample
                      as the step, so both are one Gaussian mechanism with multiplier (z^-2 + query_noise^-2)^-1/2, sampled once.

Before a run the worst case is counted: every decision as early and as large as the kind allows. The noise of a step depends on earlier answers,
and the theorem that permits charging what really happened is about Renyi divergence (Feldman & Zrnic 2021, arXiv:2008.11193; Lecuyer 2021,
arXiv:2103.01379): the realized epsilon of `rdp` is a valid charge, that of `pld` an estimate; the planned worst case is a guarantee with both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from tauon.config import Count, Fraction, register
from tauon.privacy.noise.schedule import NoiseConfig

__all__ = ["Adaptive", "GradientNorm", "ValidationLoss"]


class Adaptive(NoiseConfig):
    """Base of kinds with queries. Their decisions are saved as `seen["decisions"]`: [(first step, factor), ...]."""

    every: Count = Field(100, ge=1)
    """Steps between two queries."""
    query_noise: float = Field(20.0, gt=0, le=1e6)
    """Noise multiplier of a query (standard deviation / sensitivity)."""
    least: Fraction = Field(0.5, gt=0, lt=1)
    """Minimum noise, as a share of the first step's; it defines the worst case."""

    def factor(self, step: int, total: int, seen: Mapping[str, Any] | None = None) -> float:
        found = 1.0
        for first, factor in (seen or {}).get("decisions", ()):
            found = factor if step >= first else found
        return float(found)

    def looks(self, step: int, total: int) -> bool:
        """Whether step `step` has a query."""
        raise NotImplementedError

    def worst(self, step: int, total: int, seen: Mapping[str, Any], done: int) -> float:
        """Smallest factor that step `step` can have, given what was `seen` in the first `done` steps."""
        raise NotImplementedError

    def decide(self, step: int, answer: float, seen: dict[str, Any]) -> dict[str, Any]:
        """The next `seen`, after the noisy `answer` of the query at `step`; a decision applies from step + 1."""
        raise NotImplementedError


@register("validation-loss")
class ValidationLoss(Adaptive):
    """Multiply the noise by `gamma` when the noisy validation loss has stopped falling."""

    gamma: Fraction = Field(0.8, gt=0, lt=1)
    """Factor of each decrease."""
    patience: Count = Field(1, ge=0)
    """Queries without improvement before a decrease."""
    bound: float = Field(5.0, gt=0)
    """The loss of an example is clipped to this."""

    def looks(self, step: int, total: int) -> bool:
        return (step + 1) % self.every == 0 and step + 1 < total

    def worst(self, step: int, total: int, seen: Mapping[str, Any], done: int) -> float:
        if step < done:
            return self.factor(step, total, seen)
        now, waited = self.factor(done, total, seen), int(seen.get("waited", 0))
        looks = step // self.every - done // self.every  # between the last step done and this one
        first = 0 if seen.get("best") is not None else 1  # the first query only sets the reference value
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
    """Noise proportional to the mean clipped gradient norm of the examples, at most the first step's."""

    def looks(self, step: int, total: int) -> bool:
        return step % self.every == 0 and step + 1 < total

    @property
    def bound(self) -> float:
        """Maximum contribution of one example: its clipped norm, in units of the clipping norm."""
        return 1.0

    def worst(self, step: int, total: int, seen: Mapping[str, Any], done: int) -> float:
        if step < done:
            return self.factor(step, total, seen)
        now = self.factor(done, total, seen)
        # the first query sets the reference value; any later one may lower the noise to the floor, or raise it
        marked = seen.get("first") is not None
        looks = -(-step // self.every) - -(-done // self.every)
        return float(min(now, self.least)) if looks - (0 if marked else 1) > 0 else now

    def decide(self, step: int, answer: float, seen: dict[str, Any]) -> dict[str, Any]:
        first = seen.get("first")
        if first is None:
            return seen | {"first": max(answer, 1e-6)}
        return seen | {"decisions": [*seen.get("decisions", []), [step + 1, min(1.0, max(self.least, answer / first))]]}
