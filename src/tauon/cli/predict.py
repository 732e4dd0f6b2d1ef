"""`tauon predict`: apply a trained model to new data."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tauon.predict import FileOptions

__all__ = ["predict_command"]

EPILOG = """\b
Examples:
  tauon predict runs/patients --data patients.csv --to answers.csv
  tauon predict runs/patients --data patients.csv --to answers.parquet --keep age --columns prediction
  tauon predict runs/photos --data images/ --to photos.csv      a folder of images; recordings work the same way
  tauon predict runs/load --data load.csv --to next-day.csv     forecast a time series
  echo '{"age": 41, "dose": 0.3}' | tauon predict runs/patients --json

\b
The file is read as the training file was: separator, encoding, decimal mark and spellings of missing values are stored in the run.
Each row is written with its predictions appended: prediction; probability_CLASS for each class; quantile_LEVEL where the model
predicts quantiles. The label may be missing. Memory does not grow with the file. The output file appears only when it is complete.
"""


@click.command("predict", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", "-d", help="File (.csv, .jsonl, .parquet, also .gz; .npz), or a folder of such files, images, recordings or texts.")
@click.option("--to", "-o", help="File to write: .csv, .tsv, .jsonl or .parquet, also .csv.gz and .jsonl.gz.")
@click.option(
    "--json", "as_json", is_flag=True, help="Read one JSON object per line from standard input; answer each with one, immediately."
)
@click.option("--keep", help="Input columns to copy to the output, a,b,c; `none`: only predictions. Default: all.")
@click.option("--columns", help="Prediction columns to write, a,b,c. Default: all.")
@click.option("--every", type=click.IntRange(1), help="Time series: forecast from every N-th time step, not only from the end.")
@click.option(
    "--batch", default=65536, show_default=True, type=click.IntRange(1), help="Rows in memory at once. Predictions do not depend on it."
)
@click.option("--device", help="cpu, cuda, cuda:1, ... Default: as the recipe says.")
@click.option(
    "--weights",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "raw", "ema"]),
    help="auto: the moving average (EMA) if training kept one.",
)
@click.option("--delimiter", help="Separator of the file, if it differs from the training file; `blanks`, or \\t.")
@click.option("--encoding", help="Encoding of the file, if it differs from the training file.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bar and no final line.")
def predict_command(
    run: Path, data: str | None, to: str | None, as_json: bool, keep: str | None, columns: str | None, every: int | None, batch: int,
    device: str | None, weights: str, delimiter: str | None, encoding: str | None, quiet: bool,
) -> None:  # fmt: skip
    """Apply the trained model in the folder RUN to new data."""
    if as_json == (data is not None) or (data is None) != (to is None):
        raise click.UsageError("give --data and --to, or --json for rows on standard input")
    from tauon.predict import Predictor

    predictor = Predictor.open(run, weights=weights, device=device)
    if as_json:
        _answer_stdin(predictor, _names(keep), _names(columns))
        return
    assert data is not None
    assert to is not None
    options: FileOptions = {
        "batch": batch, "keep": _names(keep), "columns": _names(columns), "every": every, "delimiter": "\t" if delimiter == "\\t" else delimiter,
        "encoding": encoding,
    }  # fmt: skip
    _predict(predictor, data, to, options, quiet)


def _predict(predictor: Any, data: str, to: str, options: FileOptions, quiet: bool) -> None:
    from tauon.data import bar
    from tauon.predict import predict_file

    if quiet or not sys.stderr.isatty():
        done = predict_file(predictor, data, to, **options)
    else:
        with bar() as progress:
            done = predict_file(predictor, data, to, progress=progress, **options)
    for note in done.notes:
        click.secho(f"note: {note}", err=True, dim=True)
    if not quiet:
        click.echo(f"{done.rows:,} rows with {', '.join(done.columns[:6])}{', ...' if len(done.columns) > 6 else ''} in {done.to}")


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [] if text == "none" else [name.strip() for name in text.split(",") if name.strip()]


def _answer_stdin(predictor: Any, keep: list[str] | None, columns: list[str] | None) -> None:
    """Answer each row of standard input at once, flushed: the sender need not close the pipe first."""
    from tauon.predict.writers import output_names

    for row in _rows_on_stdin():
        (answer,) = predictor.records([row])
        kept = row if keep is None else {name: row[name] for name in keep if name in row}
        shown = answer if columns is None else {name: answer[name] for name in columns if name in answer}
        names = output_names([*shown], [*kept])
        click.echo(json.dumps(kept | {names[k]: v for k, v in shown.items()}, ensure_ascii=False))
        sys.stdout.flush()


def _rows_on_stdin() -> Iterator[dict[str, Any]]:
    from tauon.data.text_files import json_line

    for number, line in enumerate(iter(sys.stdin.readline, ""), 1):
        if line.strip():
            yield json_line(line, f"standard input, line {number}")
