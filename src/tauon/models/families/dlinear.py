"""DLinear: trend and remainder of each series, a linear map from context to horizon for each (Zeng et al. 2022, arXiv:2205.13504).

The trend is a moving average whose ends repeat the first and last value. Weights are shared by all series, or each has its own.
Shapes: B batch, T context, F columns read, H horizon, K targets, Q outputs a target, O = K Q.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, register
from tauon.models.base import Model
from tauon.models.families.forecast import ForecasterConfig, backward_scale, forward_scale
from tauon.types import DataSpec

__all__ = ["DLinear", "DLinearConfig"]


@register("dlinear")
class DLinearConfig(ForecasterConfig):
    """Two linear maps over time: of the trend, and of what is left."""

    kernel: Count = Field(25, ge=1)
    """Steps of the moving average; odd."""
    individual: bool = False
    """Each series has maps of its own, instead of one for all."""
    revin: bool = False
    """Scale each window to mean 0 and variance 1 first, and the forecast back (not in the paper)."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.raw_value("kernel") % 2 == 0:
            yield (
                "kernel",
                f"{self.raw_value('kernel')} is even, so that the average would have no middle. Take {self.raw_value('kernel') + 1}.",
            )

    def resolve(self, spec: DataSpec) -> Self:
        resolved = super().resolve(spec)
        self.refuse_inputs(spec)
        return resolved

    def build(self) -> DLinear:
        T, H, _, K, O = self.sizes
        return DLinear(T, H, K, O // K, self.kernel, individual=self.individual, revin=self.revin)


class DLinear(Model):
    """BTF -> BHO."""

    shard_plan = {"*": "replicate"}  # noqa: RUF012 - plain data, read only

    def __init__(self, T: int, H: int, K: int, Q: int, kernel: int, *, individual: bool, revin: bool) -> None:
        super().__init__()
        self.shape, self.kernel, self.revin = (H, K, Q), kernel, revin
        copies = K if individual else 1
        self.trend = nn.ModuleList(nn.Linear(T, H * Q) for _ in range(copies))
        self.rest = nn.ModuleList(nn.Linear(T, H * Q) for _ in range(copies))

    def forward(self, x_BTF: Tensor) -> Tensor:
        H, K, Q = self.shape
        if self.revin:
            x_BTF, mean, deviation = forward_scale(x_BTF)
        x_BKT = x_BTF.transpose(1, 2)
        edge = self.kernel // 2
        trend = F.avg_pool1d(F.pad(x_BKT, (edge, edge), mode="replicate"), self.kernel, stride=1)
        rest = x_BKT - trend
        if len(self.trend) == 1:
            out = self.trend[0](trend) + self.rest[0](rest)
        else:
            maps = zip(self.trend, self.rest, strict=True)
            out = torch.stack([a(trend[:, k]) + b(rest[:, k]) for k, (a, b) in enumerate(maps)], dim=1)
        B = out.shape[0]  # not len(): torch.export would fix the number
        out_BHO = out.view(B, K, H, Q).permute(0, 2, 1, 3).reshape(B, H, K * Q)
        return backward_scale(out_BHO, mean, deviation, K) if self.revin else out_BHO

    def flops_per_example(self, spec: DataSpec) -> float:
        """6 for each weight and series."""
        shared = self.shape[1] if len(self.trend) == 1 else 1
        return 6.0 * shared * sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))

    def activations_per_example(self, spec: DataSpec) -> float:
        """Trend, rest and both outputs of each series."""
        H, K, Q = self.shape
        T = spec.input_shape[0] if spec.input_shape else 0
        return float(K * (4 * T + 3 * H * Q))
