"""What models of tables share: which columns are numbers and which hold codes, and a table of vectors for each column of codes.

Shapes: B batch, F columns, N numeric ones, E width of an embedding.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from tauon.config import Count
from tauon.errors import Problem, RecipeError
from tauon.models.base import ModelConfig, Size
from tauon.types import DataSpec

__all__ = ["ColumnsInput", "TabularConfig", "array_sizes", "embedding_width", "refuse_codes"]


def array_sizes(config: ModelConfig, spec: DataSpec) -> tuple[tuple[int, ...], int]:
    """(input shape, outputs) of array data. Raises `RecipeError` where the data is made of tokens."""
    if spec.input_shape is None or spec.outputs is None:
        raise RecipeError([Problem("model.kind", f"{config.kind_} reads arrays, and this data is made of tokens. Take gpt or gpt2.")])
    return spec.input_shape, spec.outputs


def refuse_codes(config: ModelConfig, spec: DataSpec) -> None:
    """Codes of categories are no quantities: a model that would multiply them is refused. `RecipeError`."""
    if any(spec.categories) and not config.reads_codes:
        n = sum(c > 0 for c in spec.categories)
        raise RecipeError(
            [
                Problem(
                    "model.kind",
                    f"{config.kind_} reads numbers, and {n} columns hold codes of categories. Set data.table.categories: onehot, "
                    "or take tabm, mlp, wide-and-deep or ft-transformer, which embed them.",
                )
            ]
        )


def embedding_width(codes: int) -> int:
    """Numbers that stand for a category of `codes`: 1.6 codes^0.56, at most 600 (the rule of fast.ai's tabular models)."""
    return min(600, max(1, round(1.6 * math.pow(codes, 0.56))))


class TabularConfig(ModelConfig):
    """Base of models that read tables: their sizes are the data's."""

    reads_codes = True

    inputs: Size | None = None
    """Columns, F. Left out: the data's."""
    outputs: Size | None = None
    """Classes or targets, C. Left out: the data's."""
    categories: tuple[Count, ...] = ()
    """Codes of each column, 0 for numbers. Left out: the data's."""

    def resolve(self, spec: DataSpec) -> Self:
        refuse_codes(self, spec)
        shape, outputs = array_sizes(self, spec)
        features = math.prod(shape)
        if self.inputs not in (None, features):
            raise RecipeError([Problem("model.inputs", f"{self.inputs}, but an example has {features} features {shape}. Leave it out.")])
        if self.outputs not in (None, outputs):
            raise RecipeError([Problem("model.outputs", f"{self.outputs}, but the data has {outputs}. Leave it out.")])
        if self.categories not in ((), spec.categories):
            message = f"{list(self.categories)}, but the data has {list(spec.categories)}. Leave it out."
            raise RecipeError([Problem("model.categories", message)])
        return self.model_copy(update={"inputs": features, "outputs": outputs, "categories": spec.categories})

    @property
    def sizes(self) -> tuple[int, int]:
        """(columns, outputs), once resolved."""
        if self.inputs is None or self.outputs is None:
            raise RecipeError(
                [Problem("model", "inputs and outputs are not known yet: resolve the config against the data first, or set both.")]
            )
        return self.inputs, self.outputs


class ColumnsInput(nn.Module):
    """BF -> B(N + sum of E): numbers as they are, each code as its vector (Guo & Berkhahn 2016, arXiv:1604.06737)."""

    def __init__(self, inputs: int, categories: tuple[int, ...], width: int | None) -> None:
        """`width`: of every embedding; None: by `embedding_width`."""
        super().__init__()
        self.numbers = [j for j in range(inputs) if not categories or categories[j] == 0]
        self.coded = [j for j, n in enumerate(categories) if n]
        self.tables = nn.ModuleList(nn.Embedding(n, width or embedding_width(n)) for n in categories if n)
        self.width = len(self.numbers) + sum(t.embedding_dim for t in self.tables)  # type: ignore[misc]

    def forward(self, x_BF: Tensor) -> Tensor:
        if not self.coded:
            return x_BF
        parts = [x_BF[:, self.numbers]]
        parts += [table(x_BF[:, j].long()) for j, table in zip(self.coded, self.tables, strict=True)]
        return torch.cat(parts, dim=1)
