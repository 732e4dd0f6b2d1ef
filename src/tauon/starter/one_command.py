"""`tauon run patients.csv`: the recipe of a file or a folder, drafted the first time and used as it is from then on.

The recipe is written to the current folder, as `tauon recipe new` does, and is an ordinary file: whoever edits it and gives the same command again runs
what was edited. Nothing is overwritten, and a recipe that is there for other data, or for another label, is an error.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tauon.config import read_yaml
from tauon.errors import RecipeError
from tauon.recipe import read_recipe, shipped_recipes
from tauon.starter import KINDS, draft, write_draft
from tauon.starter.draft import Draft, name_of

__all__ = ["DataRecipe", "is_data", "recipe_of_data"]


@dataclass(frozen=True)
class DataRecipe:
    """The recipe of some data."""

    path: Path
    made: Draft | None
    """What was drafted; None: the file was there before."""


def is_data(ref: str) -> bool:
    """Return whether `ref` names data: a file or a folder of a kind that recipes are drafted for, and neither a recipe nor a run.

    >>> is_data("quickstart"), is_data("missing.csv")
    (False, False)
    """
    place = Path(ref)
    try:
        if ref == "-" or place.suffix.lower() in (".yaml", ".yml") or not place.exists() or (place / "recipe.yaml").is_file():
            return False
        if ref in shipped_recipes() and place.is_file():
            return False
        return not _is_json_recipe(place) and any(fits(place) for fits, _ in KINDS)
    except (OSError, ValueError):  # a name that is too long, a folder without permission: what opens the recipe reports it
        return False


def recipe_of_data(
    path: Path, *, label: str | None = None, model: str | None = None, inputs: tuple[str, ...] = (), encoding: str | None = None
) -> DataRecipe:
    """Return the recipe of a file or a folder in the current folder, NAME.yaml; draft and write it if it does not exist.

    Args:
        path: the data.
        label: what to predict, as in `draft`. If the recipe is there already, it must be the recipe's.
        model: the trained model that conversations or preferences tune; likewise.
        inputs: columns to predict from; for a new recipe.
        encoding: of text files; for a new recipe.

    Raises:
        DataError: something must be asked: which column is the label, for example.
        RecipeError: NAME.yaml is the recipe of other data, of another label or another model.
    """
    target = Path(f"{name_of(path)}.yaml")
    if target.exists():
        _refuse_other(target, path, label, model)
        return DataRecipe(target, None)
    made = draft(path, label=label, model=model, inputs=inputs, encoding=encoding, measure=True)
    return DataRecipe(write_draft(made, target), made)


def _refuse_other(target: Path, path: Path, label: str | None, model: str | None) -> None:
    """Raise `RecipeError` if an existing recipe does not do what is asked for."""
    tree = read_yaml(read_recipe(str(target))[0], str(target))
    tree = tree if isinstance(tree, dict) else {}
    source, base = (_mapping(_mapping(tree.get("data")).get("source")), _mapping(tree.get("model")).get("from"))
    there = source.get("path")
    other = f"tauon recipe new --from {shlex.quote(str(path))} --name {name_of(path)}-2"
    if not isinstance(there, str) or Path(there).expanduser().resolve() != path.resolve():
        what = f"reads {there}" if isinstance(there, str) else "has no file as its source"
        raise RecipeError(f"{target} exists already and {what}, not {path}. Write a recipe of another name: {other}")
    predicted = {str(v) for key in ("label", "pattern", "targets") for v in _several(source.get(key))}
    known = bool(predicted) or source.get("kind") != "series"  # of a series all columns are predicted, unless targets are named
    if label is not None and label not in {"folder", "subfolder"} and known and label not in predicted:
        raise RecipeError(
            f"{target} exists already and does not predict {label!r} ({', '.join(sorted(predicted)) or 'no label'}). Edit it, delete it, or write a "
            f"recipe of another name: {other} --label {shlex.quote(label)}"
        )
    if model is not None and model != base:
        raise RecipeError(
            f"{target} exists already and tunes {base}, not {model}. Edit its model.from, delete it, or write another: {other}"
        )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | dict) else [] if value is None else [value]


def _is_json_recipe(place: Path) -> bool:
    """Return whether a .json file is a recipe (YAML contains JSON), not rows."""
    if place.suffix.lower() != ".json" or not place.is_file():
        return False
    try:
        tree = json.loads(place.read_bytes())
    except ValueError:
        return False
    return isinstance(tree, dict) and {"data", "task"} <= tree.keys()
