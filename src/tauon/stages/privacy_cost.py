"""The cost of privacy: trains the same recipe without privacy and evaluates both on the same examples; `privacy_cost.json`.

The twin is an ordinary run in `without-privacy/`, which resumes like any run. It has no privacy guarantee: it must stay with the owners of
the data. With folds, each fold has its own twin, and the mean is reported.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from tauon.artifacts import RunFolder, read_json, write_json
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
"""A file of its own because its figures are not private; `privacy.json` can be shared."""

Figures = dict[str, float | None]
WARNING = (
    "is trained without privacy: its weights, metrics and report can reveal single examples. Do not share it, and delete it when the "
    "cost is known."
)


def twin_of(recipe: Recipe) -> Recipe:
    """Return the same recipe without privacy, for one process and without trackers."""
    tree = child_tree(recipe, PLAIN, ("prepare", "train", "evaluate", "report"))
    return parse(Recipe, {k: v for k, v in tree.items() if k != "privacy"}, f"the recipe of {recipe.name} without privacy")


def cost_of(folder: Path, *, on_event: EventCallback) -> dict[str, dict[str, float | None]]:
    """Train the twin of the private run in `folder` (or resume it), evaluate both, and write `privacy_cost.json`.

    Args:
        folder: folder of a private run whose training is done.
        on_event: called with each event.

    Returns:
        metric -> {private, plain, difference}; difference is private minus plain, None if either has no value.

    Raises:
        RunError: not a run, not private, or its training is not done.
    """
    recipe = load_recipe(folder)
    if recipe.privacy is None or not recipe.privacy.promises:
        raise RunError(f"{folder} is a run without privacy, so privacy cost nothing. Give the folder of a private run.")
    private = private_folders(recipe, folder)
    for each in private:
        if not (each / "privacy.json").is_file() or RunFolder.read(each).stage("train") is None:
            raise RunError(f"the training of {each} is not done. Finish it first: tauon train {shlex.quote(str(folder))}")
    on_event("warning", message=f"{folder / PLAIN} {WARNING}")
    run_recipe(recipe, folder.resolve(), stages=("evaluate",), on_event=on_event)
    with RunFolder.open(folder):  # locks the run
        run_recipe(twin_of(recipe), folder.resolve() / PLAIN, on_event=on_event)
        plain = private_folders(recipe, folder / PLAIN)
        pairs = [compare(figures_of(a), figures_of(b)) for a, b in zip(private, plain, strict=True)]
        mean = mean_of(pairs)
        costs = dict(zip(private, pairs, strict=True)) | {folder: mean}
        for each, cost in costs.items():
            write_json(each / COST, cost)
            write_report(each, on_event)
    return mean


def private_folders(recipe: Recipe, folder: Path) -> list[Path]:
    """Return the folders with trained models: the run's own, or one per fold."""
    folds = recipe.data.split.folds
    return [folder] if folds is None or recipe.data.split.fold is not None else [folder / f"fold-{i}" for i in range(folds)]


def figures_of(folder: Path) -> Figures:
    """Return metric -> value of a run's evaluation."""
    return {name: m["value"] for name, m in read_json(folder / "evaluation.json")["metrics"].items()}


def compare(private: Figures, plain: Figures) -> dict[str, dict[str, float | None]]:
    """Return the metrics that both have, side by side, with their difference."""
    compared: dict[str, dict[str, float | None]] = {}
    for name, a in private.items():
        if name in plain:
            b = plain[name]
            compared[name] = {"private": a, "plain": b, "difference": None if a is None or b is None else a - b}
    return compared


def mean_of(pairs: list[dict[str, dict[str, float | None]]]) -> dict[str, dict[str, float | None]]:
    """Return the mean over folds; None if a fold has no value."""

    def mean(values: list[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if len(known) == len(values) and known else None

    return {name: {k: mean([p[name][k] for p in pairs if name in p]) for k in pairs[0][name]} for name in pairs[0]}
