"""`NoisePlan`: the noise of a run, from its config, the base multiplier and the number of steps. Gives the accountant's releases before the run
(the worst case) and after it (the real ones), and the noise that each step draws.
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
"""Sampling rate: one for all steps, or (rate, number of steps) pairs in the order of the steps."""


@dataclass(frozen=True)
class Query:
    """Noisy query that step `step` must make: pass the sum over examples of the value, clipped to [0, `bound`], to `NoisePlan.observe`."""

    what: str
    """`validation-loss`: losses of the validation examples after this step; `gradient-norm`: of this step's batch, ||g_i|| / C."""
    step: int
    bound: float
    noise: float
    """Noise multiplier: standard deviation / `bound`."""


class NoisePlan:
    """Noise of one run.

    >>> from tauon.privacy.noise import Linear
    >>> plan = NoisePlan(Linear(final=0.5), 2.0, 3)
    >>> [plan.multiplier(step) for step in range(3)]
    [2.0, 1.5, 1.0]
    >>> [r.noise_multiplier for r in plan.releases(0.1, "poisson")]
    [2.0, 1.5, 1.0]
    """

    def __init__(self, config: NoiseConfig, base_multiplier: float, total_steps: int) -> None:
        """`base_multiplier`: noise multiplier of the first step. Raises `RecipeError` unless it is above 0."""
        if not base_multiplier > 0:
            raise RecipeError(
                [Problem("privacy.noise_multiplier", f"is {base_multiplier:g}: without noise nothing is private. Set a number above 0.")]
            )
        self.config, self.base, self.total = config, float(base_multiplier), int(total_steps)
        self._seen: dict[str, Any] = {}
        self._apart: int | None = None

    @property
    def adaptive(self) -> bool:
        """Whether the noise depends on noisy queries of the data, so that the plan is a worst case."""
        return isinstance(self.config, Adaptive)

    @property
    def correlated(self) -> bool:
        """Whether the noise of different steps is correlated."""
        return isinstance(self.config, Correlated)

    def multiplier(self, step: int, seen: Mapping[str, Any] | None = None) -> float:
        """Noise multiplier of step `step`, given the decisions so far (or those in `seen`)."""
        return self.base * self.config.factor(step, self.total, self._seen if seen is None else seen)

    # ------------------------------------------------------------------------------------------ for the accountant

    def releases(self, rates: Rates, sampling: Sampling, *, done: int = 0) -> list[Release]:
        """All releases of the run, for the accountant.

        Args:
            rates: of the steps, in order, or one number for all. They may be fewer than planned: only those are counted.
            sampling: how examples are drawn.
            done: steps that were made, which count as they were; later steps count at their worst case.

        Raises:
            RecipeError: correlated noise without full passes.
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
                        z = (z**-2 + config.query_noise**-2) ** -0.5  # two answers about the same sample: one Gaussian mechanism
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
            message = f"correlated noise needs full passes, but sampling is {sampling}. Set privacy.sampling=shuffled, or another noise."
            raise RecipeError([Problem("privacy.noise", message)])
        if len({rate for rate, _ in steps}) > 1:
            message = "correlated noise needs passes of equal length, but the batch size changes. Remove train.batch_warmup, or set another noise."
            raise RecipeError([Problem("privacy.noise", message)])
        self._apart = max(1, math.floor(1 / steps[0][0] + 1e-9))
        count = sum(n for _, n in steps)
        r = config.coefficients(self.total, self._apart)
        return [Release(self.base / sensitivity(r, count, self._apart), "shuffled", 1.0)]

    # ------------------------------------------------------------------------------------------ for the step

    def draw(
        self, source: NoiseSource, step: int, names: Sequence[str], shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> Tensor:
        """(N, *shape) noise at `step`, float32, in units of multiplier times clipping norm: independent for each of the N names.

        Independent noise has standard deviation 1; of correlated noise, its underlying draws have. Call `releases` before: it derives the
        length of a pass from the rate.
        """
        fresh = source.normals(step, names, shape, device=device)
        if not isinstance(self.config, Correlated):
            return fresh
        if self._apart is None:
            raise RuntimeError("call releases() first: correlated noise depends on the number of steps in a pass")
        for k, r in enumerate(self.config.coefficients(self.total, self._apart)[1 : step + 1], start=1):
            fresh.add_(source.normals(step - k, names, shape, device=device), alpha=r)
        return fresh

    def query(self, step: int) -> Query | None:
        """The query of step `step`, if any: `gradient-norm` before its noise is drawn, `validation-loss` after the step."""
        config = self.config
        if not isinstance(config, Adaptive) or not config.looks(step, self.total):
            return None
        bound: float = config.bound  # type: ignore[attr-defined]
        return Query(config.kind_, step, bound, config.query_noise)

    def observe(self, query: Query, total: float, examples: float, source: NoiseSource) -> float:
        """Decide from the exact sum `total` of clipped values; return the noisy mean behind the decision, which may be published.

        `examples`: the divisor, which must not depend on the data: the expected size of a sampled batch.
        """
        config = self.config
        assert isinstance(config, Adaptive)
        noise = float(source.normal(query.step, f"query/{query.what}", (1,))[0])
        answer = (total + query.noise * query.bound * noise) / examples
        self._seen = config.decide(query.step, answer, self._seen)
        return answer

    # ------------------------------------------------------------------------------------------ for the checkpoint

    def state(self) -> dict[str, Any]:
        """Decisions as JSON values, for the checkpoint."""
        return {"seen": {k: [list(d) for d in v] if k == "decisions" else v for k, v in self._seen.items()}, "apart": self._apart}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self._seen = {k: [list(d) for d in v] if k == "decisions" else v for k, v in state["seen"].items()}
        self._apart = state["apart"]
