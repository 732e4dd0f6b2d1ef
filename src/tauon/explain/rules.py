"""Settings of `explain` that cannot work with the task, or would change nothing: found before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tauon.config import recipe_rule
from tauon.errors import Problem, RecipeError
from tauon.tasks import Task

__all__ = ["refuse_task", "refuse_unused", "why_not_explained", "without_effect"]

_KINDS = ("arrays", "labelled-text", "signals", "series", "tokens")


def why_not_explained(task: Task) -> str:
    """Return why models of a task cannot be explained; "" if they can."""
    if task.family == "speech-recognition":
        return "a transcript has no single output that could be attributed to the sound. Explain a model of task audio-classification"
    if task.input_kind not in _KINDS:
        return (
            f"explanations do not know its examples ({task.input_kind}). Explain a model of running text (task: language-modelling), texts with labels, "
            "tables, images, series or recordings"
        )
    return ""


def refuse_task(task: Task) -> None:
    """Raise `RecipeError` if models of a task cannot be explained."""
    reason = why_not_explained(task)
    if reason:
        raise RecipeError([Problem("explain", f"task {task.kind_} cannot be explained: {reason}.")])


def without_effect(task: Task, section: Any) -> Iterator[tuple[str, str]]:
    """Yield (key, why it has no effect) of settings that are for another kind of data."""
    told: set[str] = section.model_fields_set
    rows = task.input_kind == "arrays"
    for name in ("features", "counterfactuals"):
        if name in told and not rows:
            yield name, "is for tables"
    if rows and task.family not in ("classification", "ordinal") and "counterfactuals" in told:
        yield "counterfactuals", "is for answers that are classes: counterfactuals look for the nearest change that flips one"
    if task.input_kind == "tokens":
        for name in ("tree", "slices"):
            if name in told:
                yield name, "is for examples with features that a person can read, which running text does not have"
    elif "language" in told:
        yield "language", "is for language models"
    if "background" in told and not rows:
        yield "background", "is for tables and images: what is absent has another stand-in here"


@recipe_rule
def explanations_suit_the_task(recipe: Any) -> Iterator[tuple[str, str]]:
    """What is asked for can be given."""
    section = recipe.raw_value("explain") if "explain" in type(recipe).model_fields else None
    if section is None:
        return
    task = recipe.raw_value("task")
    reason = why_not_explained(task)
    if reason:
        yield "explain", f"task {task.kind_} cannot be explained: {reason}."
        return
    for name, why in without_effect(task, section):
        yield f"explain.{name}", f"has no effect with task {task.kind_}: it {why}. Remove it."


def refuse_unused(assignments: Sequence[str], used: frozenset[str], what: str) -> None:
    """Raise `RecipeError` for settings that were given to a command and that it does not read.

    Args:
        assignments: "explain.maps=[...]", as they were typed.
        used: keys of the section that are read.
        what: what was asked for: "an explanation of new examples".
    """
    keys = [a.partition("=")[0].strip() for a in assignments]
    known = ", ".join(f"explain.{name}" for name in sorted(used))
    wrong = [
        k
        for k in keys
        if not (k.startswith("explain.") and k.split(".")[1] in used) and k not in ("train.device", "evaluate.weights", "name")
    ]
    if wrong:
        raise RecipeError(
            [Problem(k, f"is set, but {what} does not read it, so it has no effect. Remove it. It reads {known}.") for k in wrong]
        )
