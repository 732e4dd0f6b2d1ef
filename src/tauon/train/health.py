"""Watching gradients: NaN, infinity and spikes are skipped, counted, and stop training when they do not end.

Like PaLM's and OLMo's practice of skipping spikes (arXiv:2204.02311 section 5.1). State goes into the checkpoint.
"""

from __future__ import annotations

import math
from typing import Any

from tauon.errors import TrainingError

__all__ = ["GradientHealth"]

SETTLE = 20
"""Good steps before a spike can be told from the ordinary."""


class GradientHealth:
    """`check` says why a step must be skipped, or None. Raises `TrainingError` after `max_bad` skipped steps in a row."""

    def __init__(self, spike_factor: float | None, max_bad: int) -> None:
        self.spike_factor, self.max_bad = spike_factor, max_bad
        self.mean = 0.0
        self.good = 0
        self.bad_in_a_row = 0
        self.skipped = 0
        self.by_loss = True
        """Whether a loss that is not finite skips a step. Of a private run it must not: one example would decide, and every weight would show it."""

    def check(self, step: int, loss: float, norm: float) -> str | None:
        """`norm` is the gradient's L2 norm before clipping. Good norms enter a running mean (decay 0.95)."""
        reason = None
        if (self.by_loss and not math.isfinite(loss)) or not math.isfinite(norm):
            reason = f"loss {loss:g}, gradient norm {norm:g}: not finite"
        elif self.spike_factor is not None and self.good >= SETTLE and norm > self.spike_factor * self.mean:
            reason = f"gradient norm {norm:g} is over {self.spike_factor:g} times its running mean {self.mean:g}"
        if reason is None:
            self.mean = norm if self.good == 0 else 0.95 * self.mean + 0.05 * norm
            self.good += 1
            self.bad_in_a_row = 0
            return None
        self.bad_in_a_row += 1
        self.skipped += 1
        if self.bad_in_a_row >= self.max_bad:
            raise TrainingError(
                f"step {step}: {self.bad_in_a_row} steps in a row were skipped; the last: {reason}. "
                "Lower optim.lr, clip gradients (optim.clip_norm=1), warm up longer (optim.schedule.warmup), or look at the data of these steps."
            )
        return reason

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "good": self.good, "bad_in_a_row": self.bad_in_a_row, "skipped": self.skipped}

    def load(self, state: dict[str, Any]) -> None:
        self.mean, self.good = state["mean"], state["good"]
        self.bad_in_a_row, self.skipped = state["bad_in_a_row"], state["skipped"]
