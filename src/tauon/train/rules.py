"""Recipe rules of training: settings that need validation data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tauon.config import recipe_rule

__all__: list[str] = []


@recipe_rule
def validation_needs_data(recipe: Any) -> Iterator[tuple[str, str]]:
    """Yield validation settings that are set although no data is held out."""
    data, train = recipe.raw_value("data"), recipe.raw_value("train")
    split = data.raw_value("split")
    if data.raw_value("validation") is not None or split.raw_value("folds") is not None or split.raw_value("validation") != 0:
        return
    for name in ("early_stopping", "validate_every", "validate_examples"):
        if train.raw_value(name) is not None:
            yield (
                f"train.{name}",
                "needs validation data, but data.split.validation is 0. Hold some out (data.split.validation=5%), or remove this key.",
            )
