"""`tauon explain RUN`: what a trained model looks at; for its held-out examples, or for new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tauon.cli.run import Request, place_of_run, recipe_arguments, run_verb
from tauon.cli.show import pick_show

__all__ = ["explain_command"]

EPILOG = """\b
Examples:
  tauon explain runs/patients                                  the model as a whole, and a few held-out examples one by one
  tauon explain runs/patients explain.rows=[3,5]               these held-out examples (rows are counted from 0)
  tauon explain runs/photos explain.maps=[grad_cam,integrated_gradients]
  tauon explain runs/patients --data patients.csv --row 17     one new example, as a page of its own
  tauon explain runs/quickstart --text "def main("             what a language model says next, and why
  tauon explain runs/longer --against runs/quickstart          what changed from one model to another

\b
It adds a part to report.html and writes explain/ and card.md, the model card. Settings are those of the recipe's section `explain`
(docs: Explanations). For every map the page says whether it passed its tests: hiding what it marks must change the answer faster than
hiding random parts, and a model with shuffled weights must have another map.
"""


@click.command("explain", epilog=EPILOG)
@recipe_arguments
@click.option("--data", help="File or folder with new examples, read as `tauon predict` reads it.")
@click.option(
    "--row", type=click.IntRange(0), multiple=True, help="Row of --data to explain, from 0; may be repeated. Default: the first 4."
)
@click.option("--text", multiple=True, help="A text to explain in place of --data: of a language model, the token that follows it.")
@click.option(
    "--against", type=click.Path(path_type=Path), help="Folder of another run of the same data: what changed from it to this one."
)
def explain_command(
    recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool, data: str | None, row: tuple[int, ...],
    text: tuple[str, ...], against: Path | None,
) -> None:  # fmt: skip
    """Explain the trained model of RECIPE: maps of what it looks at, a small tree that answers like it, the features and training examples that
    its answers rest on, and where it fails; each with a measure of how far it may be believed.
    """
    if row and data is None:
        raise click.UsageError("--row names a row of --data; give --data, or explain.rows=[...] for held-out examples")
    if (data is not None) + bool(text) + (against is not None) > 1:
        raise click.UsageError("--data, --text and --against exclude each other")
    show = pick_show(quiet, as_json)
    if data is None and not text and against is None:
        run_verb(Request(recipe, assignments, root), show, verb="explain", stages=("explain", "report"))
        return
    from tauon.predict.explanations import explain_new
    from tauon.recipe import load_recipe
    from tauon.stages.explain_runs import compare_runs

    tree = load_recipe(recipe, assignments)
    folder = place_of_run(recipe, tree.name, root, assignments)
    with show:
        if against is not None:
            page, lines = compare_runs(folder, against, list(assignments), on_event=show.on_event)
        else:
            page, lines = explain_new(folder, list(assignments), data=data, rows=row, texts=text, on_event=show.on_event)
    _print(show, page, lines, as_json)


def _print(show: Any, page: Path, lines: list[str], as_json: bool) -> None:
    if as_json:
        show.on_event("explanation", page=str(page), summary=lines)
        return
    for line in lines:
        show.console.print(line, markup=False)
    show.console.print(f"The page is {page}: open it in a browser.", markup=False)
