"""Recipe keys that were set but that nothing reads: an error, found before training."""

from __future__ import annotations

import torch

from tauon.config import unread_keys
from tauon.errors import Problem, RecipeError
from tauon.models import freeze_running_stats
from tauon.recipe import Recipe
from tauon.stages.table import stage_table
from tauon.train import TrainJob

__all__ = ["refuse_unread", "refuse_unread_before_training", "unread_in"]


def unread_in(recipe: Recipe, name: str, later: tuple[str, ...] = ()) -> list[str]:
    """Return the dotted keys that were set but not read by this stage, except those that `later` stages may still read."""
    table = stage_table()
    sections = {*table[name].reads} - {"track"} - {section for s in later for section in table[s].reads}
    return [k for k in unread_keys(recipe) if k.split(".")[0] in sections]


def refuse_unread(recipe: Recipe, name: str, later: tuple[str, ...] = (), *, without_task: bool = False) -> None:
    """Raise `RecipeError` that lists each unread key; `without_task`: except those of the task."""
    keys = [k for k in unread_in(recipe, name, later) if not (without_task and k.startswith("task."))]
    if keys:
        raise RecipeError([Problem(k, f"is set, but nothing in stage {name} reads it, so it has no effect. Remove it.") for k in keys])


def refuse_unread_before_training(recipe: Recipe, job: TrainJob, *, whole_model: bool) -> None:
    """Raise `RecipeError` before the first step if a key is unread.

    Only keys that a task reads in its loss are still open then: for these the loss of one example is computed, if this process has the whole
    model (`whole_model`); otherwise they are checked after the first step.
    """
    if whole_model and any(k.startswith("task.") for k in unread_in(recipe, "train")):
        batch = job.loader.batch_at(job.step).rows(0, 1).to(job.policy.device)
        with torch.no_grad(), freeze_running_stats(job.model), job.policy.precision.context():
            job.task.loss(job.model, batch)
    refuse_unread(recipe, "train", without_task=not whole_model)
