"""A trained model back from its checkpoint, for whatever uses it: evaluation, prediction, generation, audits, export."""

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
    """(model in eval mode, precision): the weights that a checkpoint holds; `auto` takes the average where there is one."""
    device, _ = choose_device(recipe.train.device)
    group = "ema" if weights == "ema" or (weights == "auto" and "ema" in checkpoint.groups()) else "model"
    if group not in checkpoint.groups():
        raise RecipeError(
            [Problem("evaluate.weights", f"ema, but {checkpoint.path} holds {', '.join(checkpoint.groups())}. Train with train.ema.")]
        )
    config = from_record(checkpoint.state["model"])
    own = checkpoint.lazy("model")
    refuse_misfits(config.build_on_meta(), own, where=str(checkpoint.path))
    given: dict[str, Any] = dict(own)
    if group == "ema":  # over the raw weights, of buffers an average holds running statistics only, and of a tied weight one
        given |= checkpoint.lazy("ema")
    if config.adapt is not None:
        given = dict(frozen_base_weights(config, checkpoint)) | given
    model = materialize(config, seed=0, device=device, weights=given)
    precision, _ = choose_precision(checkpoint.state["precision"], device, model)
    return model.eval(), precision
