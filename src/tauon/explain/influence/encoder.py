"""What all methods share: an encoder turns a batch into rows of numbers, so that the influence of one example on another is a sum of products of
two rows. It does not know where the rows are stored.

Shapes: B examples, K columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tauon.types import Batch, Dataset

__all__ = ["Block", "Encoder", "Method", "Progress", "batches", "products", "squares"]

Progress = Callable[[int, int], None]
"""(done, total)."""


@dataclass(frozen=True)
class Block:
    """Columns of a row that are multiplied together.

    `right` 0: a vector, columns [start, start + left). Otherwise two vectors x, y one after the other: the gradient y x^T of a matrix, whose inner
    product with another is (x . x')(y . y').
    """

    start: int
    left: int
    right: int = 0

    @property
    def stop(self) -> int:
        return self.start + self.left + self.right


class Encoder(Protocol):
    """Fitted: models and what the method computed of the training data."""

    columns: int
    blocks: list[Block]
    weighted: bool
    """Whether the scores of training example i are multiplied by `importance` of it."""
    facts: dict[str, Any]
    """For the index and the report, JSON: the method with its settings, what its score means, parameters that are left out."""

    def encode(self, batch: Batch) -> Tensor:
        """Return BK, float32."""
        ...

    def importance(self, batch: Batch) -> Tensor:
        """Return B: the factor of each training example."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What must be stored to encode queries later, beside the models and `facts`."""
        ...


class Method(Protocol):
    """Settings of a method."""

    kind: str

    def fit(self, models: Any, task: Any, data: Dataset, progress: Progress | None = None) -> Encoder:
        """Compute what the method needs from the training data."""
        ...

    def restore(self, models: Any, task: Any, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Encoder:
        """The encoder that was stored."""
        ...


def batches(data: Dataset, size: int, index: np.ndarray | None = None) -> Iterator[Batch]:
    """Yield the examples `index` (all if None) in order, `size` at once."""
    index = np.arange(len(data), dtype=np.int64) if index is None else index
    for start in range(0, len(index), size):
        yield data.batch(index[start : start + size])


def products(queries_QK: Tensor, examples_NK: Tensor, blocks: list[Block]) -> Tensor:
    """Return QN: the influence of each example on each query.

    >>> x = torch.tensor([[1.0, 2.0, 3.0]])
    >>> products(x, x, [Block(0, 1), Block(1, 1, 1)])  # 1 * 1 + (2 * 2)(3 * 3)
    tensor([[37.]])
    """
    total: Tensor | None = None
    for b in blocks:
        middle = b.start + b.left
        part = queries_QK[:, b.start : middle] @ examples_NK[:, b.start : middle].t()
        if b.right:
            part *= queries_QK[:, middle : b.stop] @ examples_NK[:, middle : b.stop].t()
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def squares(rows_NK: Tensor, blocks: list[Block]) -> Tensor:
    """Return N: the influence of each example on itself, without `importance`."""
    total = torch.zeros(len(rows_NK))
    for b in blocks:
        middle = b.start + b.left
        part = rows_NK[:, b.start : middle].square().sum(1)
        total += part * rows_NK[:, middle : b.stop].square().sum(1) if b.right else part
    return total
