"""Full-batch gradient descent (Cauchy 1847): the gradient of the full training set at every step, without sampling."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, Optimizer

from tauon.config import register
from tauon.optim.base import OptimConfig, decay_groups
from tauon.optim.schedule import Constant, ScheduleConfig

__all__ = ["GDConfig"]


@register("gd")
class GDConfig(OptimConfig):
    """Full-batch gradient descent, without `train.batch`. `weight_decay` is L2."""

    default_lr = 0.1
    elementwise = True
    full_batch = True

    schedule: ScheduleConfig = Constant(warmup=0)

    def build(self, model: nn.Module) -> Optimizer:
        return SGD(decay_groups(model.named_parameters(), self.peak, self.weight_decay), lr=self.peak)
