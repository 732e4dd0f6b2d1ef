"""What a plan times to choose the precision of a private run: clipped gradients without noise, of rows that are made up.

The choice is published with the run. It must not depend on anybody's data, and so neither on their values nor on how many rows were drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from tauon.models import Model
from tauon.models.randomness import key_layers, keyed_rows
from tauon.plan import Gradients
from tauon.privacy.clipped import ClippedSum, ClippingConfig
from tauon.tasks import Task
from tauon.types import Batch, Dataset, DataSpec

__all__ = ["MadeUpRows", "clipped_gradients"]


def clipped_gradients(clipping: ClippingConfig, rows_per_unit: int = 1) -> Gradients:
    """Return what prepares a model for gradients that are clipped by unit and added up."""

    def prepare(model: Model, task: Task) -> Callable[[Batch, Callable[[], AbstractContextManager[object]]], None]:
        key_layers(model)
        clipped = ClippedSum(model, rows_per_unit=rows_per_unit)
        state = clipping.start({n: p.numel() for n, p in model.named_parameters() if p.requires_grad})

        def run(batch: Batch, context: Callable[[], AbstractContextManager[object]]) -> None:
            with clipped.recording(len(batch)), keyed_rows(torch.arange(len(batch)), 0):
                with context():
                    total, _ = task.loss(model, batch)
                total.backward()  # type: ignore[no-untyped-call]
            clipped.add(clipping.factors(clipped.squared_norms(), state, 0.0))
            clipped.forget()

        return run

    return prepare


class MadeUpRows:
    """A batch of `rows` rows with the shapes and types that `train` has, and values that are drawn."""

    def __init__(self, train: Dataset, rows: int) -> None:
        self.train, self.rows = train, rows

    def batch_at(self, step: int) -> Batch:
        """Return the same batch for every step."""
        like, spec = self.train.batch(np.zeros(self.rows, np.int64)), self.train.spec
        g = torch.Generator().manual_seed(0)
        return Batch(
            _inputs(like.inputs, spec, g), _targets(like.targets, spec, g), torch.ones_like(like.weights),
            segments=None if like.segments is None else torch.zeros_like(like.segments),
            lengths=None if like.lengths is None else torch.full_like(like.lengths, like.inputs.shape[1]),
        )  # fmt: skip


def _inputs(like: Tensor, spec: DataSpec, g: torch.Generator) -> Tensor:
    if not like.is_floating_point():
        return torch.randint(0, spec.vocab or 2, like.shape, generator=g, dtype=like.dtype)
    drawn = torch.randn(like.shape, generator=g, dtype=like.dtype)
    for column, codes in enumerate(spec.categories):
        if codes:
            drawn[:, column] = torch.randint(0, codes, (len(like),), generator=g).to(like.dtype)
    return drawn


def _targets(like: Tensor, spec: DataSpec, g: torch.Generator) -> Tensor:
    if like.is_floating_point():
        return torch.rand(like.shape, generator=g, dtype=like.dtype)
    classes = spec.outputs if spec.vocab is None or like.ndim == 1 else spec.vocab
    return torch.randint(0, classes or 2, like.shape, generator=g, dtype=like.dtype)
