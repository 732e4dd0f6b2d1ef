"""The pipeline: recipe -> stages -> run. Read this file first, then `stages/table.py` and the files that it names.

    recipe = load_recipe("quickstart", ["train.steps=500"])     # recipe.py: YAML, Python and a.b=c build the same typed tree
    run(recipe)                                                 # stages/engine.py: each stage that is not done, in the table's order

    prepare    raw files -> shards or arrays                    stages/prepare.py    data/
    train      data -> checkpoints                              stages/train.py      train/ models/ optim/ distributed/ privacy/
    evaluate   checkpoint -> evaluation.json                    stages/evaluate.py   evaluate/ tasks/
    report     records -> report.html                           stages/report.py     report/

A run is a folder. Each stage reads the records of the stages before it and writes its own; a stage whose inputs have not changed is skipped;
training that was stopped or killed resumes where it was.
"""

from __future__ import annotations

from pathlib import Path

from tauon.artifacts import RunFolder
from tauon.recipe import Recipe
from tauon.stages.context import EventCallback, null_callback
from tauon.stages.engine import run_recipe

__all__ = ["run"]


def run(
    recipe: Recipe, *, root: Path | str = "runs", stages: tuple[str, ...] | None = None, fresh: bool = False,
    on_event: EventCallback = null_callback, folder: Path | None = None,
) -> RunFolder:  # fmt: skip
    """Run the stages of a recipe and return the run, closed. The same call again skips the stages that are done.

    Args:
        recipe: the recipe to run.
        root: folder of the runs; this run is in `root/<name>`.
        stages: names of the stages to run; default: those of the recipe.
        fresh: rename the existing run (it is never deleted) and start over.
        on_event: called with each event.
        folder: folder of this run, if it is not `root/<name>`.

    Raises:
        TauonError: with the reason and how to fix it. No half-written file remains.
    """
    return run_recipe(recipe, folder or Path(root) / recipe.name, stages=stages, fresh=fresh, on_event=on_event)
