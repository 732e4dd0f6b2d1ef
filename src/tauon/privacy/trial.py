"""Gradients of a private step without its noise: what a plan times to choose the precision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from tauon.models import Model
from tauon.models.randomness import key_layers, keyed_rows
from tauon.plan import Gradients
from tauon.privacy.clipped import ClippedSum, ClippingConfig
from tauon.tasks import Task
from tauon.types import Batch

__all__ = ["clipped_gradients"]


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
