"""What a private recipe cannot be together with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tauon.config import recipe_rule
from tauon.privacy.run import refuse_combinations
from tauon.privacy.statistics import refuse_statistics

__all__: list[str] = []


@recipe_rule
def views_are_augmented(recipe: Any) -> Iterator[tuple[str, str]]:
    """Several views of an example in one step."""
    privacy, data = recipe.raw_value("privacy"), recipe.raw_value("data")
    if privacy is None or privacy.raw_value("views") <= 1:
        return
    if not privacy.promises:
        yield "privacy.views", "is for private training, and neither epsilon nor noise is given. Drop it."
    elif not data.raw_value("augment"):
        yield "privacy.views", "shows an example several times in a step, each time the same: set data.augment, or drop it."


@recipe_rule
def one_example_can_be_clipped(recipe: Any) -> Iterator[tuple[str, str]]:
    """What keeps an example's gradient from being clipped alone, and statistics from being noisy."""
    privacy, data, task = recipe.raw_value("privacy"), recipe.raw_value("data"), recipe.raw_value("task")
    if privacy is None or not privacy.promises:
        return
    yield from refuse_combinations(data, task, recipe.raw_value("optim"), recipe.raw_value("parallel"))
    if privacy.raw_value("statistics") is not None:
        yield from refuse_statistics(data, task.input_kind)
