"""Runs the stages of a recipe: decides which are done already, in what order the others run, and on which processes.

A run is a folder. A stage reads the records of the stages before it and writes its own; a stage whose inputs have not changed is skipped.
Stages are known only through the table. A stage that needs child runs (the shadow models of an audit) calls `run_recipe`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from tauon import __version__
from tauon.artifacts import RUN_FORMAT, RunFolder, atomic_write, code_fingerprint, environment
from tauon.distributed import Heartbeat, World, join
from tauon.errors import DataError, Problem, RecipeError, RunError
from tauon.recipe import Recipe, fingerprint, to_yaml
from tauon.stages.context import Context, EventCallback, null_callback
from tauon.stages.extensions import set_aside
from tauon.stages.folds import run_folds
from tauon.stages.table import check_names, load, stage_table
from tauon.stages.unread import refuse_unread

__all__ = ["do_stage", "run_recipe"]


def run_recipe(
    recipe: Recipe, folder: Path, *, stages: tuple[str, ...] | None = None, fresh: bool = False, on_event: EventCallback = null_callback
) -> RunFolder:
    """Run the stages of a recipe in `folder` and return the run, closed. The same call again skips the stages that are done.

    Args:
        recipe: the recipe to run.
        folder: folder of the run.
        stages: names of the stages to run; default: those of the recipe.
        fresh: rename the existing run (it is never deleted) and start over.
        on_event: called with each event, on rank 0 only.

    Raises:
        TauonError: with the reason and how to fix it. No half-written file remains.
    """
    wanted = stages or recipe.wanted_stages()
    check_names(wanted)
    with join(recipe.train.raw_value("device")) as world, Heartbeat(world) as heartbeat:
        try:
            return _run(recipe, folder, wanted, heartbeat, fresh=fresh, on_event=on_event if world.leads else null_callback)
        except RuntimeError as err:
            failure = heartbeat.failure(err)
            if failure is None:
                raise
            raise failure from err


def _run(
    recipe: Recipe, folder: Path, wanted: tuple[str, ...], heartbeat: Heartbeat, *, fresh: bool, on_event: EventCallback
) -> RunFolder:  # fmt: skip
    """Do one process's part of a run. Rank 0 writes the records and runs the stages that are not collective."""
    world, table = heartbeat.world, stage_table()
    if not any(table[name].collective for name in wanted) and not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} has no run yet. Train it first: use the same command with `train` instead of `{wanted[0]}`.")
    if recipe.data.split.folds is not None and recipe.data.split.fold is None:
        if world.size > 1:
            raise RecipeError([Problem("data.split.folds", "folds are trained one after another in one process. Start it without --on.")])
        return run_folds(recipe, folder, stages=wanted, fresh=fresh, on_event=on_event, run_child=run_recipe)
    refuse_other_code(recipe, world)
    with world.all_or_raise(lambda: RunFolder.open(folder) if world.leads else RunFolder.follow(folder)) as record:
        ctx = Context(recipe, record, on_event, world, heartbeat)
        trained = not any(table[name].collective for name in wanted) and record.recipe_path.read_text(encoding="utf-8")
        world.rank0_broadcast(lambda: _begin(ctx, fresh=fresh))
        try:
            _do_all(ctx, wanted)
        except (RecipeError, DataError):
            if trained:  # a setting of a later stage that is refused does not stay in the run
                atomic_write(record.recipe_path, trained)
            raise
    return record


def _do_all(ctx: Context, wanted: tuple[str, ...]) -> None:
    """Run the stages that are not done, in order."""
    table = stage_table()
    for i, name in enumerate(wanted):
        if not table[name].collective:
            if not ctx.world.leads:
                break
            ctx.world = World()  # from here on only rank 0 works
        if ctx.world.rank0_broadcast(lambda name=name: ctx.is_done(name)):  # type: ignore[misc]
            ctx.on_event("stage", name=name, state="done before")
        else:
            do_stage(ctx, name, later=wanted[i + 1 :])


def _begin(ctx: Context, *, fresh: bool) -> None:
    """Write the recipe and the manifest to the folder. `RunError` if it holds the training of another recipe."""
    record, recipe = ctx.run, ctx.recipe
    if fresh and (record.recipe_path.exists() or record.checkpoints.exists()):
        set_aside(record, ctx.on_event)
    ctx.refuse_another_recipe()
    atomic_write(record.recipe_path, to_yaml(recipe))
    record.update_manifest(format=RUN_FORMAT, tauon=__version__, seed=recipe.seed, environment=environment())


def do_stage(ctx: Context, name: str, *, later: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run one stage, even if it was done before, mark it as done, and return the facts about its result.

    `later` are the stages that follow in the same call: they may read keys of the recipe that this one did not.
    """
    stage, began = stage_table()[name], time.perf_counter()
    ctx.on_event("stage", name=name, state="begins")
    inputs: dict[str, str | None] = ctx.world.rank0_broadcast(lambda: ctx.inputs_of(name))
    threads = torch.get_num_threads()
    try:
        facts: dict[str, Any] = load(stage.run, extra=stage.extra)(ctx)
    finally:
        torch.set_num_threads(threads)  # training may have chosen another number
    refuse_unread(ctx.recipe, name, later)
    seconds = time.perf_counter() - began
    if ctx.world.leads:
        ctx.mark_done(name, facts, inputs=inputs, seconds=seconds)
    ctx.on_event("stage", name=name, state="done", seconds=seconds, **facts)
    return facts


def refuse_other_code(recipe: Recipe, world: World) -> None:
    """Raise `RunError` on every rank if recipe, code or torch differ between ranks."""
    if world.size == 1:
        return
    world.assert_same(
        "the recipe", fingerprint(recipe, stage_table()["train"].reads)[:12], "Start every process with the same recipe and assignments."
    )
    world.assert_same("Tauon's code", code_fingerprint()[:12], "Install the same version on every machine.")
    world.assert_same("the version of torch", torch.__version__, "Install the same version on every machine.")
