"""Rules of a recipe: settings that do not work with privacy."""

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
        yield "privacy.views", "is for private training, but neither target_epsilon nor noise_multiplier is set. Remove it."
    elif not data.raw_value("augment"):
        yield "privacy.views", "repeats each example in a step without augmentation. Set data.augment, or remove privacy.views."


@recipe_rule
def one_example_can_be_clipped(recipe: Any) -> Iterator[tuple[str, str]]:
    """Settings under which an example's gradient cannot be clipped, or statistics cannot be noisy."""
    privacy, data, task = recipe.raw_value("privacy"), recipe.raw_value("data"), recipe.raw_value("task")
    if privacy is None or not privacy.promises:
        return
    yield from refuse_combinations(data, task, recipe.raw_value("optim"), recipe.raw_value("parallel"))
    if privacy.raw_value("statistics") is not None:
        yield from refuse_statistics(data, task.input_kind)


@recipe_rule
def cleaning_looks_at_one_example(recipe: Any) -> Iterator[tuple[str, str]]:
    """Cleaning filters that decide about one example by others: one person's data would reach another's."""
    privacy, data = recipe.raw_value("privacy"), recipe.raw_value("data")
    if privacy is None or not privacy.promises:
        return
    for place, one in enumerate(data.raw_value("clean")):
        if one.looks_at_others:
            yield (
                f"data.clean.{place}",
                f"{one.kind_} decides about an example by other examples, which the privacy guarantee does not cover. Remove it, or clean the "
                "data once, before they are named as the data set that is protected",
            )
