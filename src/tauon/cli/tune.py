"""`tauon tune`: find hyper-parameters of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tauon.cli.run import EPILOG, place_of_run, recipe_arguments
from tauon.cli.show import Show, pick_show

if TYPE_CHECKING:
    from tauon.recipe import Recipe
    from tauon.tune import RangeTest

__all__ = ["tune_command"]

ABOUT = """
\b
  tauon tune mnist-mlp --lr-range                      find a learning rate
  tauon tune mine.yaml --lr-range --high 1 --steps 200
"""


@click.command("tune", epilog=EPILOG + ABOUT)
@recipe_arguments
@click.option("--lr-range", "lr_range", is_flag=True, help="Learning-rate range test: train with a rising learning rate, plot the loss.")
@click.option(
    "--low", type=click.FloatRange(min=0, min_open=True), default=1e-6, show_default=True, help="Learning rate of the first step."
)
@click.option(
    "--high", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True, help="Learning rate of the last step."
)
@click.option(
    "--steps", type=click.IntRange(10, 100_000), default=100, show_default=True, help="Most steps; the test ends when the loss diverges."
)
def tune_command(
    recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool, lr_range: bool, low: float, high: float, steps: int
) -> None:  # fmt: skip
    """Find settings of a recipe before the real training. The recipe's own run is not touched.

    --lr-range writes ROOT/NAME.lr-range.html with the curve, and prints the learning rates to try first.
    """
    from tauon.errors import Problem, RecipeError
    from tauon.recipe import load_recipe

    if not lr_range:
        raise click.UsageError("nothing to tune. Give --lr-range to find the learning rate")
    if low >= high:
        raise click.UsageError(f"--low {low:g} is not below --high {high:g}")
    tree = load_recipe(recipe, assignments)
    if tree.privacy is not None and tree.privacy.promises:
        message = "the range test trains without privacy, on data that this recipe protects. Run it on public data, with another recipe."
        raise RecipeError([Problem("privacy", message)])
    folder = place_of_run(recipe, tree.name, root, assignments)
    show = pick_show(quiet, as_json)
    with show:
        test = range_test(tree, show, low=low, high=high, steps=steps)
    page = folder.with_name(f"{folder.name}.lr-range.html")
    write_page(page, folder.name, test)
    if as_json:
        import json

        click.echo(json.dumps({"kind": "lr-range", "page": str(page)} | test.to_json()))
        return
    if not test.diverged:
        click.echo(f"The loss did not diverge up to {test.rates[-1]:g}. Raise --high to see where it does.")
    click.echo(f"optim.lr={test.steepest:.2g}   the loss falls fastest here: a rate to try first")
    click.echo(f"optim.lr={test.tenth:.2g}   a tenth of the rate with the lowest loss: for a schedule with warm-up and decay")
    click.echo(f"curve: {page}")


def range_test(tree: Recipe, show: Show, *, low: float, high: float, steps: int) -> RangeTest:
    """Run the test on one process, with the recipe's data, model, batch and optimizer."""
    from tauon.data import Loader
    from tauon.distributed import World
    from tauon.plan import Work, make_plan
    from tauon.stages.context import Context
    from tauon.train import JobConfig, TrainConfig, build_job
    from tauon.tune import lr_range

    ctx = Context(tree, None, show.on_event, World())
    spec = ctx.splits.spec
    config: TrainConfig = ctx.train.model_copy(update={"steps": steps, "epochs": None, "tokens": None, "time": None, "ema": None})
    model = ctx.model
    with Loader(ctx.splits.train, batch=config.batch, seed=tree.seed, workers=tree.data.workers) as loader:
        job_config = JobConfig(model, tree.optim, config, tree.task, spec, tree.seed)
        plan = make_plan(job_config, examples=len(ctx.splits.train), on_note=lambda m: show.on_event("note", message=m), work=Work(loader))
        job = build_job(job_config, loader, plan)
        show.on_event("training", step=0, total_steps=steps)
        return lr_range(
            job, low=low, high=high, steps=steps,
            on_step=lambda step, rate, loss: show.on_event("step", step=step + 1, total_steps=steps, loss=loss, lr=rate),
        )  # fmt: skip


def write_page(path: Path, name: str, test: RangeTest) -> None:
    """Write the curve as one offline page, atomically."""
    from tauon.artifacts import atomic_write
    from tauon.report import range_page

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, range_page(name, test.to_json()).encode())
