"""`predict_file`: a file or folder of any size in, the same rows with predictions out, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from tauon.data import Rows
from tauon.errors import RecipeError
from tauon.predict.engine import Predictor
from tauon.predict.readers import Reader, Reading, TableReader, open_reader
from tauon.predict.series import Windows, read_series
from tauon.predict.writers import Writer, open_writer, output_names
from tauon.tasks.answers import Answers

__all__ = ["Done", "FileOptions", "predict_file"]

BATCH = 65536
"""Rows in memory at once, which bounds memory for files of any size. A CSV is also read in chunks of 8 MB."""
_TILE = 64

Progress = Callable[[str, int, int | None], None]


@dataclass
class Done:
    """Result of `predict_file`."""

    rows: int = 0
    to: str = ""
    columns: list[str] = field(default_factory=list)
    """Names of the added columns."""
    notes: list[str] = field(default_factory=list)


class FileOptions(TypedDict, total=False):
    """Options of `predict_file`."""

    batch: int
    """Rows in memory at once; default 65,536. Predictions do not depend on it."""
    keep: Sequence[str] | None
    """Columns of the input file to write; None: all."""
    columns: Sequence[str] | None
    """Columns of predictions to write; None: all."""
    every: int | None
    """For a series: also forecast from every so many time steps, not only after its end."""
    delimiter: str | None
    """Delimiter of the file, if it differs from the training file's."""
    encoding: str | None
    """Likewise."""


def predict_file(
    run: Path | str | Predictor, data: Path | str, to: Path | str, *, progress: Progress | None = None, **options: Unpack[FileOptions]
) -> Done:
    """Write the rows of `data` with their predictions to `to`, whose suffix decides the format.

    Args:
        run: the folder of a trained run or checkpoint, or an open `Predictor`.
        data: a file (CSV, JSON lines, Parquet; .gz), or a folder: of such files, of images, of recordings, of texts; a .npz; a series.
        to: the file to write. It is created at the end; after an error nothing is left.
        progress: called with (what, done, total).
        options: `FileOptions`: batch, keep, columns, every, delimiter, encoding.

    Raises:
        DataError: a file or a value that the model cannot read, with its place.
        RecipeError: an invalid option.
    """
    predictor = run if isinstance(run, Predictor) else Predictor.open(run)
    done, batch, delimiter = Done(to=str(to)), options.get("batch", BATCH), options.get("delimiter")
    with open_writer(to, _delimiter_of(data, predictor, delimiter)) as writer:
        out = _Output(writer, done, options.get("keep"), options.get("columns"))
        if predictor.replay.reads == "series":
            _forecast(predictor, data, options.get("every"), out)
        else:
            reading = Reading(predictor.trained.source, max(_TILE, batch), delimiter, options.get("encoding"))
            reader = open_reader(data, predictor.replay.reads, reading)
            _refuse_missing(reader, predictor)
            for rows in _in_tiles(iter(reader), max(_TILE, -(-batch // _TILE) * _TILE)):
                out.add(rows, predictor(rows))
                if progress is not None:
                    progress("predicting", reader.done, reader.total)
    done.notes += [f"{note}: {count:,}" for note, count in predictor.replay.notes.items()]
    return done


def _delimiter_of(data: Path | str, predictor: Predictor, asked: str | None) -> str:
    """Delimiter of the output: the input's, if it is one character."""
    found: str = str(asked or getattr(predictor.trained.source, "delimiter", ","))
    return found if len(found) == 1 else ","


def _refuse_missing(reader: Reader, predictor: Predictor) -> None:
    """Raise an error for a column that the model reads and the file does not have, before any row is read."""
    if isinstance(reader, TableReader):
        names = reader.columns()
        Rows({name: [] for name in names}, lambda _, column: f"{reader.files[0]}: column {column!r}").need(predictor.columns)


def _in_tiles(parts: Iterator[Rows], size: int) -> Iterator[Rows]:
    """Yield the rows again in chunks of at most `size`, each but the last a multiple of the tiles, so that results equal those of one chunk."""
    held: Rows | None = None
    for rows in parts:
        held = rows if held is None or not len(held) else held.then(rows)
        while len(held) >= _TILE:
            n = min(size, len(held) // _TILE * _TILE)
            yield held.part(0, n)
            held = held.part(n, len(held))
    if held is not None and len(held):
        yield held


class _Output:
    """Selects and names columns, and passes them to the writer."""

    def __init__(self, writer: Writer, done: Done, keep: Sequence[str] | None, columns: Sequence[str] | None) -> None:
        self.writer, self.done, self.keep, self.columns = writer, done, keep, columns
        self.names: dict[str, str] | None = None

    def add(self, rows: Rows, answers: dict[str, Any]) -> None:
        """Write some rows and their predictions."""
        there = [name for name in rows.columns if name not in rows.hidden]
        kept = there if self.keep is None else _chosen(self.keep, there, "--keep")
        shown = list(answers) if self.columns is None else _chosen(self.columns, list(answers), "--columns")
        if self.names is None:
            self.names = output_names(shown, kept)
            self.done.columns = [*self.names.values()]
            if any(a != b for a, b in self.names.items()):
                self.done.notes.append(
                    f"the file already has columns with these names, so the added columns are {', '.join(self.names.values())}"
                )
        self.writer.add({name: rows.columns[name] for name in kept} | {self.names[name]: answers[name] for name in shown})
        self.done.rows += len(rows)


def _chosen(wanted: Sequence[str], there: list[str], option: str) -> list[str]:
    odd = [name for name in wanted if name not in there]
    if odd:
        raise RecipeError(f"{option}: no column {odd[0]!r}. Available: {', '.join(there[:20])}{', ...' if len(there) > 20 else ''}")
    return list(wanted)


def _forecast(predictor: Predictor, data: Path | str, every: int | None, out: _Output) -> None:
    preprocess = predictor.trained.preprocess
    windows = Windows(read_series(data, preprocess, predictor.trained.source), preprocess, every)
    for origins, rows in windows:
        columns, answers = forecast_columns(windows, origins, predictor(rows))
        out.add(Rows(columns), answers)


def forecast_columns(windows: Windows, origins: NDArray[np.int64], answers: Answers) -> tuple[dict[str, list[str]], Answers]:
    """Return (dates, predictions) of forecasts, a row for each predicted time step."""
    dates = windows.dates(origins)
    columns = {windows.preprocess["date"] or "row": [str(d) for d in dates.ravel()]}
    if windows.every is not None:
        columns = {"origin": [str(d) for d in np.repeat(dates[:, 0], windows.preprocess["horizon"])]} | columns
    return columns, {name: values.reshape(-1) for name, values in answers.items()}
