"""Keys of a recipe that somebody set and nothing reads: an error, never ignored, and found before anything is trained."""

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
    """Dotted keys of the sections that a stage reads which were set and not read, but for those that `later` stages may still read."""
    table = stage_table()
    sections = {*table[name].reads} - {"track"} - {section for s in later for section in table[s].reads}
    return [k for k in unread_keys(recipe) if k.split(".")[0] in sections]


def refuse_unread(recipe: Recipe, name: str, later: tuple[str, ...] = (), *, but: str = "-") -> None:
    """`RecipeError` with each such key. Those that begin with `but` are passed over."""
    keys = [k for k in unread_in(recipe, name, later) if not k.startswith(but)]
    if keys:
        raise RecipeError([Problem(k, f"was set, and nothing in stage {name} read it. Remove it: it has no effect here.") for k in keys])


def refuse_unread_before_training(recipe: Recipe, job: TrainJob, *, whole_model: bool) -> None:
    """`RecipeError` before the first step. All is read by then but what a task reads in its loss, which is computed once for one example where
    such a key is open and this process can compute it (`whole_model`); otherwise the first step shows it.
    """
    if whole_model and any(k.startswith("task.") for k in unread_in(recipe, "train")):
        batch = job.loader.batch_at(job.step).rows(0, 1).to(job.policy.device)
        with torch.no_grad(), freeze_running_stats(job.model), job.policy.precision.context():
            job.task.loss(job.model, batch)
    refuse_unread(recipe, "train", but="-" if whole_model else "task.")
