"""SCAFFOLD: control variates correct the drift of local training (Karimireddy et al. 2020, arXiv:1910.06378, option II).

Sites step along g - c_k + c. After K steps of rate lr, c_k' = c_k - c + (x - x_k) / (K lr); the server adds the mean of c_k' - c_k, times the share
of the sites that answered, to c. Each site keeps its c_k.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tauon.config import register
from tauon.federated.strategies.base import StrategyConfig
from tauon.federated.updates import CONTROL

__all__ = ["Scaffold"]


@register("scaffold")
class Scaffold(StrategyConfig):
    """Local steps are corrected by the difference between the sites' mean gradient and the site's own. Sites train with plain SGD."""

    controls = True

    def order(self) -> dict[str, Any]:
        return {"control": True}

    def state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {CONTROL + n: torch.zeros_like(t) for n, t in tensors.items()}

    def send(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)

    @torch.no_grad()
    def after(self, state: dict[str, Tensor], combined: Mapping[str, Tensor], share: float) -> None:
        for name, c in state.items():
            c.add_(combined[name].to(c.dtype), alpha=share)
