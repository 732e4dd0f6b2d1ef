"""Training by workers that push gradients to servers and pull weights (`parallel: parameter-server`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from tauon.artifacts import Checkpoint
from tauon.distributed import Layout, Mesh, ParameterServer
from tauon.errors import Problem, RecipeError
from tauon.models import ModelConfig
from tauon.plan import Derived, Plan, choose_device
from tauon.stages.extensions.base import TrainExtension
from tauon.train import JobConfig, RecipeWork, SyncParameterServer, TrainJob, use_parameter_server

if TYPE_CHECKING:
    from tauon.stages.context import Context

__all__ = ["ServerTraining", "parameter_server"]


def parameter_server(ctx: Context, checkpoint: Checkpoint | None) -> ServerTraining | None:
    """Return the extension if `parallel` is parameter-server."""
    parallel = ctx.recipe.parallel
    return ServerTraining(ctx, parallel) if isinstance(parallel, ParameterServer) else None


class ServerTraining(TrainExtension):
    """One process that starts and coordinates servers and workers."""

    takes_plain_steps = False

    def __init__(self, ctx: Context, config: ParameterServer) -> None:
        self.ctx, self.config = ctx, config
        self.settled: Plan
        self.servers: SyncParameterServer

    def mesh(self, model: ModelConfig) -> tuple[Mesh, Derived]:
        world, parallel = self.ctx.world, self.config
        if world.size > 1:
            message = f"parameter-server starts its own workers, but {world.size} processes were started. Start one process: without --on."
            raise RecipeError([Problem("parallel.kind", message)])
        layout = f"parameter server: {parallel.workers} workers, {parallel.servers} servers, {parallel.mode}"
        device, _ = choose_device(self.ctx.train.device)
        return Mesh(Layout(), world, device.type), Derived("parallel", layout, "asked for")

    def plan(self, plan: Plan) -> None:
        self.settled = plan

    def wrap(self, job: TrainJob) -> TrainJob:
        ctx, recipe = self.ctx, self.ctx.recipe
        if recipe.optim.layer_decay is not None or recipe.optim.lr_scale:
            message = (
                "servers use the same learning rate for every weight. Remove optim.layer_decay and optim.lr_scale, or use another layout."
            )
            raise RecipeError([Problem("parallel.kind", message)])
        config = JobConfig(ctx.model, recipe.optim, ctx.train, recipe.task, ctx.splits.spec, recipe.seed)
        work = RecipeWork.of(config, ctx.data, self.settled, ctx.splits.fingerprint)
        self.servers = use_parameter_server(job, self.config, recipe.optim, work, on_note=lambda m: ctx.on_event("note", message=m))
        return self.servers.job

    def running(self) -> AbstractContextManager[Any]:
        return self.servers

    def run(self, loop: Callable[[], object], back_to_checkpoint: Callable[[str], bool]) -> None:
        self.servers.through(loop, back_to_checkpoint)
