"""Reference model of preference tuning: log-probabilities of the answers under the model that training starts from."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tauon.config import dump
from tauon.data import DataConfig, DataSplits, PairDataset, with_reference
from tauon.models import ModelConfig, PretrainedModel, materialize
from tauon.plan import Work, choose_device, training_precision
from tauon.recipe import Recipe
from tauon.stages.extensions.base import SplitTransform
from tauon.tasks import answer_log_probs
from tauon.train import JobConfig, Precision
from tauon.types import Batch

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
        recipe, recorded = ctx.recipe, None if ctx.folder is None else (ctx.folder.manifest().get("training") or {}).get("plan")
        config = JobConfig(ctx.model_for(splits), recipe.optim, recipe.train, recipe.task, splits.spec, recipe.seed)
        precision = training_precision(config, Work(_WithoutReference(splits, recipe.train.batch)), recorded=recorded)
        attach_reference(recipe, ctx.data, config.model, ctx.start, splits, precision)
        return splits


class _WithoutReference:
    """The first pairs, as if the reference model found all answers equally likely: to measure a step before the reference is computed."""

    def __init__(self, splits: DataSplits, rows: int) -> None:
        self.train, self.rows = splits.train, min(rows, len(splits.train))

    def batch_at(self, step: int) -> Batch:
        batch = self.train.batch(np.arange(self.rows))
        return replace(batch, reference=torch.zeros(len(batch), 2))


def attach_reference(
    recipe: Recipe, data: DataConfig, model: ModelConfig, start: PretrainedModel | None, splits: DataSplits, precision: Precision
) -> None:
    """Add to every pair the log-probabilities of its answers under the model that training starts from: computed once and cached.

    The whole model is in one process meanwhile. Pretrained adapters are part of it; new adapters do not change its output.
    """
    device, _ = choose_device(recipe.train.device)
    loaded: list[Any] = []

    def compute(part: PairDataset) -> np.ndarray[Any, Any]:
        if not loaded:
            loaded.append(materialize(model, seed=recipe.seed, device=device).eval())
        net, rows = loaded[0], []
        with torch.no_grad(), precision.context():
            for first in range(0, len(part), _ROWS):
                batch = part.batch(np.arange(first, min(first + _ROWS, len(part)))).to(device)
                rows.append(answer_log_probs(net, batch).float().cpu().numpy())
        return np.concatenate(rows)

    adapter = None if model.adapt is None else [dump(model.adapt), _files_of(model.adapt.from_)]
    with_reference(splits, data, [None if start is None else start.fingerprint, recipe.seed, adapter, precision.name, str(device)], compute)


def _files_of(folder: str | None) -> list[str]:
    """Return the sha256 of each file of a pretrained adapter."""
    files = [] if folder is None else sorted(p for p in Path(folder).expanduser().glob("adapter*") if p.is_file())
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]
