"""The parallel layout of a run; refused on every rank if model, batch or number of processes do not fit it."""

from __future__ import annotations

from tauon.distributed import Layout, Mesh, ParallelConfig, World, choose_layout, refuse_layout
from tauon.errors import Problem, RecipeError
from tauon.models import ModelConfig
from tauon.plan import Derived, choose_device, fits_whole
from tauon.tasks import Task
from tauon.train import TrainConfig
from tauon.types import DataSpec

__all__ = ["choose_mesh", "refuse_cut_pairs"]


def choose_mesh(model: ModelConfig, config: TrainConfig, parallel: ParallelConfig, spec: DataSpec, world: World) -> tuple[Mesh, Derived]:
    """Return the layout that `parallel` sets, or the best one, with its reason. `RecipeError` on every rank if it does not fit."""
    device, _ = choose_device(config.device)
    fits = fits_whole(model, config, device, world.local_size)
    layout, why = choose_layout(parallel, world.size, fits=all(world.gather(fits)))
    refuse_layout(
        model.build_on_meta(), layout, parallel, batch=config.batch, seq_len=spec.seq_len, microbatch=config.raw_value("microbatch")
    )
    return Mesh(layout, world, device.type), Derived("parallel", str(layout), why)


def refuse_cut_pairs(task: Task, layout: Layout) -> None:
    """Raise `RecipeError` if a layout would split the two rows of a preference pair."""
    for name in ("pipeline", "context", "tensor"):
        if task.input_kind == "pairs" and getattr(layout, name) > 1:
            message = f"task {task.kind_} reads pairs of rows, which this layout would split. Use replicate or shard."
            raise RecipeError([Problem(f"parallel.{name}", message)])
