"""Rules of a recipe: optimizers that do not work with its batches or privacy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tauon.config import recipe_rule

__all__: list[str] = []


@recipe_rule
def full_batch_has_no_batch(recipe: Any) -> Iterator[tuple[str, str]]:
    """Gradient descent uses the full training set."""
    optim, train = recipe.raw_value("optim"), recipe.raw_value("train")
    for name in ("batch", "batch_warmup") if optim.full_batch else ():
        if name in train.model_fields_set:
            yield f"train.{name}", f"{optim.kind_} uses the full training set at every step. Remove it, or set optim.kind=sgd."


@recipe_rule
def corrected_noise_needs_noise(recipe: Any) -> Iterator[tuple[str, str]]:
    """An optimizer that corrects for the noise of private training."""
    optim, privacy = recipe.raw_value("optim"), recipe.raw_value("privacy")
    if optim.for_noise and (privacy is None or not privacy.promises):
        yield (
            "optim.kind",
            f"{optim.kind_} corrects for the noise of private training, but the run is not private. Set adamw, or add privacy.",
        )
