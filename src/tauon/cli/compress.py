"""`tauon compress RUN`: a smaller and faster model within a promised loss of quality, or the reason why there is none."""

from __future__ import annotations

from pathlib import Path

import click

from tauon.cli.run import Request, recipe_arguments, run_verb
from tauon.cli.show import pick_show

__all__ = ["compress_command"]

EPILOG = """\b
Examples:
  tauon compress runs/patients --max-drop 10%                  measures candidates on this machine, and keeps the best
  tauon compress runs/photos --max-drop 20% --for mobile
  tauon compress runs/patients --max-drop 10% compress.steps=[int8] compress.runtime=eager

\b
The result is used like a run: runs/patients/compress in `tauon predict`, `tauon serve` and `tauon export`. The promise is on the upper end of
the drop's 95% interval, so a few examples cannot prove a small drop: the command says how many are needed. A result is never larger than the
model, nor slower at any measured batch size. Settings are those of the recipe's section `compress` (docs: Compression).
"""


@click.command("compress", epilog=EPILOG)
@recipe_arguments
@click.option("--max-drop", help="Largest relative drop of quality: 1%, 0.5%. Default: 1%.")
@click.option("--for", "target", type=click.Choice(["cpu", "gpu", "mobile"]), help="Where it will run. Default: cpu.")
def compress_command(
    recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool, max_drop: str | None, target: str | None
) -> None:
    """Make the trained model of RECIPE smaller and faster, and prove what that costs: quantised, pruned or factorised candidates are measured in
    the runtime that will serve, and the fastest that keeps the promise is kept, or none.
    """
    given = [f"compress.max_drop={max_drop}"] if max_drop is not None else []
    given += [f"compress.for={target}"] if target is not None else []
    request = Request(recipe, (*assignments, *given), root)
    run_verb(request, pick_show(quiet, as_json), verb="compress", stages=("compress", "report"))
