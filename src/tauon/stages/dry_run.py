"""Everything that training does before its first step, and nothing after: data opened, settings resolved, the model built, keys without effect found."""

from __future__ import annotations

from typing import Any

from tauon.plan import Derived
from tauon.recipe import Recipe
from tauon.stages.context import Context, EventCallback, null_callback
from tauon.stages.train import Training, build, resolve_settings, takes_whole_steps
from tauon.stages.training_record import Checkpoints, Logs, TrainingRecord
from tauon.stages.unread import refuse_unread_before_training
from tauon.tracking import nothing_logged
from tauon.train import TrainJob

__all__ = ["dry_run"]


def dry_run(recipe: Recipe, *, on_event: EventCallback = null_callback) -> list[Derived]:
    """Resolve every setting that the recipe leaves open, in this process; nothing is trained and no run folder is made.

    The data is prepared, so that its cache is filled. With `train.time`, a few steps are measured and thrown away.

    Args:
        recipe: what to check.
        on_event: called with what happens.

    Returns:
        Each resolved setting, with its value and its reason.

    Raises:
        RecipeError: settings that do not fit the data, and keys that nothing reads.
        DataError: a file or a value in the data is wrong.
    """
    ctx = Context(recipe, None, on_event)
    training = resolve_settings(ctx, None)
    try:
        job = build(training)
        reads_what_the_loop_reads(training, job)
        refuse_unread_before_training(recipe, job, whole_model=takes_whole_steps(training, job))
    finally:
        training.loader.close()
    return training.plan.derived


def reads_what_the_loop_reads(training: Training, job: TrainJob) -> None:
    """Read the keys that writing checkpoints, validation and early stopping read, without a writer or a log."""
    ctx, config = training.ctx, training.ctx.recipe.train
    _ = config.keep_last, config.keep_every
    no_writer: Any = None  # nothing is saved
    with nothing_logged() as events:
        record = TrainingRecord(config, ctx.splits, training.plan, Logs(events, [], null_callback), Checkpoints(no_writer, {}))
        record.begin(job)
