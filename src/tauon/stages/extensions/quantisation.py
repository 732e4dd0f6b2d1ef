"""Quantisation-aware training (`qat:`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tauon.artifacts import Checkpoint
from tauon.compress.training import QatConfig, quantisation_aware
from tauon.plan import Derived, Plan
from tauon.stages.extensions.base import TrainExtension
from tauon.train import TrainJob

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["QuantisationAware", "quantisation"]


def quantisation(ctx: Context, checkpoint: Checkpoint | None) -> QuantisationAware | None:
    """Return the extension if the recipe has `qat`."""
    return None if ctx.recipe.qat is None else QuantisationAware(ctx.recipe.qat)


class QuantisationAware(TrainExtension):
    """Rounds weights from `qat.start` on."""

    def __init__(self, config: QatConfig) -> None:
        self.config = config
        for name in type(config).model_fields:  # some only with int4, or with int8
            getattr(config, name)

    def plan(self, plan: Plan) -> None:
        first = round(self.config.start * plan.steps) + 1
        plan.derived.append(
            Derived("qat", self.config.step().kind_, f"weights are rounded from step {first} on; compress with this step afterwards")
        )

    def wrap(self, job: TrainJob) -> TrainJob:
        return quantisation_aware(job, self.config.step(), start=self.config.start)
