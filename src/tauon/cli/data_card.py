"""`tauon data card RUN`: the data card of a run."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["card_command"]

EPILOG = """\b
Examples:
  tauon data card runs/quickstart                    print it
  tauon data card runs/quickstart --to card.json

\b
Croissant 1.0 in JSON-LD: sources, licences, files with their sha256, numbers of records, what was left out and why, columns. Every run has
it as croissant.json, unless more than 1 GiB of files would have had to be hashed: then this command does.
"""


@click.command("card", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "target", type=click.Path(path_type=Path, dir_okay=False), help="File to write. Default: print it.")
def card_command(run: Path, target: Path | None) -> None:
    """Write the data card of RUN, whose data was prepared."""
    from tauon.artifacts import atomic_write
    from tauon.errors import DataError
    from tauon.report import Records
    from tauon.report.croissant import data_card

    records = Records.read(run)
    if not records.data:
        raise DataError(f"{run}: no prepared data is recorded here (data.json). Prepare it first: tauon prepare RECIPE")
    text = json.dumps(data_card(records), indent=2, ensure_ascii=False) + "\n"
    if target is None:
        click.echo(text, nl=False)
        return
    atomic_write(target, text.encode())
    click.echo(f"wrote {target}")
