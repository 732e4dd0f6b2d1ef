"""Adam and AdamW, torch's own, fused where the device has it. Elementwise: a sharded parameter needs no special case."""

from __future__ import annotations

from pydantic import Field
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from tauon.config import register
from tauon.optim.base import Decay, OptimConfig, decay_groups

__all__ = ["AdamConfig", "AdamWConfig"]


@register("adam")
class AdamConfig(OptimConfig):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980); `weight_decay` is L2, added to the gradient."""

    elementwise = True

    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the first and second moment estimates."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""

    def build(self, model: nn.Module) -> Optimizer:
        return Adam(decay_groups(model.named_parameters(), self.peak, self.weight_decay), betas=self.betas, eps=self.eps, fused=True)


@register("adamw")
class AdamWConfig(OptimConfig):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    default_lr = 3e-4
    elementwise = True

    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the first and second moment estimates."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    clip_norm: float | None = Field(1.0, gt=0)

    def build(self, model: nn.Module) -> Optimizer:
        return AdamW(decay_groups(model.named_parameters(), self.peak, self.weight_decay), betas=self.betas, eps=self.eps, fused=True)
