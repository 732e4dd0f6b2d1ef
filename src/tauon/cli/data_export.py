"""`tauon data export RUN`: prepared documents for other programs."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["export_command"]

EPILOG = """\b
Examples:
  tauon data export runs/quickstart corpus --to parquet         corpus/train/part-00000.parquet, corpus/validation/...
  tauon data export runs/quickstart tars --to webdataset        tars/train/train-000000.tar, ...
  tauon data export runs/quickstart hub --to huggingface        datasets.load_from_disk("hub")
"""


@click.command("export", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--to", "target", type=click.Choice(["parquet", "webdataset", "huggingface"]), default="parquet", show_default=True, help="The format."
)
def export_command(run: Path, folder: Path, target: str) -> None:
    """Write the documents of RUN, whose data was prepared, below the new folder FOLDER: each part with its texts as they were tokenised, and
    for each text its source, record, file and line, and licence.
    """
    from tauon.data.progress import bar, listening
    from tauon.data.share import export_documents
    from tauon.data.trace import Trail

    with bar() as listener, listening(listener):
        counts = export_documents(Trail(run), target, folder)
    click.echo(f"wrote {folder}: " + ", ".join(f"{count:,} documents for {part}" for part, count in counts.items()))
