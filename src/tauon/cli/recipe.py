"""`tauon recipe list|new|show|check|schema`: recipes without running them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

__all__ = ["recipe_command"]

EXAMPLES = """
\b
  tauon recipe new --from images/ --label folder           images, one subfolder per class
  tauon recipe new --from patients.csv --label died        a table
  tauon recipe new --from load.csv                         a time series: a date and numbers
  tauon recipe new --from calls/                           .wav files, one subfolder per class
  tauon recipe new --from notes.jsonl                      text, or text with a label
  tauon recipe new --from chats.jsonl --model runs/base    conversations, or preferences
"""


@click.group("recipe", context_settings={"help_option_names": ["-h", "--help"]})
def recipe_command() -> None:
    """Write a recipe for your data; list, show and check recipes; print their JSON Schema."""


@recipe_command.command("list")
def list_command() -> None:
    """List the recipes that ship with Tauon, and what each is for."""
    from tauon.recipe import shipped_recipes

    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        click.echo(f"{name:<20} {first.removeprefix('#').strip() if first.startswith('#') else ''}")


@recipe_command.command("new", epilog=EXAMPLES)
@click.option("--from", "path", required=True, type=click.Path(path_type=Path), help="Your data: a folder, or a file.")
@click.option(
    "--label", "--label-from", "label", help="What to predict: `folder`, a column, or a pattern of file names like {label}_{speaker}."
)
@click.option("--model", help="Model to fine-tune on conversations or preferences: a run, a folder, a name on the hub.")
@click.option("--inputs", multiple=True, help="Columns to predict from, if it cannot be decided by looking; may be repeated, or a,b,c.")
@click.option(
    "--encoding", help="Encoding of text files: gb18030, shift_jis, cp1251, ... Default: detected, if it is UTF-8, UTF-16 or western."
)
@click.option("--name", help="Name of the recipe and its runs. Default: named after the data.")
@click.option("--to", "target", type=click.Path(path_type=Path, dir_okay=False), help="File to write. Default: NAME.yaml")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def new_command(
    path: Path, label: str | None, model: str | None, inputs: tuple[str, ...], encoding: str | None, name: str | None, target: Path | None, force: bool
) -> None:  # fmt: skip
    """Inspect your data and write a recipe that is ready to train, with its choices explained."""
    from tauon.starter import draft, write_draft

    columns = [column.strip() for given in inputs for column in given.split(",") if column.strip()]
    made = draft(path, label=label, name=name, model=model, inputs=columns, encoding=encoding, measure=True)
    written = write_draft(made, target or Path(f"{made.name}.yaml"), force=force)
    click.echo(made.to_yaml(), nl=False)
    click.echo(f"\nwrote {written}. Next: tauon run {shlex.quote(str(written))}", err=True)


@recipe_command.command("show")
@click.argument("recipe")
@click.argument("assignments", nargs=-1, metavar="[a.b=c]...")
@click.option("--source", is_flag=True, help="Print the file as written, not the complete recipe.")
def show_command(recipe: str, assignments: tuple[str, ...], source: bool) -> None:
    """Print the complete recipe as YAML, with every default filled in."""
    from tauon.recipe import load_recipe, read_recipe, to_yaml

    if source:
        click.echo(read_recipe(recipe)[0], nl=False)
        return
    click.echo(to_yaml(load_recipe(recipe, assignments)), nl=False)


@recipe_command.command("check")
@click.argument("recipes", nargs=-1, required=True)
@click.option("--set", "assignments", multiple=True, metavar="a.b=c", help="Change a setting first; may be repeated.")
@click.option(
    "--data",
    "with_data",
    is_flag=True,
    help="Also open the data, build the model, and print every setting that was left open. Trains nothing.",
)
def check_command(recipes: tuple[str, ...], assignments: tuple[str, ...], with_data: bool) -> None:
    """Check recipes: every problem, each with its key and how to fix it. The data is not opened, except with --data.

    With --data, everything happens that `tauon train` does before its first step, so that keys without effect are found, too.
    """
    from tauon.recipe import load_recipe

    for recipe in recipes:
        tree = load_recipe(recipe, assignments)
        if with_data:
            from tauon.stages.dry_run import dry_run

            for setting in dry_run(tree):
                click.echo(f"  {setting.path:<24} {setting.value!s:<16} {setting.source}")
        click.echo(f"{recipe}: fine ({tree.task.kind_} with {tree.model.kind_}, stages {', '.join(tree.wanted_stages())})")


@recipe_command.command("schema")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead.")
def schema_command(out: Path | None) -> None:
    """Print the JSON Schema of recipes. Editors use it: first line `# yaml-language-server: $schema=recipe.schema.json`."""
    from tauon.artifacts import atomic_write
    from tauon.recipe import recipe_schema

    text = json.dumps(recipe_schema(), indent=2)
    if out is None:
        click.echo(text)
        return
    atomic_write(out, text + "\n")
    click.echo(f"wrote {out}")
