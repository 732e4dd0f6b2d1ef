"""Exponential moving average of the weights (Polyak & Juditsky 1992): often better and more stable than the last weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tauon.distributed import local_part
from tauon.train.statistics import running_statistics

__all__ = ["EMA"]


class EMA:
    """shadow <- d shadow + (1 - d) weights after each step; d rises as (1 + t) / (10 + t) until `decay`, so that the initial weights are forgotten.

    Running statistics are averaged too: those of the last weights would not fit the activations of the averaged weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.statistics = running_statistics(model)
        self.live: dict[str, Tensor] = {k: p.detach() for k, p in self.parameters.items()} | self.statistics
        self.shadow: dict[str, Tensor] = {k: p.clone() for k, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int, bad: Tensor | None = None) -> None:
        """Add the weights after update number `step` (from 0) to the average, unless `bad`, a number on the device, is 1."""
        d = min(self.decay, (1 + step) / (10 + step))
        if bad is not None:  # a share of 0 leaves the average unchanged: the weights of a skipped step are finite
            share = (1 - bad) * (1 - d)
            for k, p in self.live.items():
                local_part(self.shadow[k]).lerp_(local_part(p), share.to(p.dtype))
            return
        torch._foreach_lerp_([self.shadow[k] for k in self.parameters], list(self.parameters.values()), 1 - d)
        if self.statistics:  # separate from the weights, which may be DTensors
            torch._foreach_lerp_([self.shadow[k] for k in self.statistics], list(self.statistics.values()), 1 - d)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside the context the model has the averaged weights; afterwards its own again, bit for bit."""
        own = {k: p.clone() for k, p in self.live.items()}
        with torch.no_grad():
            for k, p in self.live.items():
                p.copy_(self.shadow[k])
        try:
            yield
        finally:
            with torch.no_grad():
                for k, p in self.live.items():
                    p.copy_(own[k])
