"""What a recipe's model cannot be together with its task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tauon.config import recipe_rule, registered

__all__: list[str] = []


@recipe_rule
def model_reads_what_the_task_gives(recipe: Any) -> Iterator[tuple[str, str]]:
    """A model reads one kind of input, or several."""
    task, model = recipe.raw_value("task"), recipe.raw_value("model")
    if model.kind_ == "checkpoint" or task.input_kind in (model.input_kind if isinstance(model.input_kind, tuple) else (model.input_kind,)):
        return  # what a checkpoint reads is known when it is opened
    readers = {k: getattr(m, "input_kind", ()) for k, m in registered("model").items()}
    fit = ", ".join(k for k, n in readers.items() if task.input_kind in ((n,) if isinstance(n, str) else n))
    reads = model.input_kind if isinstance(model.input_kind, str) else " or ".join(model.input_kind)
    yield (
        "model.kind",
        f"{model.kind_} reads {reads}, and task {task.kind_} gives it {task.input_kind}. Take one of {fit}, or another task.",
    )


@recipe_rule
def adapters_have_a_base(recipe: Any) -> Iterator[tuple[str, str]]:
    """Adapters are put beside a trained model, in a section of their own."""
    model = recipe.raw_value("model")
    if model.raw_value("adapt") is not None:
        yield "model.adapt", "is a section of its own. Write adapt: beside model:, not inside it."
    if recipe.raw_value("adapt") is not None and model.raw_value("from_") is None:
        yield "adapt", "needs model.from, the trained model that it is put beside. Give one, or drop this section."
