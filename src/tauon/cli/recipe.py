"""`tauon recipe list|show|check|schema`: recipes without running them."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["recipe_command"]


@click.group("recipe", context_settings={"help_option_names": ["-h", "--help"]})
def recipe_command() -> None:
    """List, show, check recipes; print their JSON Schema."""


@recipe_command.command("list")
def list_command() -> None:
    """The recipes that come with Tauon, and what each is for."""
    from tauon.recipe import shipped_recipes

    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        click.echo(f"{name:<20} {first.removeprefix('#').strip() if first.startswith('#') else ''}")


@recipe_command.command("show")
@click.argument("recipe")
@click.argument("assignments", nargs=-1, metavar="[a.b=c]...")
@click.option("--source", is_flag=True, help="The file as it was written, not the complete tree.")
def show_command(recipe: str, assignments: tuple[str, ...], source: bool) -> None:
    """The complete recipe, every default filled in, as YAML."""
    from tauon.recipe import find_recipe, load_recipe, to_yaml

    if source:
        click.echo(find_recipe(recipe).read_text(encoding="utf-8"), nl=False)
        return
    click.echo(to_yaml(load_recipe(recipe, assignments)), nl=False)


@recipe_command.command("check")
@click.argument("recipes", nargs=-1, required=True)
@click.option("--set", "assignments", multiple=True, metavar="a.b=c", help="Change a setting first; may be repeated.")
def check_command(recipes: tuple[str, ...], assignments: tuple[str, ...]) -> None:
    """Check recipes without opening their data: every problem, each with its key and the way out."""
    from tauon.recipe import load_recipe

    for recipe in recipes:
        tree = load_recipe(recipe, assignments)
        click.echo(f"{recipe}: fine ({tree.task.kind_} with {tree.model.kind_}, stages {', '.join(tree.stages)})")


@recipe_command.command("schema")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead.")
def schema_command(out: Path | None) -> None:
    """JSON Schema of recipes, for editors: `# yaml-language-server: $schema=recipe.schema.json` on a recipe's first line."""
    from tauon.artifacts import atomic_write
    from tauon.recipe import recipe_schema

    text = json.dumps(recipe_schema(), indent=2)
    if out is None:
        click.echo(text)
        return
    atomic_write(out, text + "\n")
    click.echo(f"wrote {out}")
