"""Recipe settings that cannot work with the task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tauon.config import recipe_rule

__all__: list[str] = []


@recipe_rule
def tokens_are_of_text(recipe: Any) -> Iterator[tuple[str, str]]:
    """A length in tokens."""
    task = recipe.raw_value("task")
    if recipe.raw_value("train").raw_value("tokens") is not None and task.input_kind not in ("tokens", "masked-tokens", "chat"):
        yield "train.tokens", f"has no effect, because task {task.kind_} has no tokens. Set train.steps, train.epochs or train.time."


@recipe_rule
def preferences_have_a_reference(recipe: Any) -> Iterator[tuple[str, str]]:
    """Preferences need a reference model, from which training starts."""
    task = recipe.raw_value("task")
    if task.input_kind != "pairs":
        return
    if recipe.raw_value("model").raw_value("from_") is None:
        yield "model.from", f"is missing: {task.kind_} needs a reference model. Set it to a model that was tuned on instructions."
    if recipe.raw_value("parallel").kind_ == "parameter-server":
        yield (
            "parallel.kind",
            f"is parameter-server, whose workers have no reference model, but task {task.kind_} needs one. Set replicate.",
        )


@recipe_rule
def samples_are_of_text(recipe: Any) -> Iterator[tuple[str, str]]:
    """Text generation in evaluation needs a language model."""
    task = recipe.raw_value("task")
    if task.input_kind in ("tokens", "chat", "pairs"):
        return
    for name in ("prompts", "samples"):
        if name in recipe.raw_value("evaluate").model_fields_set:
            yield f"evaluate.{name}", f"is only for language models, but the task is {task.kind_}. Remove it."
