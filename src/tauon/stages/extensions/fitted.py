"""Training of models that are fitted as a whole (`ModelConfig.fits_whole`: trees, linear models of sparse features), in place of gradient steps.

Job, plan, log and checkpoints are those of any run: a round of the fit stands in the log as a step does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tauon.artifacts import Checkpoint
from tauon.errors import Problem, RecipeError
from tauon.models import Fitted, load_weights
from tauon.plan import Derived, Plan
from tauon.stages.extensions.base import TrainExtension
from tauon.train import Hook, TrainJob, every
from tauon.types import StepInfo

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["FittedTraining", "fitted"]


def fitted(ctx: Context, checkpoint: Checkpoint | None) -> FittedTraining | None:
    """Return the extension if the model is fitted as a whole."""
    return FittedTraining(ctx) if ctx.recipe.model.fits_whole else None


class FittedTraining(TrainExtension):
    """One fit on all training examples; validation examples choose what the fit leaves open: the number of rounds, the penalty."""

    takes_plain_steps = False

    def __init__(self, ctx: Context) -> None:
        if ctx.world.size > 1:
            message = f"{ctx.recipe.model.kind_} is fitted by one process, but {ctx.world.size} were started. Start one: without --on."
            raise RecipeError([Problem("model.kind", message)])
        self.ctx = ctx
        self.job: TrainJob
        self.hooks: Sequence[Hook] = ()
        self.save: Callable[..., None]

    def plan(self, plan: Plan) -> None:
        why = f"{self.ctx.recipe.model.kind_} is fitted as a whole; optim, and the length and batch of train, have no effect"
        plan.derived.insert(0, Derived("train", "one fit", why))

    def loop_parts(self, job: TrainJob, hooks: Sequence[Hook], save: Callable[..., None]) -> None:
        self.job, self.hooks, self.save = job, hooks, save

    def run(self, loop: Callable[[], object], back_to_checkpoint: Callable[[str], bool]) -> None:
        if self.job.step:  # restored: the fit is done
            return
        begun = time.perf_counter()
        result = self._fit()
        load_weights(self.job.model, result.tensors, where="the fit")
        self._log(result, time.perf_counter() - begun)
        self.job.notes["stopped"] = True
        self.save(self.job)

    def _fit(self) -> Fitted:
        ctx, splits = self.ctx, self.ctx.splits
        held = None if splits.validation is None else splits.validation.batch(np.arange(len(splits.validation)))
        train = splits.train.batch(np.arange(len(splits.train)))

        def progress(what: str, done: int, total: int) -> None:
            ctx.on_event("progress", what=what, done=done, total=total)

        result = ctx.model.fit(train, held, family=ctx.recipe.task.family, seed=ctx.recipe.seed, progress=progress)
        if result.note:
            ctx.on_event("note", message=f"{ctx.model.kind_}: {result.note}")
        return result

    def _log(self, result: Fitted, seconds: float) -> None:
        """Call the hooks once for each round, those at intervals only for the last: earlier rounds' weights are not kept."""
        job, examples = self.job, len(self.ctx.splits.train)
        losses = result.losses or [float("nan")]
        for step, loss in enumerate(losses, 1):
            job.step, job.examples = step, job.examples + examples
            metrics: dict[str, Any] = {"loss": loss, "seconds": seconds / len(losses)}
            info = StepInfo(step, len(losses), job.examples, 0, metrics)
            for hook in self.hooks:
                if not isinstance(hook, every):
                    hook(job, info)
                elif step == len(losses):
                    hook.hook(job, info)
