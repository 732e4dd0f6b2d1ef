"""Predict raw rows: preprocessing is replayed, the model runs in the tiles of evaluation, outputs get names and the units of the data.

Reads and writes no file. A row's prediction does not depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tauon.data import Replay, Rows, outputs_in_units, replay_of
from tauon.data.replay import named, rows_of
from tauon.data.spelling import nfc
from tauon.errors import DataError
from tauon.evaluate.tiles import infer_all
from tauon.predict.load import Trained, open_trained
from tauon.tasks.answers import Answers, OutputMeaning
from tauon.types import Batch

__all__ = ["Predictor", "predict_rows", "predict_stream"]

ROWS = 4096
"""Rows that `predict_stream` keeps in memory at once; a multiple of the tiles."""


@dataclass
class Predictor:
    """A trained model, ready for new rows."""

    trained: Trained
    replay: Replay = field(init=False)

    def __post_init__(self) -> None:
        self.replay = replay_of(self.trained.preprocess)

    @classmethod
    def open(cls, run: Path | str, *, weights: str = "auto", device: str | None = None) -> Predictor:
        """Open a run's folder, or a checkpoint's."""
        return cls(open_trained(run, weights=weights, device=device))

    @property
    def meaning(self) -> OutputMeaning:
        """Names and units of the model's outputs."""
        preprocess = self.trained.preprocess
        labels = preprocess.get("labels") or (preprocess["columns"][: preprocess["targets"]] if preprocess.get("kind") == "series" else ())
        return OutputMeaning(tuple(map(str, labels)), lambda outputs: outputs_in_units(preprocess, outputs))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a row that are read: for texts, those of the training source."""
        if self.replay.reads != "texts":
            return self.replay.columns
        asked = getattr(self.trained.source, "text", None) or "text"
        return tuple(nfc(name) for name in ((asked,) if isinstance(asked, str) else asked))

    def _joined(self, rows: Rows) -> Rows:
        """Return the text of each row: several columns joined by a blank line, as in training."""
        names = self.columns
        if "text" in rows.hidden or names == ("text",):
            return rows
        rows.need(names)
        cells = [values if isinstance(values, list) else values.to_pylist() for values in (rows.columns[name] for name in names)]
        for j, values in enumerate(cells):
            odd = next((i for i, v in enumerate(values) if not isinstance(v, str)), None)
            if odd is not None:
                raise DataError(f"{rows.where(odd, names[j])} is {values[odd]!r}, expected text")
        return Rows({"text": ["\n\n".join(parts) for parts in zip(*cells, strict=True)]}, lambda i, _: rows.where(i, names[0]))

    def __call__(self, rows: Rows) -> Answers:
        """Return columns of predictions, one value per row. `DataError` with row and column of a value that the model cannot read."""
        return self.answer(self.batch(rows))

    def answer(self, batch: Batch, *, padded: bool = True) -> Answers:
        """Return columns of predictions for the model's inputs. `padded`: see `evaluate.infer_all`."""
        task, precision = self.trained.task, self.trained.precision
        outputs = infer_all(self.trained.model, task.infer, batch, context=precision.context, device=precision.device, padded=padded)
        return task.answers(outputs, self.meaning)

    def batch(self, rows: Rows) -> Batch:
        """Return the model's inputs for raw rows. `DataError` with row and column of a value that the model cannot read."""
        return self.replay.batch(self._joined(rows) if self.replay.reads == "texts" else rows)

    def rows_of(self, records: Sequence[Mapping[str, Any]]) -> Rows:
        """Return records, a dictionary per row, as rows."""
        given = named(records)
        return rows_of(given, self._columns_of(given))

    def records(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """`predict_rows` with the model already open."""
        answers = self(self.rows_of(records))
        return as_records(answers, len(records))

    def _columns_of(self, records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """Accept whole examples as arrays in place of named columns."""
        return ("array",) if "array" in records[0] and self.replay.reads in ("pictures", "arrays") else self.columns


def as_records(columns: Answers, n: int) -> list[dict[str, Any]]:
    """Return one dictionary per row, of JSON values."""
    lists = {name: json_values(values) for name, values in columns.items()}
    return [{name: values[i] for name, values in lists.items()} for i in range(n)]


def json_values(values: Any) -> list[Any]:
    """Convert to JSON values. A float32 gets the fewest digits that identify it."""
    if isinstance(values, np.ndarray) and values.dtype == np.float32:
        flat = [float(str(v)) for v in values.ravel()]
        return np.array(flat).reshape(values.shape).tolist()  # type: ignore[no-any-return]
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def predict_rows(run: Path | str | Predictor, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    r"""Predict rows, given as JSON has them: a dictionary per row in, a dictionary per row out.

    Args:
        run: folder of a trained run or checkpoint, or an open `Predictor`.
        rows: values by column, as the training file had them; None where one is missing. The label may be missing.

    Returns:
        For each row its prediction, and probabilities, intervals or quantiles where the model gives them.

    Raises:
        DataError: a missing column, or a value that the model cannot read, with row and column.

    >>> import tempfile
    >>> from tauon.config import parse
    >>> from tauon.pipeline import run as train
    >>> from tauon.recipe import Recipe
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "loans.csv").write_text("age,paid\n" + "".join(f"{20 + i},{'yes' if i > 30 else 'no'}\n" for i in range(60)))
    >>> source = {"kind": "csv", "path": str(folder / "loans.csv"), "label": "paid"}
    >>> tree = {"name": "loans", "data": {"source": source}, "task": "classification", "model": "logistic", "train": {"steps": 200, "batch": 16}}
    >>> trained = train(parse(Recipe, tree), root=folder, stages=("prepare", "train"))
    >>> [row["prediction"] for row in predict_rows(trained.folder, [{"age": 21}, {"age": 79}])]
    ['no', 'yes']
    """
    predictor = run if isinstance(run, Predictor) else Predictor.open(run)
    return predictor.records(rows)


def predict_stream(run: Path | str | Predictor, rows: Iterable[Mapping[str, Any]], *, batch: int = ROWS) -> Iterator[dict[str, Any]]:
    """`predict_rows` for a stream of rows: `batch` of them are in memory at once, rounded up to a multiple of 64."""
    predictor = run if isinstance(run, Predictor) else Predictor.open(run)
    size = -(-max(1, batch) // 64) * 64
    held: list[Mapping[str, Any]] = []
    for row in rows:
        held.append(row)
        if len(held) == size:
            yield from predictor.records(held)
            held = []
    if held:
        yield from predictor.records(held)
