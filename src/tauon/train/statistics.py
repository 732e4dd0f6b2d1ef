"""Running statistics (of batch norm): a skipped step must not change them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RunningStatistics", "running_statistics"]


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that training updates, by name: those of layers with `track_running_stats`."""
    layers = [(name, m) for name, m in model.named_modules() if getattr(m, "track_running_stats", False)]
    return {f"{name}.{leaf}": b for name, m in layers for leaf, b in m.named_buffers(recurse=False) if b.is_floating_point()}


class RunningStatistics:
    """Copy of the running statistics: call `remember` before a step and `put_back` if it is skipped."""

    def __init__(self, model: nn.Module) -> None:
        self.live = list(running_statistics(model).values())
        self.kept = [b.clone() for b in self.live]

    @torch.no_grad()
    def remember(self) -> None:
        if self.live:
            torch._foreach_copy_(self.kept, self.live)

    @torch.no_grad()
    def put_back(self, bad: Tensor | None = None) -> None:
        """Restore the statistics if `bad`, a number on the device, is 1; None: always."""
        if self.live:
            kept = self.kept if bad is None else [torch.where(bad > 0, k, b) for k, b in zip(self.kept, self.live, strict=True)]
            torch._foreach_copy_(self.live, kept)
