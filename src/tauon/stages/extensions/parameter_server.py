"""Training by workers that push gradients to servers and pull weights (`parallel: parameter-server`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from tauon.artifacts import Checkpoint
from tauon.distributed import Layout, Mesh, ParameterServer
from tauon.errors import Problem, RecipeError
from tauon.models import ModelConfig
from tauon.stages.extensions.base import TrainExtension
from tauon.train import Derived, Plan, RecipeWork, Served, TrainJob, choose_device, served

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["ServerTraining", "parameter_server"]


def parameter_server(ctx: Context, checkpoint: Checkpoint | None) -> ServerTraining | None:
    """Where the recipe takes that layout."""
    parallel = ctx.recipe.parallel
    return ServerTraining(ctx, parallel) if isinstance(parallel, ParameterServer) else None


class ServerTraining(TrainExtension):
    """One process that starts servers and workers, and leads them."""

    takes_plain_steps = False

    def __init__(self, ctx: Context, config: ParameterServer) -> None:
        self.ctx, self.config = ctx, config
        self.settled: Plan
        self.servers: Served

    def mesh(self, model: ModelConfig) -> tuple[Mesh, Derived]:
        world, parallel = self.ctx.world, self.config
        if world.size > 1:
            message = (
                f"parameter-server starts its workers by itself, and {world.size} processes were started. Start one process: without --on."
            )
            raise RecipeError([Problem("parallel.kind", message)])
        layout = f"parameter server: {parallel.workers} workers, {parallel.servers} servers, {parallel.mode}"
        device, _ = choose_device(self.ctx.train.device)
        return Mesh(Layout(), world, device.type), Derived("parallel", layout, "asked for")

    def plan(self, plan: Plan) -> None:
        self.settled = plan

    def wrap(self, job: TrainJob) -> TrainJob:
        ctx, recipe = self.ctx, self.ctx.recipe
        if recipe.optim.layer_decay is not None or recipe.optim.lr_scale:
            message = "servers give every weight the same learning rate. Drop optim.layer_decay and optim.lr_scale, or take another layout."
            raise RecipeError([Problem("parallel.kind", message)])
        work = RecipeWork.of(
            ctx.model, recipe.optim, ctx.train, recipe.task, ctx.data, spec=ctx.splits.spec, plan=self.settled, seed=recipe.seed,
            fingerprint=ctx.splits.fingerprint,
        )  # fmt: skip
        self.servers = served(job, self.config, recipe.optim, work, tell=lambda m: ctx.on_event("note", message=m))
        return self.servers.job

    def running(self) -> AbstractContextManager[Any]:
        return self.servers

    def run(self, loop: Callable[[], object], back_to_checkpoint: Callable[[str], bool]) -> None:
        self.servers.through(loop, back_to_checkpoint)
