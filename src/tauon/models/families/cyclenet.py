"""CycleNet: a learned cycle of each series is taken away, the rest is forecast by one map over time (Lin et al. 2024, arXiv:2409.18479).

Where a window stands in the cycle is read from one calendar column (`data.window.calendar`: hour of hourly steps, weekday of daily, month of
monthly ones), which goes up by one with each step. The map is linear, or has one hidden layer, and is shared by all series. Each window is
scaled to mean 0 and variance 1 first (reversible instance normalisation), so that a level which drifts does not matter.
Shapes: B batch, T context, F columns read, H horizon, K targets, W steps of a cycle, Q outputs a target, O = K Q.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Fraction, register
from tauon.errors import Problem, RecipeError
from tauon.models.base import Model, Size
from tauon.models.families.forecast import ForecasterConfig, backward_scale, forward_scale
from tauon.models.randomness import dropout
from tauon.types import DataSpec

__all__ = ["CycleNet", "CycleNetConfig"]


@register("cyclenet")
class CycleNetConfig(ForecasterConfig):
    """A learned cycle, and a map over time for what is left: the default for series with a calendar."""

    cycle: Count = Field(24, ge=2, le=1000)
    """Steps of a cycle, W: 24 for hour, 7 for weekday, 12 for month."""
    hidden: Size | None = None
    """Size of the map's hidden layer. Left out: the map is linear."""
    dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of hidden activations dropped in training."""
    revin: bool = True
    """Scale each window to mean 0 and variance 1 first, and the forecast back."""

    def resolve(self, spec: DataSpec) -> Self:
        resolved = super().resolve(spec)
        assert spec.input_shape is not None
        extra = spec.input_shape[1] - len(spec.labels)
        if extra != 1:
            message = (
                f"cyclenet reads each series and one calendar column, but the data has {extra} columns beside the targets. Set "
                "data.window.calendar to one part ([hour]) and leave out data.source.inputs, or use dlinear or lstm."
            )
            raise RecipeError([Problem("model.kind", message)])
        return resolved

    def build(self) -> CycleNet:
        T, H, _, K, O = self.sizes
        return CycleNet((T, H, K, O // K), self.cycle, self.hidden, self.dropout, revin=self.revin)


class CycleNet(Model):
    """BTF -> BHO, F = K + 1."""

    shard_plan = {"*": "replicate"}  # noqa: RUF012 - plain data, read only

    def __init__(self, shape: tuple[int, int, int, int], cycle: int, hidden: int | None, dropout: float, *, revin: bool) -> None:
        super().__init__()
        T, H, K, Q = shape
        self.shape, self.length, self.dropout, self.revin = shape, cycle, dropout, revin
        self.cycle = nn.Embedding(cycle, K)
        self.hidden = nn.Linear(T, hidden) if hidden else None
        self.out = nn.Linear(hidden or T, H * Q)

    def forward(self, x_BTF: Tensor) -> Tensor:
        T, H, K, Q = self.shape
        phase_B1 = ((x_BTF[:, :1, K] + 0.5) * (self.length - 1)).round().long().clamp(0, self.length - 1)
        steps = torch.arange(T + H, device=x_BTF.device)
        cycle_BSK = self.cycle((phase_B1 + steps) % self.length)
        rest_BTK = x_BTF[:, :, :K] - cycle_BSK[:, :T]
        if self.revin:
            rest_BTK, mean, deviation = forward_scale(rest_BTK)
        h_BKT = rest_BTK.transpose(1, 2)
        if self.hidden is not None:
            h_BKT = dropout(F.gelu(self.hidden(h_BKT)), self.dropout, self.training)
        B = x_BTF.shape[0]  # not len(): torch.export would fix the number
        out_BHO: Tensor = self.out(h_BKT).view(B, K, H, Q).permute(0, 2, 1, 3).reshape(B, H, K * Q)
        if self.revin:
            out_BHO = backward_scale(out_BHO, mean, deviation, K)
        forecast_BHO: Tensor = out_BHO + cycle_BSK[:, T:].repeat_interleave(Q, dim=2)
        return forecast_BHO

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """No cycle at first, as the paper's code; torch's rule for the map."""
        nn.init.zeros_(p) if name == "cycle.weight" else super().init_parameter(name, p, g)

    def flops_per_example(self, spec: DataSpec) -> float:
        """6 for each weight of the map and series."""
        return 6.0 * self.shape[2] * sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))

    def activations_per_example(self, spec: DataSpec) -> float:
        """Context, cycle, hidden layer and forecast of each series."""
        T, H, K, Q = self.shape
        return float(K * (4 * T + 3 * H * Q + (2 * self.hidden.out_features if self.hidden is not None else 0)))
