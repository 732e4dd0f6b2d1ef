"""Windows of a series in a file for a forecaster, and its forecasts as rows: one row per predicted time step. The file is kept in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.config import dump, parse
from tauon.data import Normalizer, Rows, Series, SourceConfig
from tauon.data.sources.time_grid import continued
from tauon.data.window import calendar_columns
from tauon.errors import DataError

__all__ = ["Windows", "read_series"]

_SHARED = ("date_format", "calendar", "unsorted", "repeated", "fill", "missing", "numbers", "season", "delimiter", "encoding")


def read_series(path: Path | str, preprocess: Mapping[str, Any], source: Any) -> Series:
    """Return the series in the file, checked and filled like the training file, with the training columns."""
    columns, K = tuple(preprocess["columns"]), preprocess["targets"]
    told = {k: v for k, v in dump(source).items() if k in _SHARED} if source.kind_ == "series" else {}
    asked = {"kind": "series", "path": str(path), "date": preprocess["date"], "targets": columns[:K], "inputs": columns[K:]}
    if preprocess.get("date_format"):
        told["date_format"] = preprocess["date_format"]
    series = parse(SourceConfig, told | asked).series()
    if len(series) > 1 and preprocess["step"] not in ("?", series.step):
        raise DataError(
            f"{path}: the time step is {series.step}, but the model was trained on steps of {preprocess['step']}. Resample the series"
        )
    return series


@dataclass
class Windows:
    """Windows of a series that end where a forecast begins."""

    series: Series
    preprocess: Mapping[str, Any]
    every: int | None = None
    """Also forecast from every so many time steps of the file; None: only after its end."""

    def __post_init__(self) -> None:
        T, n = self.preprocess["context"], len(self.series)
        if n < T:
            raise DataError(f"the series has {n} time steps, but the model reads the last {T}. Give at least that many, in order of time")
        values = Normalizer.from_json(self.preprocess["normalize"])(self.series.values)
        self.columns = np.concatenate([values, calendar_columns(self.series.times, tuple(self.preprocess["calendar"]))], axis=1)
        self.origins = np.array([n], np.int64) if self.every is None else np.arange(T, n + 1, self.every)

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], Rows]]:
        """Yield (first time step that each predicts, the windows), a few hundred at once."""
        T = self.preprocess["context"]
        for start in range(0, len(self.origins), 512):
            origins = self.origins[start : start + 512]
            windows = self.columns[(origins - T)[:, None] + np.arange(T)]
            yield origins, Rows({"window": windows})

    def dates(self, origins: NDArray[np.int64]) -> NDArray[Any]:
        """Return B H: the date of each step of each forecast; beyond the file continued by its own step. Without dates, the row number."""
        at = origins[:, None] + np.arange(self.preprocess["horizon"])
        if not self.series.dated:
            return at
        return continued(self.series.times, int(at.max()) + 1, self.series.step)[at]
