"""Stochastic gradient descent, torch's own: plain, with momentum, with Nesterov's momentum."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field
from torch import nn
from torch.optim import SGD, Optimizer

from tauon.config import register
from tauon.distributed import is_dtensor
from tauon.optim.base import OptimConfig, decay_groups

__all__ = ["SGDConfig"]


@register("sgd")
class SGDConfig(OptimConfig):
    """SGD (Robbins & Monro 1951), momentum (Polyak 1964), Nesterov (Sutskever et al. 2013); `weight_decay` is L2."""

    default_lr = 0.1
    elementwise = True

    momentum: float = Field(0.9, ge=0, lt=1)
    """Decay of the running sum of gradients; 0 is plain SGD."""
    nesterov: bool = False
    """Look ahead along the momentum."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.raw_value("nesterov") and self.raw_value("momentum") == 0:
            yield "nesterov", "needs momentum above 0, got 0. Set momentum=0.9, or remove nesterov."

    def build(self, model: nn.Module) -> Optimizer:
        groups = decay_groups(model.named_parameters(), self.peak, self.weight_decay)
        pieces = any(is_dtensor(p) for p in model.parameters())  # torch's fused kernel does not support them
        return SGD(groups, lr=self.peak, momentum=self.momentum, nesterov=self.nesterov, fused=not pieces)
