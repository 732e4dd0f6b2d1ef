"""Multi-layer perceptron (784-128-10 and its like), and its case without hidden layers: logistic and linear regression.

Takes one example's features flattened. Does not know whether its outputs are logits or values: the task does.
Shapes: B batch, F features, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Fraction, register
from tauon.models.base import Model, Size
from tauon.models.families.columns import ColumnsInput, TabularConfig, array_sizes
from tauon.models.randomness import dropout

__all__ = ["LinearConfig", "LogisticConfig", "MLPConfig", "Perceptron", "array_sizes"]


@register("mlp")
class MLPConfig(TabularConfig):
    """Fully connected layers with an activation between them; columns of codes are embedded first."""

    hidden: tuple[Size, ...] = (128,)
    """Sizes of the hidden layers; [128] on MNIST is 784-128-10."""
    activation: Literal["relu", "gelu", "tanh", "silu"] = "relu"
    """Between layers."""
    dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of hidden activations dropped in training."""
    input_dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of inputs dropped in training."""
    embedding: Size | None = None
    """Numbers that stand for a category, in each column of codes. Left out: 1.6 codes^0.56."""

    def build(self) -> Perceptron:
        inputs, outputs = self.sizes
        if not any(self.categories):
            return Perceptron((inputs, *self.hidden, outputs), self.activation, self.dropout, self.input_dropout)
        columns = ColumnsInput(inputs, self.categories, self.embedding)
        return Perceptron((columns.width, *self.hidden, outputs), self.activation, self.dropout, self.input_dropout, columns)


@register("logistic")
class LogisticConfig(TabularConfig):
    """Logistic regression: one linear layer; train it with task: classification."""

    reads_codes = False

    def build(self) -> Perceptron:
        return Perceptron(self.sizes)


@register("linear")
class LinearConfig(TabularConfig):
    """Linear regression: one linear layer; train it with task: regression."""

    reads_codes = False

    def build(self) -> Perceptron:
        return Perceptron(self.sizes)


class Perceptron(Model):
    """B... -> BC."""

    shard_plan = {"layers.*": "replicate", "columns.*": "replicate"}  # noqa: RUF012 - plain data, read only

    def __init__(
        self, sizes: tuple[int, ...], activation: str = "relu", dropout: float = 0.0, input_dropout: float = 0.0,
        columns: ColumnsInput | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.columns = columns
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.modules_to_save = (f"layers.{len(sizes) - 2}.*",)
        activations: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh, "silu": F.silu}
        self.activation = activations[activation]
        self.dropout, self.input_dropout = dropout, input_dropout

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) if self.columns is None else self.columns(x)
        x = dropout(x, self.input_dropout, self.training)
        for layer in self.layers[:-1]:
            x = dropout(self.activation(layer(x)), self.dropout, self.training)
        out: Tensor = self.layers[-1](x)
        return out

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """He initialisation (arXiv:1502.01852); the output layer at zero, so that every class starts equally likely."""
        if p.ndim == 1 or name.startswith(f"layers.{len(self.layers) - 1}."):
            nn.init.zeros_(p)
        elif name.startswith("columns."):
            nn.init.normal_(p, 0.0, 0.1, generator=g)
        else:
            nn.init.normal_(p, 0.0, math.sqrt(2 / p.shape[1]), generator=g)
