"""`tauon run`, `tauon train`, and the verbs of all stages that need nothing but a recipe: the pipeline, whole or in part."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tauon.cli.launch import PLACES, launch_elsewhere, launch_options
from tauon.cli.show import Show, pick_show

__all__ = ["Asked", "go", "place_of_run", "recipe_arguments", "run_command", "stage_command", "train_command"]

EPILOG = """\b
RECIPE: a YAML file (- for standard input), the name of a shipped recipe (tauon recipe list), or a run's folder.
ASSIGNMENT: a.b=c, for example  train.steps=500  optim.lr=3e-4  data.seq_len=256  name=second-try
"""


def recipe_arguments(verb: Callable[..., Any]) -> Callable[..., Any]:
    """What every verb of this file takes."""
    for wrap in (
        click.argument("assignments", nargs=-1, metavar="[a.b=c]..."),
        click.argument("recipe", shell_complete=_complete_recipe),
        click.option(
            "--root", type=click.Path(path_type=Path), default=None, help="Folder of the runs. Default: runs, or the given run's parent."
        ),
        click.option("--quiet", "-q", is_flag=True, help="Print nothing but warnings, errors, and the final figures."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, for scripts."),
    ):
        verb = wrap(verb)
    return verb


def _complete_recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    folder = Path(__file__).parents[1] / "_recipes"
    folder = folder if folder.is_dir() else Path(__file__).parents[3] / "recipes"
    names = [CompletionItem(p.stem) for p in sorted(folder.glob("*.yaml")) if p.stem.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


@dataclass(frozen=True)
class Asked:
    """What a person gave on the command line."""

    recipe: str
    assignments: tuple[str, ...]
    root: Path | None
    fresh: bool = False
    on: str | None = None
    dry_run: bool = False


def go(asked: Asked, show: Show, *, verb: str, stages: tuple[str, ...] | None) -> None:
    """Do what a verb asks for, here or where the processes are launched."""
    from tauon.errors import RunError
    from tauon.pipeline import run
    from tauon.recipe import load_recipe
    from tauon.stages.table import stage_table

    tree = load_recipe(asked.recipe, asked.assignments, on=asked.on)
    folder = place_of_run(asked.recipe, tree.name, asked.root, asked.assignments)
    together = stages is None or any(stage_table()[s].collective for s in stages)
    if not together and not (folder / "recipe.yaml").is_file():
        again = ["tauon", "train", asked.recipe, *asked.assignments, *(["--root", str(asked.root)] if asked.root is not None else [])]
        raise RunError(f"{folder} has no run yet. Train it first: {shlex.join(again)}")
    with show:
        launched = together and launch_elsewhere(
            tree, verb, folder, show, options=show.flags, fresh=asked.fresh, dry_run=asked.dry_run
        )  # fmt: skip
        if launched:
            return
        done = run(tree, folder=folder, stages=stages, fresh=asked.fresh, on_event=show.on_event)
        show.finish(done, trained=stages is None or "train" in stages, whole=stages is None)


def place_of_run(recipe: str, name: str, root: Path | None, assignments: Sequence[str] = ()) -> Path:
    """The folder that a verb works in: the run's folder that was given, unless another name or root was asked for; else ROOT/NAME."""
    from tauon.recipe import folder_of

    given = folder_of(recipe)
    if given is None:
        return (root or Path("runs")) / name
    if any(a.partition("=")[0].strip() == "name" for a in assignments) or (root is not None and root.resolve() != given.parent):
        return (root or given.parent) / name
    return given


fresh_option = click.option("--fresh", is_flag=True, help="Start over. The old run is renamed to NAME.1, never deleted.")
resume_option = click.option(
    "--resume", is_flag=True, help="Go on where the run stopped. This is the default; --fresh is the other choice."
)


def _one(fresh: bool, resume: bool) -> bool:
    if fresh and resume:
        raise click.UsageError("--fresh and --resume exclude each other")
    return fresh


@click.command("run", epilog=EPILOG + PLACES)
@recipe_arguments
@launch_options
@fresh_option
@resume_option
def run_command(
    recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool, on: str | None, dry_run: bool, fresh: bool,
    resume: bool,
) -> None:  # fmt: skip
    """Take RECIPE through every stage it names. A stage that is done is not done again."""
    asked = Asked(recipe, assignments, root, _one(fresh, resume), on, dry_run)
    go(asked, pick_show(quiet, as_json), verb="run", stages=None)


@click.command("train", epilog=EPILOG + PLACES)
@recipe_arguments
@launch_options
@fresh_option
@resume_option
def train_command(
    recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool, on: str | None, dry_run: bool, fresh: bool,
    resume: bool,
) -> None:  # fmt: skip
    """Prepare the data and train. Killed or stopped, the same command goes on, to the same weights bit for bit."""
    asked = Asked(recipe, assignments, root, _one(fresh, resume), on, dry_run)
    go(asked, pick_show(quiet, as_json), verb="train", stages=("prepare", "train"))


def stage_command(name: str) -> click.Command:
    """The verb of a stage that has none written by hand: `tauon NAME RECIPE [a.b=c]...`."""
    from tauon.stages.table import stage_table

    stage = stage_table()[name]
    example = "\b\n" + f"  tauon {name} runs/mine" + (f"\n  tauon {name} runs/mine {name}.KEY=VALUE" if stage.config else "") + "\n\n"

    @click.command(name, help=stage.details or stage.help, epilog=example + EPILOG)
    @recipe_arguments
    def command(recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool) -> None:
        go(Asked(recipe, assignments, root), pick_show(quiet, as_json), verb=name, stages=(name,))

    made: click.Command = command
    return made
