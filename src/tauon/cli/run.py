"""`tauon run`, `tauon train`, and one verb for each other stage that needs only a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from tauon.cli.launch import PLACES, launch_elsewhere, launch_options
from tauon.cli.show import Show, pick_show

__all__ = ["Request", "place_of_run", "recipe_arguments", "run_command", "run_verb", "stage_command", "train_command", "with_own_data"]

EPILOG = """\b
RECIPE: a YAML file (- for standard input), the name of a shipped recipe (tauon recipe list), a run's folder, or a file or folder of data.
a.b=c changes a setting, for example  train.steps=500  optim.lr=3e-4  data.seq_len=256  name=second-try
"""


def recipe_arguments(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments and options that every verb of this file takes."""
    for wrap in (
        click.argument("assignments", nargs=-1, metavar="[a.b=c]..."),
        click.argument("recipe", shell_complete=_complete_recipe),
        click.option(
            "--root",
            type=click.Path(path_type=Path),
            default=None,
            help="Folder of the runs. Default: runs, or the parent of the given run.",
        ),
        click.option("--quiet", "-q", is_flag=True, help="Print only warnings, errors and the final figures."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, for scripts."),
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
class Request:
    """Arguments of a verb on the command line."""

    recipe: str
    assignments: tuple[str, ...]
    root: Path | None
    fresh: bool = False
    on: str | None = None
    dry_run: bool = False


def run_verb(request: Request, show: Show, *, verb: str, stages: tuple[str, ...] | None) -> None:
    """Run stages (None: all that the recipe names) in this process, or launch processes that do."""
    from tauon.errors import RunError
    from tauon.pipeline import run
    from tauon.recipe import load_recipe
    from tauon.stages.table import stage_table

    tree = load_recipe(request.recipe, request.assignments, on=request.on)
    folder = place_of_run(request.recipe, tree.name, request.root, request.assignments)
    collective = stages is None or any(stage_table()[s].collective for s in stages)
    if not collective and not (folder / "recipe.yaml").is_file():
        root = ["--root", str(request.root)] if request.root is not None else []
        command = ["tauon", "train", request.recipe, *request.assignments, *root]
        raise RunError(f"{folder} has no run yet. Train it first: {shlex.join(command)}")
    with show:
        launched = collective and launch_elsewhere(
            tree, verb, folder, show, options=show.flags, fresh=request.fresh, dry_run=request.dry_run
        )  # fmt: skip
        if launched:
            return
        done = run(tree, folder=folder, stages=stages, fresh=request.fresh, on_event=show.on_event)
        show.finish(done, trained=stages is None or "train" in stages, whole=stages is None)


def place_of_run(recipe: str, name: str, root: Path | None, assignments: Sequence[str] = ()) -> Path:
    """Return the folder of the run: the given run's folder, unless another name or root is given; else ROOT/NAME."""
    from tauon.recipe import folder_of

    given = folder_of(recipe)
    if given is None:
        return (root or Path("runs")) / name
    if any(a.partition("=")[0].strip() == "name" for a in assignments) or (root is not None and root.resolve() != given.parent):
        return (root or given.parent) / name
    return given


fresh_option = click.option("--fresh", is_flag=True, help="Start over. The old run is renamed to NAME.1, not deleted.")
resume_option = click.option(
    "--resume", is_flag=True, help="Resume where the run stopped. This is the default; the alternative is --fresh."
)


def data_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Add what may be said beside data: for a shipped recipe (--data), or for a file or a folder in place of the recipe."""
    for wrap in (
        click.option("--encoding", help="With data: encoding of text files (gb18030, cp1251, ...). Default: detected."),
        click.option("--inputs", multiple=True, help="With data: columns to predict from; may be repeated, or a,b,c."),
        click.option("--model", help="With conversations or preferences: the model to tune, a run, a folder or a name on the hub."),
        click.option(
            "--label", "--label-from", "label",
            help="With data: the column to predict, `folder`, or the pattern of file names like {label}_{speaker}.",
        ),
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            help="Your own data for a shipped recipe, a file or a folder; its source is written by looking at it.",
        ),
    ):  # fmt: skip
        verb = wrap(verb)
    return verb


@dataclass(frozen=True)
class Said:
    """What was said beside data."""

    data: Path | None
    label: str | None
    model: str | None
    inputs: tuple[str, ...]
    encoding: str | None

    def given(self) -> list[str]:
        """Return the options that were given, without --data."""
        named = {"--label": self.label, "--model": self.model, "--inputs": self.inputs, "--encoding": self.encoding}
        return [option for option, value in named.items() if value]


def with_own_data(request: Request, said: Said, show: Show) -> Request:
    """Return the request with its data: a recipe drafted from a file or folder, or a shipped recipe with assignments that put one's own data in."""
    if said.data is not None:
        from tauon.starter.own_data import own_data

        unused = [option for option in said.given() if option != "--label"]
        if unused:
            raise click.UsageError(f"{unused[0]} has no effect with --data: the recipe says it")
        return replace(request, assignments=own_data(request.recipe, said.data, said.label, request.assignments))
    if not request.recipe.lower().endswith((".yaml", ".yml")):
        from tauon.starter.one_command import is_data, recipe_of_data

        if is_data(request.recipe):
            columns = tuple(c.strip() for given in said.inputs for c in given.split(",") if c.strip())
            found = recipe_of_data(Path(request.recipe), label=said.label, model=said.model, inputs=columns, encoding=said.encoding)
            made = found.made
            show.on_event(
                "recipe", path=str(found.path), data=request.recipe, about=made and made.about, seconds=made and made.seconds,
                why=[] if made is None else [sentence for section in made.why.values() for sentence in section],
            )  # fmt: skip
            return replace(request, recipe=str(found.path))
    if said.given():
        raise click.UsageError(f"{said.given()[0]} has no effect on a recipe: it is for a file or folder of data, `tauon run patients.csv`")
    return request


def _is_fresh(fresh: bool, resume: bool) -> bool:
    if fresh and resume:
        raise click.UsageError("--fresh and --resume exclude each other")
    return fresh


@click.command("run", epilog=EPILOG + PLACES)
@recipe_arguments
@launch_options
@data_options
@fresh_option
@resume_option
def run_command(
    recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool, on: str | None, dry_run: bool, fresh: bool,
    resume: bool, **said: Any,
) -> None:  # fmt: skip
    """Run all stages of RECIPE. Stages that are already done are skipped.

    RECIPE may be a file or a folder of data: its recipe is then written to NAME.yaml by looking at it, and run. From then on NAME.yaml is used.
    """
    show = pick_show(quiet, as_json)
    request = with_own_data(Request(recipe, assignments, root, _is_fresh(fresh, resume), on, dry_run), Said(**said), show)
    run_verb(request, show, verb="run", stages=None)


@click.command("train", epilog=EPILOG + PLACES)
@recipe_arguments
@launch_options
@data_options
@fresh_option
@resume_option
def train_command(
    recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool, on: str | None, dry_run: bool, fresh: bool,
    resume: bool, **said: Any,
) -> None:  # fmt: skip
    """Prepare the data and train. After a stop or a crash the same command resumes, to the same weights bit for bit."""
    show = pick_show(quiet, as_json)
    request = with_own_data(Request(recipe, assignments, root, _is_fresh(fresh, resume), on, dry_run), Said(**said), show)
    run_verb(request, show, verb="train", stages=("prepare", "train"))


def stage_command(name: str) -> click.Command:
    """Make the verb of a stage: `tauon NAME RECIPE [a.b=c]...`."""
    from tauon.stages.table import stage_table

    stage = stage_table()[name]
    example = "\b\n" + f"  tauon {name} runs/mine" + (f"\n  tauon {name} runs/mine {name}.KEY=VALUE" if stage.config else "") + "\n\n"

    @click.command(name, help=stage.details or stage.help, epilog=example + EPILOG)
    @recipe_arguments
    def command(recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool) -> None:
        run_verb(Request(recipe, assignments, root), pick_show(quiet, as_json), verb=name, stages=(name,))

    made: click.Command = command
    return made
