"""`NoisePlan`: the noise of a whole run, from its config, the base multiplier and the number of steps. What the accountant is told, before the
run (the worst that can come) and after it (what came), and what each step draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauon.errors import Problem, RecipeError
from tauon.privacy.accounting import Release, Sampling
from tauon.privacy.noise.adaptive import Adaptive, GradientNorm
from tauon.privacy.noise.correlated import Correlated, sensitivity
from tauon.privacy.noise.schedule import NoiseConfig
from tauon.privacy.noise.source import NoiseSource

__all__ = ["NoisePlan", "Query"]

Rates = float | Sequence[tuple[float, int]]
"""Probability of an example to be in a step, the same for all steps, or as (rate, how many such steps) in their order."""


@dataclass(frozen=True)
class Query:
    """A noisy look that step `step` must have: hand the sum of each example's value, clipped to [0, `bound`], to `NoisePlan.observe`."""

    what: str
    """`validation-loss`: losses of the validation examples after this step; `gradient-norm`: of this step's batch, ||g_i|| / C."""
    step: int
    bound: float
    noise: float
    """Standard deviation of the noise over `bound`."""


class NoisePlan:
    """The noise of one run.

    >>> from tauon.privacy.noise import Linear
    >>> plan = NoisePlan(Linear(final=0.5), 2.0, 3)
    >>> [plan.multiplier(step) for step in range(3)]
    [2.0, 1.5, 1.0]
    >>> [r.noise_multiplier for r in plan.releases(0.1, "poisson")]
    [2.0, 1.5, 1.0]
    """

    def __init__(self, config: NoiseConfig, base_multiplier: float, total_steps: int) -> None:
        """`base_multiplier`: noise of the first step over the clipping norm. Raises `RecipeError` unless it is above 0."""
        if not base_multiplier > 0:
            raise RecipeError([Problem("privacy.noise_multiplier", f"got {base_multiplier:g}: without noise nothing is private. Above 0.")])
        self.config, self.base, self.total = config, float(base_multiplier), int(total_steps)
        self._seen: dict[str, Any] = {}
        self._apart: int | None = None

    @property
    def adaptive(self) -> bool:
        """Whether noise depends on what was seen, so that the plan is a worst case."""
        return isinstance(self.config, Adaptive)

    @property
    def correlated(self) -> bool:
        """Whether the noise of different steps is correlated."""
        return isinstance(self.config, Correlated)

    def multiplier(self, step: int, seen: Mapping[str, Any] | None = None) -> float:
        """Noise multiplier of step `step`, by the decisions so far (or those in `seen`)."""
        return self.base * self.config.factor(step, self.total, self._seen if seen is None else seen)

    # ------------------------------------------------------------------------------------------ for the accountant

    def releases(self, rates: Rates, sampling: Sampling, *, done: int = 0) -> list[Release]:
        """Everything that the run tells, for the accountant.

        Args:
            rates: of the steps, in order; a number for all of them. They may be fewer than planned: only those are counted.
            sampling: how examples are drawn.
            done: steps that were made: they count as they came, the ones after it as the worst that can still come.

        Raises:
            RecipeError: correlated noise without whole passes.
        """
        steps = [(float(rates), self.total)] if isinstance(rates, float | int) else [(r, n) for r, n in rates if n]
        if isinstance(self.config, Correlated):
            return self._correlated(self.config, steps, sampling)
        made = list(self._steps(steps, sampling, done))
        if isinstance(self.config, Adaptive) and not isinstance(self.config, GradientNorm):
            looks = sum(self.config.looks(step, self.total) for step in range(sum(n for _, n in steps)))
            made += [Release(self.config.query_noise, "full", count=looks)] if looks else []
        return made

    def _steps(self, steps: Iterable[tuple[float, int]], sampling: Sampling, done: int) -> Iterator[Release]:
        config, at = self.config, 0
        last: tuple[float, float, int] | None = None
        for rate, count in steps:
            for step in range(at, at + count):
                if isinstance(config, Adaptive):
                    z = self.base * config.worst(step, self.total, self._seen, done)
                    if isinstance(config, GradientNorm) and config.looks(step, self.total):
                        z = (z**-2 + config.query_noise**-2) ** -0.5  # told of the same sample: one Gaussian
                else:
                    z = self.base * config.factor(step, self.total)
                if last is not None and last[:2] == (z, rate):
                    last = (z, rate, last[2] + 1)
                else:
                    if last is not None:
                        yield Release(last[0], sampling, last[1], last[2])
                    last = (z, rate, 1)
            at += count
        if last is not None:
            yield Release(last[0], sampling, last[1], last[2])

    def _correlated(self, config: Correlated, steps: Sequence[tuple[float, int]], sampling: Sampling) -> list[Release]:
        if sampling != "shuffled":
            said = f"correlated noise is for whole passes, and sampling is {sampling}. Set privacy.sampling=shuffled, or another noise."
            raise RecipeError([Problem("privacy.noise", said)])
        if len({rate for rate, _ in steps}) > 1:
            said = "correlated noise needs passes of equal length, and the batch changes. Drop train.batch_warmup, or take another noise."
            raise RecipeError([Problem("privacy.noise", said)])
        self._apart = max(1, math.floor(1 / steps[0][0] + 1e-9))
        count = sum(n for _, n in steps)
        r = config.coefficients(self.total, self._apart)
        return [Release(self.base / sensitivity(r, count, self._apart), "shuffled", 1.0)]

    # ------------------------------------------------------------------------------------------ for the step

    def draw(
        self, source: NoiseSource, step: int, names: Sequence[str], shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> Tensor:
        """(N, *shape) noise at `step`, float32, in units of multiplier times clipping norm: of each of N names its own.

        Independent noise has standard deviation 1. Of correlated noise the draws that it is made of have; `releases` must have been asked
        before, which learns from the rate how long a pass is.
        """
        fresh = source.normals(step, names, shape, device=device)
        if not isinstance(self.config, Correlated):
            return fresh
        if self._apart is None:
            raise RuntimeError("ask for releases first: correlated noise depends on how many steps a pass has")
        for k, r in enumerate(self.config.coefficients(self.total, self._apart)[1 : step + 1], start=1):
            fresh.add_(source.normals(step - k, names, shape, device=device), alpha=r)
        return fresh

    def query(self, step: int) -> Query | None:
        """The look that belongs to step `step`, if any: of `gradient-norm` before its noise is drawn, of `validation-loss` after it."""
        config = self.config
        if not isinstance(config, Adaptive) or not config.looks(step, self.total):
            return None
        bound: float = config.bound  # type: ignore[attr-defined]
        return Query(config.kind_, step, bound, config.query_noise)

    def observe(self, query: Query, total: float, examples: float, source: NoiseSource) -> float:
        """Decide by the exact sum `total` of clipped values; the noisy mean that the decision was made by is returned, and may be shown.

        `examples`: the number that is divided by, which must not depend on the data: of a sampled batch the expected one.
        """
        config = self.config
        assert isinstance(config, Adaptive)
        noise = float(source.normal(query.step, f"query/{query.what}", (1,))[0])
        answer = (total + query.noise * query.bound * noise) / examples
        self._seen = config.decide(query.step, answer, self._seen)
        return answer

    # ------------------------------------------------------------------------------------------ for the checkpoint

    def state(self) -> dict[str, Any]:
        """JSON values: what was decided. Goes into the checkpoint, so that a resume goes on the same way."""
        return {"seen": {k: [list(d) for d in v] if k == "decisions" else v for k, v in self._seen.items()}, "apart": self._apart}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self._seen = {k: [list(d) for d in v] if k == "decisions" else v for k, v in state["seen"].items()}
        self._apart = state["apart"]
