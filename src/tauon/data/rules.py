"""Data settings that cannot work with the task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tauon.config import recipe_rule
from tauon.data.config import DataConfig
from tauon.data.kinds.rules import problems_for

__all__: list[str] = []


@recipe_rule
def data_fits_the_task(recipe: Any) -> Iterator[tuple[str, str]]:
    """Problems: keys for another kind of data."""
    for name, message in problems_for(recipe.raw_value("data"), recipe.raw_value("task").input_kind):
        yield f"data.{name}", message


@recipe_rule
def keys_of_classes(recipe: Any) -> Iterator[tuple[str, str]]:
    """Problems: keys for classes, if there are none."""
    task, data = recipe.raw_value("task"), recipe.raw_value("data")
    if task.family in ("classification", "ordinal") or task.input_kind != "arrays":
        return
    for name in ("mix", "sampling", "class_weights", "label_order"):
        if data.raw_value(name) != DataConfig.model_fields[name].default:
            yield f"data.{name}", f"is only for classes, but the task is {task.kind_}. Remove it."
