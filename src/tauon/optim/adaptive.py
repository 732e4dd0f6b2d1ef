"""Adagrad, RMSprop and Adafactor from torch, with torch's names of the settings."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn
from torch.optim import Adafactor, Adagrad, Optimizer, RMSprop

from tauon.config import register
from tauon.distributed import is_dtensor
from tauon.optim.base import Decay, OptimConfig, decay_groups, refuse_pieces

__all__ = ["AdafactorConfig", "AdagradConfig", "RMSpropConfig"]


@register("adagrad")
class AdagradConfig(OptimConfig):
    """Adagrad (Duchi et al. 2011): each weight's rate falls with the sum of its squared gradients; `weight_decay` is L2."""

    default_lr = 0.01
    elementwise = True

    eps: float = Field(1e-10, gt=0)
    """Added to the root of the sum."""
    initial_sum: float = Field(0.0, ge=0)
    """Initial value of the sum of squared gradients; above 0 the first steps are shorter."""

    def build(self, model: nn.Module) -> Optimizer:
        groups = decay_groups(model.named_parameters(), self.peak, self.weight_decay)
        return Adagrad(groups, lr=self.peak, eps=self.eps, initial_accumulator_value=self.initial_sum, foreach=True)


@register("rmsprop")
class RMSpropConfig(OptimConfig):
    """RMSprop (Tieleman & Hinton 2012, lecture 6.5): divide by a running root mean square; `weight_decay` is L2."""

    default_lr = 1e-3
    elementwise = True

    alpha: Decay = 0.99
    """Decay of the running mean of squared gradients."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the mean."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Decay of the running sum of steps; 0: none."""
    centered: bool = False
    """Divide by the standard deviation instead: the mean gradient is subtracted (Graves 2013, arXiv:1308.0850)."""

    def build(self, model: nn.Module) -> Optimizer:
        groups = decay_groups(model.named_parameters(), self.peak, self.weight_decay)
        settings: dict[str, Any] = {"alpha": self.alpha, "eps": self.eps, "momentum": self.momentum, "centered": self.centered}
        return RMSprop(groups, lr=self.peak, foreach=not any(is_dtensor(p) for p in model.parameters()), **settings)


@register("adafactor")
class AdafactorConfig(OptimConfig):
    """Adafactor (Shazeer & Stern 2018, arXiv:1804.04235): a matrix's second moments are factored into one row and one column, so that the
    state of a large model is small. Steps are relative to the size of the weights; `weight_decay` is decoupled.
    """

    default_lr = 1e-2

    beta2_decay: float = Field(-0.8, lt=0)
    """Exponent of the running mean's decay: 1 - t ** beta2_decay at step t (section 7.2)."""
    clip_update: float = Field(1.0, ge=1)
    """An update whose root mean square is above this is scaled down to it (section 6: d)."""
    least_scale: float = Field(1e-3, gt=0)
    """Minimum size of the weights that a step is relative to (section 8: epsilon 2)."""

    def build(self, model: nn.Module) -> Optimizer:
        refuse_pieces(model, self, "factors the moments of complete matrices")
        groups = decay_groups(model.named_parameters(), self.peak, self.weight_decay)
        return Adafactor(groups, lr=self.peak, beta2_decay=self.beta2_decay, eps=(None, self.least_scale), d=self.clip_update, foreach=True)
