"""Multi-layer perceptron (784-128-10 and its like), and its case without hidden layers: logistic and linear regression.

Takes one example's features flattened. Does not know whether its outputs are logits or values: the task does.
Shapes: B batch, F features, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tauon.config import Fraction, register
from tauon.errors import Problem, RecipeError
from tauon.models.base import Model, ModelConfig, Size
from tauon.types import DataSpec

__all__ = ["LinearConfig", "LogisticConfig", "MLPConfig", "Perceptron", "array_sizes"]


def array_sizes(config: ModelConfig, spec: DataSpec) -> tuple[tuple[int, ...], int]:
    """(input shape, outputs) of array data. Raises `RecipeError` where the data is made of tokens."""
    if spec.input_shape is None or spec.outputs is None:
        raise RecipeError([Problem("model.kind", f"{config.kind_} reads arrays, and this data is made of tokens. Take gpt or gpt2.")])
    return spec.input_shape, spec.outputs


class _ArrayConfig(ModelConfig):
    inputs: Size | None = None
    """Features of one example, F. Left out: the data's."""
    outputs: Size | None = None
    """Classes or targets, C. Left out: the data's."""

    def resolve(self, spec: DataSpec) -> Self:
        shape, outputs = array_sizes(self, spec)
        features = math.prod(shape)
        if self.inputs not in (None, features):
            raise RecipeError([Problem("model.inputs", f"{self.inputs}, but an example has {features} features {shape}. Leave it out.")])
        if self.outputs not in (None, outputs):
            raise RecipeError([Problem("model.outputs", f"{self.outputs}, but the data has {outputs}. Leave it out.")])
        return self.model_copy(update={"inputs": features, "outputs": outputs})

    @property
    def sizes(self) -> tuple[int, int]:
        if self.inputs is None or self.outputs is None:
            raise RecipeError(
                [Problem("model", "inputs and outputs are not known yet: resolve the config against the data first, or set both.")]
            )
        return self.inputs, self.outputs


@register("mlp")
class MLPConfig(_ArrayConfig):
    """Fully connected layers with an activation between them."""

    hidden: tuple[Size, ...] = (128,)
    """Sizes of the hidden layers; [128] on MNIST is 784-128-10."""
    activation: Literal["relu", "gelu", "tanh", "silu"] = "relu"
    """Between layers."""
    dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of hidden activations dropped in training."""
    input_dropout: Fraction = Field(0.0, ge=0, lt=1)
    """Share of inputs dropped in training."""

    def build(self) -> Perceptron:
        inputs, outputs = self.sizes
        return Perceptron((inputs, *self.hidden, outputs), self.activation, self.dropout, self.input_dropout)


@register("logistic")
class LogisticConfig(_ArrayConfig):
    """Logistic regression: one linear layer; train it with task: classification."""

    def build(self) -> Perceptron:
        return Perceptron(self.sizes)


@register("linear")
class LinearConfig(_ArrayConfig):
    """Linear regression: one linear layer; train it with task: regression."""

    def build(self) -> Perceptron:
        return Perceptron(self.sizes)


class Perceptron(Model):
    """B... -> BC."""

    shard_plan = {"layers.*": "replicate"}  # noqa: RUF012 - plain data, read only

    def __init__(self, sizes: tuple[int, ...], activation: str = "relu", dropout: float = 0.0, input_dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        activations: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh, "silu": F.silu}
        self.activation = activations[activation]
        self.dropout, self.input_dropout = dropout, input_dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x.flatten(1), self.input_dropout, self.training)
        for layer in self.layers[:-1]:
            x = F.dropout(self.activation(layer(x)), self.dropout, self.training)
        out: Tensor = self.layers[-1](x)
        return out

    def init_parameter(self, name: str, p: Tensor, g: torch.Generator) -> None:
        """He initialisation (arXiv:1502.01852); the output layer at zero, so that every class starts equally likely."""
        if p.ndim == 1 or name.startswith(f"layers.{len(self.layers) - 1}."):
            nn.init.zeros_(p)
        else:
            nn.init.normal_(p, 0.0, math.sqrt(2 / p.shape[1]), generator=g)
