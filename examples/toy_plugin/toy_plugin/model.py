"""A factorization machine (Rendle 2010, https://doi.org/10.1109/ICDM.2010.127): a linear model plus the products of all pairs of
features, whose weights are a matrix of low rank.

Shapes: B batch, F features, C outputs, K rank.
"""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field
from torch import Tensor, nn

from tauon.config import Count, register
from tauon.errors import Problem, RecipeError
from tauon.models import Model, ModelConfig
from tauon.types import DataSpec

__all__ = ["FactorizationMachine", "FactorizationMachineConfig"]


@register("factorization-machine")
class FactorizationMachineConfig(ModelConfig):
    """Linear in the features and in their products."""

    rank: Count = Field(4, ge=1)
    """Rank of the matrix of weights of products, K."""
    inputs: Count | None = None
    """Features of an example. Left out: the data's."""
    outputs: Count | None = None
    """Classes or targets. Left out: the data's."""

    def resolve(self, spec: DataSpec) -> Self:
        if spec.input_shape is None or spec.outputs is None:
            raise RecipeError([Problem("model.kind", "factorization-machine reads arrays, and this data is made of tokens.")])
        return self.model_copy(update={"inputs": math.prod(spec.input_shape), "outputs": spec.outputs})

    def build(self) -> FactorizationMachine:
        if self.inputs is None or self.outputs is None:
            raise RecipeError([Problem("model", "inputs and outputs are not known yet: resolve the config against the data first.")])
        return FactorizationMachine(self.inputs, self.outputs, self.rank)


class FactorizationMachine(Model):
    """B... -> BC: w.x + b + sum over pairs i < j of <v_i, v_j> x_i x_j."""

    shard_plan = {"*": "replicate"}  # noqa: RUF012 - plain data

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.factors = nn.Linear(inputs, outputs * rank, bias=False)
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        x_BF = x.flatten(1)
        sums = self.factors(x_BF).unflatten(1, (-1, self.rank)).square()  # (sum_i v_i x_i)^2, BCK
        own = (x_BF.square() @ self.factors.weight.square().t()).unflatten(1, (-1, self.rank))  # sum_i (v_i x_i)^2
        out: Tensor = self.linear(x_BF) + 0.5 * (sums - own).sum(2)
        return out
