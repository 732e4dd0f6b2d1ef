"""A shipped recipe on the user's own data: `tauon run credit-risk --data mine.csv --label default`.

The data is looked at as `recipe new` does; the `data` section that this gives replaces the recipe's, and task, model, optimizer and training stay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tauon.config import override, parse, read_yaml, write_yaml
from tauon.errors import RecipeError
from tauon.recipe import Recipe, load_parts, read_recipe
from tauon.starter import draft
from tauon.starter.draft import name_of

__all__ = ["own_data"]

_KEPT = ("tokenizer", "seq_len", "normalize", "normalize_targets", "augment", "mix", "scattering", "chat", "signal", "overlap", "window")
"""Keys of `data` that say nothing about one data set's columns, and are kept."""
_KEPT_OF_TABLES = ("categories", "min_count", "smooth", "fill_categories", "indicators")


def own_data(recipe: str, path: Path | str, label: str | None = None, assignments: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the assignments that put the user's data into a recipe, followed by those given: `data={...}`, and a name of its own.

    Args:
        recipe: a shipped recipe, or a file.
        path: the data, a file or a folder.
        label: what to predict, as in `recipe new --label`.
        assignments: `a.b=c`, which take precedence.

    Raises:
        RecipeError: the data is for another task than the recipe.
        DataError: a label that must be named, or data of an unknown kind.
    """
    load_parts()
    text, where = read_recipe(recipe)
    tree = read_yaml(text, where)
    base = tree.get("model", {}).get("from") if isinstance(tree.get("model"), dict) else None
    made = draft(path, label=label, model=base)
    task = tree.get("task")
    kind = task.get("kind") if isinstance(task, dict) else task
    if made.task != kind:
        why = "; ".join(made.why["task"])
        raise RecipeError(
            f"{recipe} is for {kind}, but {path} is for {made.sections['task']}{f' ({why})' if why else ''}. Name another column with --label, or "
            f"write a recipe for it: tauon recipe new --from {path}{f' --label {label}' if label else ''}"
        )
    named = (
        ()
        if any(a.partition("=")[0].strip() == "name" for a in assignments)
        else (f"name={tree.get('name', 'run')}-{name_of(Path(path))}",)
    )
    for data in (_merged(tree.get("data", {}), made.sections["data"]), made.sections["data"]):
        given = (f"data={write_yaml(data, flow=True)}", *named, *assignments)
        try:
            parse(Recipe, override(tree, given), where)
        except RecipeError as err:
            problem = err
            continue
        return given
    raise problem


def _merged(theirs: dict[str, Any], mine: dict[str, Any]) -> dict[str, Any]:
    """Return the drafted section with the recipe's keys that fit any data."""
    kept = {k: v for k, v in theirs.items() if k in _KEPT}
    if "table" in mine:  # how columns become inputs belongs to the model, which is the recipe's
        mine = {k: v for k, v in mine.items() if k != "normalize"}
        mine["table"] = {k: v for k, v in mine["table"].items() if k not in ("categories", "indicators")}
    table = {k: v for k, v in theirs.get("table", {}).items() if k in _KEPT_OF_TABLES} | mine.get("table", {})
    merged = mine | kept | ({"table": table} if table else {})
    grouped = mine.get("table", {}).get("time") or "time" in mine["source"]
    if "split" in theirs and "split" in mine and not grouped and theirs["split"].keys() & {"folds"}:
        merged["split"] = theirs["split"]
    return {k: v for k, v in merged.items() if v != {}}
