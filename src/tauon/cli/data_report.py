"""`tauon data report`: what to look at in a data set before training, without a run."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tauon.data.quality import Quality
    from tauon.recipe import Recipe

__all__ = ["report_command"]

EPILOG = """\b
Examples:
  tauon data report patients.csv --label died                 a table: leaks, copies, broken values, outliers, label errors
  tauon data report images/ --label folder --to images.html   a folder of images, one subfolder per class
  tauon data report credit-risk                               the data of a recipe, or of a run

\b
It looks at the records as they are and changes nothing. For a file, the parts are those that `tauon run` would make. Whether a finding is
a fault is for you to say: look at the examples.
"""
_COLOURS = {"bad": "red", "warn": "yellow", "note": None}


@click.command("report", epilog=EPILOG)
@click.argument("source")
@click.option("--label", help="What to predict: a column, `folder`, or a pattern of file names. For a file or a folder.")
@click.option("--to", "target", type=click.Path(path_type=Path, dir_okay=False), help="Page to write. Default: NAME-data.html")
@click.option("--check", "checks", multiple=True, help="Make this check only; may be repeated. Default: all that fit the data.")
@click.option(
    "--show-personal-data", is_flag=True, help="Show addresses, telephone and card numbers in the examples as they are. Default: masked."
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON, and write no page.")
def report_command(
    source: str, label: str | None, target: Path | None, checks: tuple[str, ...], show_personal_data: bool, as_json: bool
) -> None:
    """Look at the quality of data: SOURCE is a file, a folder, a recipe or a run."""
    from tauon import __version__
    from tauon.artifacts import atomic_write
    from tauon.config import parse
    from tauon.data import bar
    from tauon.data.progress import listening
    from tauon.data.quality import QualityConfig, examine, view_of
    from tauon.report.page import Section, document
    from tauon.report.quality import quality_html

    name, recipe = _recipe_of(source, label)
    parse(QualityConfig, {"checks": list(checks)})  # a misspelt name is an error before anything is read
    with bar() as progress, listening(progress):
        view = view_of(recipe.data, input_kind=recipe.task.input_kind, seed=recipe.seed)
        quality = examine(view, checks, show_personal_data=show_personal_data, progress=progress)
    if as_json:
        click.echo(json.dumps(quality.to_json()))
        return
    _print(quality)
    target = target or Path(f"{name}-data.html")
    top = f"<h1>Quality of the data: {_escaped(name)}</h1><p>{_escaped(_sources(recipe))}</p>"
    page = document(
        f"{name} · data",
        top,
        [Section("quality", "Findings", quality_html(quality.to_json()))],
        f"Made by Tauon {__version__} on {date.today().isoformat()}, from the records themselves; nothing was changed.",
    )
    atomic_write(target, page.encode("utf-8", "replace"))
    click.echo(f"the page: {target}")


def _recipe_of(source: str, label: str | None) -> tuple[str, Recipe]:
    """Return (name, recipe) of a file or a folder of data, a recipe, or a run."""
    from tauon.config import parse, read_yaml
    from tauon.recipe import Recipe, load_parts, load_recipe
    from tauon.starter import draft
    from tauon.starter.one_command import is_data

    if not is_data(source):
        recipe = load_recipe(source, [])
        if label is not None:
            raise click.UsageError(f"--label is for a file or a folder of data, and {source} is a recipe; its label is in data.source")
        return recipe.name, recipe
    load_parts()
    made = draft(Path(source), label=label)
    return made.name, parse(Recipe, read_yaml(made.to_yaml(), source), source)


def _sources(recipe: Recipe) -> str:
    """Return in words where the records come from."""
    from tauon.data.preparation import sources_of
    from tauon.report.data import sentences

    told = sentences({"sources": {part: source.describe() for part, source in sources_of(recipe.data).items()}})
    label = getattr(recipe.data.source, "label", None)
    return " ".join([*told, *([f"What is predicted: {label}."] if isinstance(label, str) else [])])


def _escaped(text: str) -> str:
    from tauon.report.text import escape

    return escape(text, 200)


def _print(quality: Quality) -> None:
    sizes = ", ".join(f"{n:,} {part}" for part, n in quality.records.items())
    click.echo(f"{sum(quality.records.values()):,} records ({sizes}), looked at in {quality.seconds:.1f} s")
    for finding in quality.findings:
        click.echo(f"{click.style(finding.severity, fg=_COLOURS[finding.severity]):>4}  {finding.check}: {finding.message}")
    if not quality.findings:
        click.echo("nothing was found that should be looked at")
    for title, why in quality.skipped.items():
        click.echo(f"not asked: {title}. {why}")
