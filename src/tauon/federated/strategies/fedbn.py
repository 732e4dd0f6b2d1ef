"""FedBN: batch norm stays at each site (Li et al. 2021, arXiv:2102.07623)."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from tauon.config import register
from tauon.federated.strategies.base import StrategyConfig
from tauon.federated.updates import batch_norm_names

__all__ = ["FedBN"]


@register("fedbn")
class FedBN(StrategyConfig):
    """FedAvg of everything but batch norm, for sites whose inputs look different. The model at the coordinator has no statistics of its own:
    each site evaluates with its own.
    """

    affine: bool = Field(True)
    """Keep scale and shift at the site as well, as the paper does; false: only running statistics (SiloBN, Andreux et al. 2020, arXiv:2008.07424)."""

    def keep(self, model: nn.Module) -> list[str]:
        return batch_norm_names(model, affine=self.affine)
