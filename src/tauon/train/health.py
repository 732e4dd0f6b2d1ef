"""Gradient health: steps with NaN, infinity or a spike are skipped and counted; too many in a row stop training.

PaLM and OLMo skip spikes in the same way (arXiv:2204.02311 section 5.1). The state is saved in checkpoints.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tauon.errors import TrainingError

__all__ = ["GradientHealth"]

WARM_UP = 20
"""Good steps needed before spikes can be detected."""


class GradientHealth:
    """Decides which steps are skipped: on the host (`check`), or on the device (`judge`) and counted when the host reads it (`record`).

    Both raise `TrainingError` after `max_bad` skipped steps in a row.
    """

    def __init__(self, spike_factor: float | None, max_bad: int) -> None:
        self.spike_factor, self.max_bad = spike_factor, max_bad
        self.mean = 0.0
        self.good = 0
        self.bad_in_a_row = 0
        self.skipped = 0
        self.by_loss = True
        """Whether a loss that is not finite skips a step. Not in a private run: one example would decide, which every weight would reveal."""
        self._on_device: tuple[Tensor, Tensor] | None = None
        """Mean and number of good norms on the device, which is ahead of the host by the steps that the host has not read."""

    def check(self, step: int, loss: float, norm: float) -> str | None:
        """Return why step `step` must be skipped, or None. `norm`: L2 norm before clipping. Good norms enter a running mean (decay 0.95)."""
        self._on_device = None
        bad = (self.by_loss and not math.isfinite(loss)) or not math.isfinite(norm)
        bad = bad or (self.spike_factor is not None and self.good >= WARM_UP and norm > self.spike_factor * self.mean)
        return self.record(step, loss, norm, bad)

    def record(self, step: int, loss: float, norm: float, bad: bool) -> str | None:
        """Count a step, and return why it was skipped, or None."""
        if not bad:
            self.mean = norm if self.good == 0 else 0.95 * self.mean + 0.05 * norm
            self.good += 1
            self.bad_in_a_row = 0
            return None
        reason = f"loss {loss:g}, gradient norm {norm:g}: not finite"
        if math.isfinite(norm) and (math.isfinite(loss) or not self.by_loss):
            reason = f"gradient norm {norm:g} is over {self.spike_factor:g} times its running mean {self.mean:g}"
        self.bad_in_a_row += 1
        self.skipped += 1
        if self.bad_in_a_row >= self.max_bad:
            raise TrainingError(
                f"step {step}: {self.bad_in_a_row} steps in a row were skipped; the last: {reason}. "
                "Lower optim.lr, clip gradients (optim.clip_norm=1), warm up longer (optim.schedule.warmup), or check the data of these steps."
            )
        return reason

    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Like `check`, but on the device and without reading anything: returns 1 if the step must be skipped, else 0 (float32)."""
        wide = torch.float32 if norm.device.type == "mps" else torch.float64  # as Python computes; MPS has no float64
        if self._on_device is None:  # created on the device: a copy from the host would wait
            self._on_device = (
                torch.full((), self.mean, dtype=wide, device=norm.device),
                torch.full((), self.good, dtype=torch.int64, device=norm.device),
            )
        mean, good = self._on_device
        length = norm.to(wide)
        bad = ~length.isfinite()
        if self.by_loss:
            bad = bad | ~loss.isfinite()
        if self.spike_factor is not None:
            bad = bad | ((good >= WARM_UP) & (length > self.spike_factor * mean))
        moved = torch.where(good == 0, length, 0.95 * mean + 0.05 * length)
        self._on_device = torch.where(bad, mean, moved), torch.where(bad, good, good + 1)
        return bad.float()

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "good": self.good, "bad_in_a_row": self.bad_in_a_row, "skipped": self.skipped}

    def load(self, state: dict[str, Any]) -> None:
        self.mean, self.good = state["mean"], state["good"]
        self.bad_in_a_row, self.skipped = state["bad_in_a_row"], state["skipped"]
        self._on_device = None
