"""Statistics of every layer's weights, gradients and updates, every `train.watch_layers` steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tauon.artifacts import Checkpoint
from tauon.distributed import ParameterServer
from tauon.plan import Plan
from tauon.stages.extensions.base import TrainExtension
from tauon.train import TrainJob, watch_layers

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["LayerWatch", "layer_watch"]


def layer_watch(ctx: Context, checkpoint: Checkpoint | None) -> LayerWatch | None:
    """Return the extension, unless the weights are updated by a parameter server."""
    return None if isinstance(ctx.recipe.parallel, ParameterServer) else LayerWatch(ctx)


class LayerWatch(TrainExtension):
    """Measures layers every `train.watch_layers` steps; by default as often as the model is validated."""

    def __init__(self, ctx: Context) -> None:
        self.every = ctx.train.watch_layers

    def plan(self, plan: Plan) -> None:
        self.every = self.every or plan.validate_every

    def wrap(self, job: TrainJob) -> TrainJob:
        assert self.every is not None
        return watch_layers(job, self.every)
