"""Running statistics (batch norm's) beside the weights: a step that is skipped must not leave its mark on them either."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RunningStatistics", "running_statistics"]


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that training moves, by name: those of layers that say `track_running_stats`."""
    layers = [(name, m) for name, m in model.named_modules() if getattr(m, "track_running_stats", False)]
    return {f"{name}.{leaf}": b for name, m in layers for leaf, b in m.named_buffers(recurse=False) if b.is_floating_point()}


class RunningStatistics:
    """`remember` before a step, `put_back` where it does not count."""

    def __init__(self, model: nn.Module) -> None:
        self.live = list(running_statistics(model).values())
        self.kept = [b.clone() for b in self.live]

    @torch.no_grad()
    def remember(self) -> None:
        if self.live:
            torch._foreach_copy_(self.kept, self.live)

    @torch.no_grad()
    def put_back(self, bad: Tensor | None = None) -> None:
        """Where `bad`, a number on the device, is 1; None: in any case."""
        if self.live:
            kept = self.kept if bad is None else [torch.where(bad > 0, k, b) for k, b in zip(self.kept, self.live, strict=True)]
            torch._foreach_copy_(self.live, kept)
