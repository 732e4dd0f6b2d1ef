"""What a recipe cannot ask of its task."""

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
        yield "train.tokens", f"task {task.kind_} has no tokens. Give steps, epochs or time."


@recipe_rule
def preferences_have_a_reference(recipe: Any) -> Iterator[tuple[str, str]]:
    """Preferences are measured against the model that training starts from."""
    task = recipe.raw_value("task")
    if task.input_kind != "pairs":
        return
    if recipe.raw_value("model").raw_value("from_") is None:
        yield "model.from", f"is missing: {task.kind_} begins with a model that answers already. Give one that was tuned on instructions."
    if recipe.raw_value("parallel").kind_ == "parameter-server":
        yield "parallel.kind", f"parameter-server, whose workers have no reference model, and task {task.kind_} needs one. Take replicate."


@recipe_rule
def samples_are_of_text(recipe: Any) -> Iterator[tuple[str, str]]:
    """Texts that the trained model writes."""
    task = recipe.raw_value("task")
    if task.input_kind in ("tokens", "chat", "pairs"):
        return
    for name in ("prompts", "samples"):
        if name in recipe.raw_value("evaluate").model_fields_set:
            yield f"evaluate.{name}", f"is for language models, and the task is {task.kind_}. Drop it."
