"""Learning-rate range test (Smith 2017, arXiv:1506.01186): train for a few steps with a rising learning rate, and find where the loss falls
fastest and where it diverges. Trains a separate model: only the curve is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tauon.errors import TrainingError
from tauon.optim import Constant
from tauon.train import TrainJob, train_step

__all__ = ["RangeTest", "lr_range"]

SMOOTH = 0.9
"""Decay of the running mean of the loss, with bias correction."""
DIVERGED = 4.0
"""The test ends when the smoothed loss exceeds its minimum by this factor."""


@dataclass
class RangeTest:
    """The curve and the suggested rates. All lists have one entry per step."""

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Measured losses; the last is not finite if training diverged."""
    smoothed: list[float] = field(default_factory=list)

    @property
    def diverged(self) -> bool:
        """Whether the loss diverged before the end of the range."""
        return bool(self.smoothed) and not self.smoothed[-1] <= DIVERGED * min(self.smoothed)

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest by log(rate): a rate to try first."""
        logs = [math.log(r) for r in self.rates]
        fall = [(b - a) / (y - x) for a, b, x, y in zip(self.smoothed, self.smoothed[1:], logs, logs[1:], strict=False)]
        lowest = self.smoothed.index(min(self.smoothed))
        skip = min(len(fall) // 20, max(0, lowest - 1))  # the first losses are noisy
        candidates = range(skip, max(skip + 1, lowest))
        return self.rates[min(candidates, key=lambda i: fall[i])]

    @property
    def tenth(self) -> float:
        """A tenth of the rate with the lowest smoothed loss: higher, for schedules with warm-up and decay."""
        return self.rates[self.smoothed.index(min(self.smoothed))] / 10

    def to_json(self) -> dict[str, Any]:
        losses = [x if math.isfinite(x) else None for x in self.losses]
        return {
            "rates": self.rates,
            "losses": losses,
            "smoothed": self.smoothed,
            "steepest": self.steepest,
            "tenth": self.tenth,
            "diverged": self.diverged,
        }


def lr_range(
    job: TrainJob,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    on_step: Callable[[int, float, float], None] = lambda *_: None,
) -> RangeTest:
    """Train `job` at rates that rise from `low` to `high`, evenly spaced in their logarithm, and stop where the loss diverges.

    Args:
        job: what to train. It cannot be used afterwards.
        low: learning rate of the first step, of the first group of parameters; others keep their proportion to it.
        high: learning rate of the last step.
        steps: most steps.
        on_step: called with (step, rate, smoothed loss) after each step.

    Returns:
        The curve, and what it suggests.

    Raises:
        TrainingError: the range is empty, or not even the first step has a finite loss.

    >>> from tauon.testing import tiny_job
    >>> test = lr_range(tiny_job(steps=5), low=1e-4, high=1.0, steps=5)
    >>> len(test.rates), test.diverged
    (5, False)
    """
    if not 0 < low < high:
        raise TrainingError(f"the range from {low:g} to {high:g} is empty. Use 0 < low < high.")
    test, mean = RangeTest(), 0.0
    lead = job.optimizer.param_groups[0]["peak_lr"]
    share = [g["peak_lr"] / lead for g in job.optimizer.param_groups]
    job.policy = replace(job.policy, schedule=Constant(warmup=0), total_steps=2**40)
    job.health.spike_factor, job.health.max_bad = None, 2**40
    job.model.train()
    for step in range(steps):
        rate = low * (high / low) ** (step / max(1, steps - 1))
        for group, proportion in zip(job.optimizer.param_groups, share, strict=True):
            group["peak_lr"] = rate * proportion
        loss = float(train_step(job, job.loader.batch_at(job.step).to(job.policy.device))["loss"])
        test.rates.append(rate)
        test.losses.append(loss)
        if not math.isfinite(loss):
            if step == 0:
                raise TrainingError("the loss of the first step is not finite, at any learning rate. Check the data and the model first.")
            test.smoothed.append(max(test.smoothed) * 2 * DIVERGED)
            break
        mean = SMOOTH * mean + (1 - SMOOTH) * loss
        test.smoothed.append(mean / (1 - SMOOTH ** (step + 1)))
        on_step(step, rate, test.smoothed[-1])
        if test.diverged:
            break
    return test
