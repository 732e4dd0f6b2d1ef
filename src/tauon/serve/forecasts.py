"""Forecasts over HTTP: the history of a series in, as a CSV or as rows; one row for each predicted time step out."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tauon.errors import DataError
from tauon.predict.engine import as_records
from tauon.predict.files import forecast_columns
from tauon.predict.series import Windows, read_series
from tauon.serve.errors import HttpError
from tauon.serve.served import Served
from tauon.serve.sizes import check_upload
from tauon.serve.uploads import Upload

__all__ = ["forecast"]


def forecast(served: Served, content: Any, uploads: Sequence[Upload]) -> list[dict[str, Any]]:
    """Return the forecast after the end of the series.

    Raises:
        HttpError: the request has not exactly one series.
        DataError: the series cannot be read, or is too short.
    """
    if len(uploads) > 1:
        raise HttpError(422, f"{len(uploads)} files, but a forecast continues one series", param="file")
    upload = uploads[0] if uploads else _of_json(content, served)
    if upload.suffix not in (".csv", ".tsv", ".parquet"):
        raise HttpError(415, f"{upload.name}: the model reads a series; expected a CSV", param="file")
    check_upload(upload.content, upload.suffix, upload.name, reads="series")
    predictor = served.predictor
    preprocess = predictor.trained.preprocess
    with tempfile.TemporaryDirectory(prefix="tauon-serve-") as folder:
        path = Path(folder) / f"0{upload.suffix}"
        path.write_bytes(upload.content)
        try:
            windows = Windows(read_series(path, preprocess, predictor.trained.source), preprocess)
            origins, rows = next(iter(windows))
            columns, answers = forecast_columns(windows, origins, predictor(rows))
        except DataError as err:
            raise DataError(str(err).replace(str(path), upload.name)) from None
    return as_records({**columns, **answers}, len(next(iter(columns.values()))))


def _of_json(content: Any, served: Served) -> Upload:
    """Return rows of JSON as the CSV that training would have read."""
    rows = content["rows"] if isinstance(content, dict) and isinstance(content.get("rows"), list) else content
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise HttpError(422, 'expected {"rows": [{...}, ...]}: the history of the series, oldest first', param="rows")
    preprocess, source = served.predictor.trained.preprocess, served.predictor.trained.source
    names = [*([] if preprocess["date"] is None else [str(preprocess["date"])]), *map(str, preprocess["columns"])]
    names = [name for name in names if name in rows[0]]
    out = io.StringIO()
    delimiter = str(getattr(source, "delimiter", ","))
    decimal = str(getattr(getattr(source, "numbers", None), "decimal", None) or ".")
    writer = csv.writer(out, delimiter=delimiter if len(delimiter) == 1 else ",", lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = [row.get(name) for name in names]
        writer.writerow([repr(v).replace(".", decimal) if isinstance(v, float) else v for v in values])
    return Upload(out.getvalue().encode(), ".csv", "the rows")
