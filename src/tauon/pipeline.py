"""The whole path: recipe -> stages -> run. Read this file first, then `stages/table.py` and the files that it names.

    recipe = load_recipe("quickstart", ["train.steps=500"])     # recipe.py: YAML, Python and a.b=c build the same typed tree
    run(recipe)                                                 # stages/engine.py: each stage that is not done, in the table's order

    prepare    raw files -> shards or arrays                    stages/prepare.py    data/
    train      data -> checkpoints                              stages/train.py      train/ models/ optim/ distributed/ privacy/
    evaluate   checkpoint -> evaluation.json                    stages/evaluate.py   evaluate/ tasks/
    report     records -> report.html                           stages/report.py     report/

A run is a folder. Each stage reads the records of the stages before it and leaves its own; a stage whose inputs have not changed is not done
again; training that was stopped, or killed, goes on where it was.
"""

from __future__ import annotations

from pathlib import Path

from tauon.artifacts import Run
from tauon.recipe import Recipe
from tauon.stages.context import EventCallback, null_callback
from tauon.stages.engine import run_recipe

__all__ = ["run"]


def run(
    recipe: Recipe, *, root: Path | str = "runs", stages: tuple[str, ...] | None = None, fresh: bool = False,
    on_event: EventCallback = null_callback, folder: Path | None = None,
) -> Run:  # fmt: skip
    """Take a recipe through its stages; returns the run, closed. The same call again does only what is not done.

    Args:
        recipe: what to do.
        root: folder of the runs; this one's is `root/<name>`.
        stages: some stages, by name; those of the recipe if left out.
        fresh: set the existing run aside (renamed, never deleted) and start over.
        on_event: called with what happens, as it happens.
        folder: this run's, where it is not `root/<name>`.

    Raises:
        TauonError: with what is wrong and the way out. Nothing half-written stays.
    """
    return run_recipe(recipe, folder or Path(root) / recipe.name, stages=stages, fresh=fresh, on_event=on_event)
