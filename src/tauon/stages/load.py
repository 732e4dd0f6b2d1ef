"""Loads a trained model from its checkpoint: for evaluation, prediction, generation, audits, export."""

from __future__ import annotations

from typing import Any

from tauon.artifacts import Checkpoint
from tauon.errors import Problem, RecipeError
from tauon.models import from_record, frozen_base_weights, materialize, refuse_misfits
from tauon.plan import choose_device, choose_precision
from tauon.recipe import Recipe
from tauon.train import Precision

__all__ = ["load_model"]


def load_model(checkpoint: Checkpoint, recipe: Recipe, *, weights: str = "auto") -> tuple[Any, Precision]:
    """Return (model in eval mode, precision) from a checkpoint. `weights`: raw, ema, or auto (ema if the checkpoint has it)."""
    device, _ = choose_device(recipe.train.device)
    group = "ema" if weights == "ema" or (weights == "auto" and "ema" in checkpoint.groups()) else "model"
    if group not in checkpoint.groups():
        raise RecipeError(
            [
                Problem(
                    "evaluate.weights",
                    f"is ema, but {checkpoint.path} has only {', '.join(checkpoint.groups())}. Train with train.ema, or set evaluate.weights=raw.",
                )
            ]
        )
    config = from_record(checkpoint.state["model"])
    saved = checkpoint.lazy("model")
    refuse_misfits(config.build_on_meta(), saved, where=str(checkpoint.path))
    tensors: dict[str, Any] = dict(saved)
    if group == "ema":  # on top of the raw weights: an average has only some of the buffers, and one copy of a tied weight
        tensors |= checkpoint.lazy("ema")
    if config.adapt is not None:
        tensors = dict(frozen_base_weights(config, checkpoint)) | tensors
    model = materialize(config, seed=0, device=device, weights=tensors)
    precision, _ = choose_precision(checkpoint.state["precision"], device, model)
    return model.eval(), precision
