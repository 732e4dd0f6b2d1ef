"""LSTM forecaster: recurrent layers read the context (Hochreiter & Schmidhuber 1997), a linear map turns the last state into the horizon.

The only forecaster here whose columns see one another: it also reads inputs and the calendar.
Shapes: B batch, T context, F columns read, H horizon, D width, K targets, O outputs of a step.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, Fraction, register
from tauon.models.base import Model, Size
from tauon.models.families.forecast import ForecasterConfig, backward_scale, forward_scale
from tauon.models.randomness import dropout
from tauon.types import DataSpec

__all__ = ["LSTMConfig", "LSTMForecaster"]


@register("lstm")
class LSTMConfig(ForecasterConfig):
    """Recurrent layers over the context, then one linear map to all steps of the horizon."""

    layers: Count = Field(1, ge=1, le=100)
    """Recurrent layers."""
    width: Size = 64
    """Size of the state, D."""
    dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of each layer's output dropped in training."""
    revin: bool = True
    """Scale each window to mean 0 and variance 1 first, and the forecast back."""

    def build(self) -> LSTMForecaster:
        _, H, inputs, K, O = self.sizes
        return LSTMForecaster(inputs, H, K, O, self.layers, self.width, self.dropout, revin=self.revin)


class LSTMForecaster(Model):
    """BTF -> BHO."""

    shard_plan = {"*": "replicate"}  # noqa: RUF012 - plain data, read only

    def __init__(self, inputs: int, H: int, K: int, O: int, layers: int, width: int, dropout: float, *, revin: bool) -> None:
        super().__init__()
        self.shape, self.revin, self.dropout = (H, K, O), revin, dropout
        self.layers = nn.ModuleList(nn.LSTM(inputs if i == 0 else width, width, batch_first=True) for i in range(layers))
        self.head = nn.Linear(width, H * O)

    def forward(self, x_BTF: Tensor) -> Tensor:
        H, K, O = self.shape
        if self.revin:
            x_BTF, mean, deviation = forward_scale(x_BTF)
        h = x_BTF
        for layer in self.layers:
            h = dropout(layer(h)[0], self.dropout, self.training)
        out: Tensor = self.head(h[:, -1]).view(-1, H, O)
        return backward_scale(out, mean, deviation, K) if self.revin else out

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """Torch's rule U(-1/sqrt D, 1/sqrt D); the forget gate open, bias 1 (Jozefowicz et al. 2015); the head at zero."""
        if name.startswith("head."):
            nn.init.zeros_(p)
        elif p.ndim == 1:
            nn.init.zeros_(p)
            if "bias_ih" in name:
                p[len(p) // 4 : len(p) // 2] = 1
        else:
            bound = (p.shape[0] // 4) ** -0.5
            nn.init.uniform_(p, -bound, bound, generator=g)

    def flops_per_example(self, spec: DataSpec) -> float:
        """6 for each recurrent weight and step, and the head once."""
        T = spec.input_shape[0] if spec.input_shape else 1
        return 6.0 * (T * sum(p.numel() for p in self.layers.parameters() if p.ndim == 2) + self.head.weight.numel())

    def activations_per_example(self, spec: DataSpec) -> float:
        """Gates, cell and state of each layer and step."""
        T = spec.input_shape[0] if spec.input_shape else 1
        D = self.head.in_features
        return float(len(self.layers) * T * 8 * D + self.head.out_features)
