"""What a recipe's model cannot be together with its task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tauon.config import recipe_rule, registered

__all__: list[str] = []


@recipe_rule
def model_reads_what_the_task_gives(recipe: Any) -> Iterator[tuple[str, str]]:
    """A model reads one kind of input, or several."""
    task, model = recipe.peek("task"), recipe.peek("model")
    if model.kind_ == "checkpoint" or task.needs in (model.needs if isinstance(model.needs, tuple) else (model.needs,)):
        return  # what a checkpoint reads is known when it is opened
    readers = {k: getattr(m, "needs", ()) for k, m in registered("model").items()}
    fit = ", ".join(k for k, n in readers.items() if task.needs in ((n,) if isinstance(n, str) else n))
    reads = model.needs if isinstance(model.needs, str) else " or ".join(model.needs)
    yield "model.kind", f"{model.kind_} reads {reads}, and task {task.kind_} gives it {task.needs}. Take one of {fit}, or another task."


@recipe_rule
def adapters_have_a_base(recipe: Any) -> Iterator[tuple[str, str]]:
    """Adapters are put beside a trained model, in a section of their own."""
    model = recipe.peek("model")
    if model.peek("adapt") is not None:
        yield "model.adapt", "is a section of its own. Write adapt: beside model:, not inside it."
    if recipe.peek("adapt") is not None and model.peek("from_") is None:
        yield "adapt", "needs model.from, the trained model that it is put beside. Give one, or drop this section."
