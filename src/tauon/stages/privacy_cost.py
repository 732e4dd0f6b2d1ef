"""What privacy cost a run: the same recipe without it, trained beside it, and both measured on the same examples; `privacy_cost.json`.

The twin is an ordinary run in `without-privacy/`, which resumes as any does. It promises nobody anything: it is for those who hold the data,
and is not to be handed on. With folds, each fold has a twin of its own, and what is told is the mean.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from tauon.artifacts import Run, read_json, write_json
from tauon.config import parse
from tauon.errors import RunError
from tauon.recipe import Recipe, child_tree, load_recipe
from tauon.stages.context import EventCallback
from tauon.stages.engine import run_recipe
from tauon.stages.report import write_report

__all__ = ["COST", "PLAIN", "cost_of", "twin_of"]

PLAIN = "without-privacy"
"""Name and folder of the twin."""
COST = "privacy_cost.json"
"""Exact figures of both, so not in `privacy.json`, which an auditor may be given."""

Figures = dict[str, float | None]
WARNING = (
    "is trained without privacy: its weights, its figures and its report tell of single examples. Do not hand it on; delete it when the "
    "cost is known."
)


def twin_of(recipe: Recipe) -> Recipe:
    """The same recipe without privacy, one process, no tracker."""
    tree = child_tree(recipe, PLAIN, ("prepare", "train", "evaluate", "report"))
    return parse(Recipe, {k: v for k, v in tree.items() if k != "privacy"}, f"the recipe of {recipe.name} without privacy")


def cost_of(folder: Path, *, on_event: EventCallback) -> dict[str, dict[str, float | None]]:
    """Train the twin of the private run in `folder` as far as that is not done, measure both, and write `privacy_cost.json`.

    Args:
        folder: of a private run that has been trained.
        on_event: called with what happens.

    Returns:
        metric to {private, plain, difference}; difference is private less plain, None where either has no value.

    Raises:
        RunError: no run, no private one, or not trained to its end.
    """
    recipe = load_recipe(folder)
    if recipe.privacy is None or not recipe.privacy.promises:
        raise RunError(f"{folder} is a run without privacy, so that privacy has cost nothing. Give the folder of a private run.")
    private = private_folders(recipe, folder)
    for each in private:
        if not (each / "privacy.json").is_file() or Run.read(each).stage("train") is None:
            raise RunError(f"{each} is not trained to its end. First: tauon train {shlex.quote(str(folder))}")
    on_event("warning", message=f"{folder / PLAIN} {WARNING}")
    run_recipe(recipe, folder.resolve(), stages=("evaluate",), on_event=on_event)
    with Run.open(folder):  # nobody trains it meanwhile
        run_recipe(twin_of(recipe), folder.resolve() / PLAIN, on_event=on_event)
        plain = private_folders(recipe, folder / PLAIN)
        pairs = [compare(figures_of(a), figures_of(b)) for a, b in zip(private, plain, strict=True)]
        found = mean_of(pairs)
        costs = dict(zip(private, pairs, strict=True)) | {folder: found}
        for each, cost in costs.items():
            write_json(each / COST, cost)
            write_report(each, on_event)
    return found


def private_folders(recipe: Recipe, folder: Path) -> list[Path]:
    """The folders that were trained: the run's own, or one a fold."""
    folds = recipe.data.split.folds
    return [folder] if folds is None or recipe.data.split.fold is not None else [folder / f"fold-{i}" for i in range(folds)]


def figures_of(folder: Path) -> Figures:
    """Metric to value, as the evaluation left them."""
    return {name: m["value"] for name, m in read_json(folder / "evaluation.json")["metrics"].items()}


def compare(private: Figures, plain: Figures) -> dict[str, dict[str, float | None]]:
    """The figures side by side, those that both have."""
    found: dict[str, dict[str, float | None]] = {}
    for name, a in private.items():
        if name in plain:
            b = plain[name]
            found[name] = {"private": a, "plain": b, "difference": None if a is None or b is None else a - b}
    return found


def mean_of(pairs: list[dict[str, dict[str, float | None]]]) -> dict[str, dict[str, float | None]]:
    """The mean over folds; None where a fold has no value."""

    def mean(values: list[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if len(known) == len(values) and known else None

    return {name: {k: mean([p[name][k] for p in pairs if name in p]) for k in pairs[0][name]} for name in pairs[0]}
