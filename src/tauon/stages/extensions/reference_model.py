"""Reference model of preference tuning: log-probabilities of the answers under the model that training starts from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tauon.config import dump
from tauon.data import DataConfig, DataSplits, PairDataset, with_reference
from tauon.models import ModelConfig, PretrainedModel, materialize
from tauon.plan import choose_device, choose_precision
from tauon.recipe import Recipe
from tauon.stages.extensions.base import SplitTransform
from tauon.tasks import answer_log_probs
from tauon.train import Precision

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["ReferenceModel", "attach_reference", "reference_model"]

_ROWS = 8


def reference_model(ctx: Context) -> ReferenceModel | None:
    """Return the transform if the task compares two answers."""
    return ReferenceModel(ctx) if ctx.recipe.task.input_kind == "pairs" else None


class ReferenceModel(SplitTransform):
    """Adds the reference model's log-probabilities to every pair of answers."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    def after(self, splits: DataSplits) -> DataSplits:
        ctx = self.ctx
        attach_reference(ctx.recipe, ctx.data, ctx.model_for(splits), ctx.start, splits)
        return splits


def attach_reference(recipe: Recipe, data: DataConfig, model: ModelConfig, start: PretrainedModel | None, splits: DataSplits) -> None:
    """Add to every pair the log-probabilities of its answers under the model that training starts from: computed once and cached.

    The whole model is in one process meanwhile. Pretrained adapters are part of it; new adapters do not change its output.
    """
    device, _ = choose_device(recipe.train.device)
    requested = recipe.train.precision
    loaded: list[tuple[Any, Precision]] = []

    def compute(part: PairDataset) -> np.ndarray[Any, Any]:
        if not loaded:
            net = materialize(model, seed=recipe.seed, device=device).eval()
            loaded.append((net, choose_precision(requested, device, net)[0]))
        net, precision = loaded[0]
        rows = []
        with torch.no_grad(), precision.context():
            for first in range(0, len(part), _ROWS):
                batch = part.batch(np.arange(first, min(first + _ROWS, len(part)))).to(device)
                rows.append(answer_log_probs(net, batch).float().cpu().numpy())
        return np.concatenate(rows)

    adapter = None if model.adapt is None else [dump(model.adapt), _files_of(model.adapt.from_)]
    with_reference(splits, data, [None if start is None else start.fingerprint, recipe.seed, adapter, requested, str(device)], compute)


def _files_of(folder: str | None) -> list[str]:
    """Return the sha256 of each file of a pretrained adapter."""
    files = [] if folder is None else sorted(p for p in Path(folder).expanduser().glob("adapter*") if p.is_file())
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]
