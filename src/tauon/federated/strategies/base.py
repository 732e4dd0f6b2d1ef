"""The base class of strategies: what sites are asked to do besides training, how their updates become one, and how that changes the weights.

A strategy does not ask sites and does not check answers: `tauon.federated.coordinator` does. The combined update, negated, is the gradient
of the server's optimizer (Reddi et al. 2021, arXiv:2003.00295).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from tauon.config import Registered
from tauon.errors import Problem, RecipeError
from tauon.federated.updates import Update, weighted_sum

__all__ = ["StrategyConfig"]


class StrategyConfig(Registered, family="strategy", default="fedavg"):
    """How the sites' updates are combined, and what the server does with the result."""

    single_updates: ClassVar[bool] = False
    """Whether it needs the update of each site, or of each group of sites: a sum over all is not enough. Excludes secure aggregation without groups."""
    weighted: ClassVar[bool] = True
    """Whether it reads `Update.weight`; else every site, or group, counts alike."""
    controls: ClassVar[bool] = False
    """Whether sites and server keep control variates."""
    asynchronous: ClassVar[bool] = False
    """Whether updates are applied as they arrive, without rounds."""
    reads_first_loss: ClassVar[bool] = False
    """Whether each site has to evaluate the weights it was sent on its training examples."""

    server_lr: float = Field(1.0, gt=0)
    """Learning rate of the server's optimizer; at 1, FedAvg sets the weights to the mean of the sites'."""

    def refuse(self, sites: int) -> None:
        """Raise `RecipeError` if it cannot work with this number of sites, or groups, in a round."""

    def keep(self, model: nn.Module) -> list[str]:
        """Return the names of tensors that stay at each site."""
        return []

    def order(self) -> dict[str, Any]:
        """Return what a site is asked besides training, as fields of the message: `proximal`, for example."""
        return {}

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Return the server's optimizer over the model's trainable parameters."""
        return SGD(self.groups(model), lr=self.server_lr)

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the parameter groups of the server's optimizer: one."""
        trainable = [p for p in model.parameters() if p.requires_grad]
        return [{"params": trainable, "lr": self.server_lr, "peak_lr": self.server_lr}]

    def state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the initial state of the strategy itself, saved with each checkpoint. `tensors`: those that travel."""
        return {}

    def send(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what sites get besides the weights."""
        return {}

    @torch.no_grad()
    def combine(self, updates: Sequence[Update]) -> dict[str, Tensor]:
        """Return the combined update. Default: the mean, by weight."""
        if len(updates) == 1:
            return dict(updates[0].tensors)
        total = sum(u.weight for u in updates)
        return weighted_sum([u.tensors for u in updates], [u.weight / total for u in updates])

    @torch.no_grad()
    def after(self, state: dict[str, Tensor], combined: Mapping[str, Tensor], share: float) -> None:
        """Change the state in place once the combined update was accepted. `share`: weight of the sites that answered, of all sites."""


def refuse_few(kind: str, sites: int, least: int, why: str) -> None:
    """Raise `RecipeError` if a round has fewer than `least` sites."""
    if sites < least:
        message = (
            f"{kind} needs at least {least} sites in each round ({why}), but there are {sites}. Sample more sites, or use another strategy."
        )
        raise RecipeError([Problem("federate.strategy", message)])
