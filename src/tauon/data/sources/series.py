"""A time series in a CSV file: one column of dates, value columns, one row per time step.

Checks for errors that a model would silently learn from: dates out of order, duplicate dates, gaps. Cutting the series into windows and
holding out its end is done in `data/series.py`. Dates are read by `data/dates.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Count, register
from tauon.data.dates import has_zone, moments, wrong_date_format
from tauon.data.files import expand, read_bytes
from tauon.data.numbers import CANONICAL, NumbersConfig, number_of, shorten
from tauon.data.sources.base import Kind, Series, SourceConfig
from tauon.data.sources.index_column import is_nameless, numbers_rows
from tauon.data.sources.separated import column_names, separated
from tauon.data.sources.tables import no_column
from tauon.data.sources.time_grid import between, distances, grid_of, in_order, without_lost_rows
from tauon.data.spelling import is_missing, nfc
from tauon.data.table_numbers import forms_in_words, read_columns
from tauon.data.text_files import read_text, wrong_encoding
from tauon.errors import DataError

__all__ = ["IncompleteSeries", "SeriesConfig", "csv_columns", "series_of"]


class IncompleteSeries(DataError):
    """Time steps or values are missing, and `fill` is `refuse`; `forward` would accept them."""


@register("series")
class SeriesConfig(SourceConfig):
    """A multivariate time series in a CSV file: a column of dates in order, without gaps, and columns of numbers."""

    path: str
    """The CSV file; compressed files (.gz, .zst) are read directly."""
    date: str | None = "date"
    """Column of dates. null: the file has none; each row is one time step, in the order of the file."""
    date_format: str | None = None
    """Format of the dates for `strptime`: "%d.%m.%Y %H:%M", with %z for a time zone. Default: ISO 8601 (2016-07-01 00:00:00,
    2016-07-01T00:00:00.000Z). Dates with a time zone are converted to UTC."""
    targets: tuple[str, ...] = ()
    """Columns to predict. Default: all except `inputs`."""
    inputs: tuple[str, ...] = ()
    """Columns that are inputs only: weather measured beside the load, for example."""
    calendar: Literal["auto", "even", "weekdays", "rows"] = "auto"
    """Which moments follow each other. even: steps of one length, or months; weekdays: Monday to Friday; rows: each row is one step, whatever
    its distance, so that nothing is missing. auto: weekdays if no date is a Saturday or Sunday, else even."""
    unsorted: Literal["refuse", "sort"] = "refuse"
    """Rows out of order: `refuse` is an error, `sort` orders them by date and says so in a note."""
    repeated: Literal["refuse", "mean", "first", "last", "keep"] = "refuse"
    """Several rows of one moment (the hour that clocks repeat in autumn): `refuse` is an error; their mean, the first or the last row is
    used; `keep` needs calendar: rows and makes each row a step. A note says how many."""
    fill: Literal["refuse", "forward", "drop"] = "refuse"
    """Missing time steps and values: `refuse` is an error that names them, `forward` repeats the previous value (only the past, so nothing leaks),
    `drop` leaves out rows with a missing value."""
    missing: tuple[str, ...] = ("",)
    """Spellings of a missing value."""
    numbers: NumbersConfig | None = None
    """How numbers are written: {decimal: ",", thousands: "."}. Default: detected for each column as a whole, and reported in a note."""
    season: Count | None = Field(None, ge=1, le=10**6)
    """Number of steps after which the series probably repeats: MASE compares with it. Default: from the time step (24 for hours)."""
    delimiter: str = ","
    """One character; `blanks`: any run of blanks and tabs."""
    encoding: str = "utf-8"
    """Text encoding, read strictly. A byte order mark (UTF-8, UTF-16, UTF-32) takes precedence."""

    later: ClassVar[tuple[str, ...]] = ("numbers", "calendar", "unsorted", "repeated")
    provides: ClassVar[Kind] = "series"

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from wrong_encoding(self.raw_value("encoding"))
        date, targets, inputs = self.raw_value("date"), self.raw_value("targets"), self.raw_value("inputs")
        for name, chosen in (("targets", targets), ("inputs", inputs)):
            if date in chosen:
                yield name, f"includes the date column {date!r}, which has no value to predict"
            if len(set(chosen)) != len(chosen):
                yield name, f"has a column twice: {list(chosen)}"
        both = sorted({*targets} & {*inputs})
        if both:
            yield "inputs", f"{both[0]!r} is also in targets; target columns are inputs anyway, so remove it here"
        if wrong := wrong_date_format(self.raw_value("date_format")):
            yield "date_format", wrong
        if self.raw_value("repeated") == "keep" and self.raw_value("calendar") != "rows":
            yield "repeated", "keep makes each row a time step; set calendar: rows, too"
        if date is None:
            for name in ("date_format", "unsorted", "repeated"):
                if self.raw_value(name) != type(self).model_fields[name].default:
                    yield name, "has no effect without dates; remove it, or set date"
            if self.raw_value("calendar") not in ("auto", "rows"):
                yield "calendar", "has no effect without dates, where each row is one step; remove it, or set date"
        if len(self.raw_value("delimiter")) != 1 and self.raw_value("delimiter") != "blanks":
            yield "delimiter", f"{self.raw_value('delimiter')!r} is neither one character nor 'blanks'"

    def files(self) -> list[tuple[Path, str]]:
        return expand(self.path)

    def series(self) -> Series:
        found = self.files()
        if len(found) != 1:
            raise DataError(f"{self.path}: {len(found)} files, expected one file per series. Join them in order of time")
        path = found[0][0]
        text = read_text(read_bytes(path), str(path), self.encoding)
        return series_of(csv_columns(text, str(path), self.delimiter), self, str(path))


def csv_columns(text: str, where: str, delimiter: str = ",") -> dict[str, list[str]]:
    """Cells by column of a CSV text with a header line."""
    lines = separated(text, where, delimiter)
    first = next(lines, None)
    if first is None:
        raise DataError(f"{where}: the file is empty")
    names = column_names(first[1], where)
    columns: dict[str, list[str]] = {n: [] for n in names}
    lists = list(columns.values())
    for number, cells in lines:
        if len(cells) != len(lists):
            raise DataError(f"{where}, line {number}: {len(cells)} values, expected {len(lists)} ({', '.join(names[:6])})")
        for into, cell in zip(lists, cells, strict=True):
            into.append(cell)
    if not lists[0]:
        raise DataError(f"{where}: no rows. Check the file")
    return columns


def series_of(columns: dict[str, list[str]], config: SeriesConfig, where: str) -> Series:
    """Return the series in these columns, checked; `config` says which columns are targets and inputs."""
    date, inputs = None if config.date is None else nfc(config.date), tuple(map(nfc, config.inputs))
    for name in (*(() if date is None else (date,)), *map(nfc, config.targets), *inputs):
        if name not in columns:
            raise DataError(f"{where}: {no_column(name, [*columns])}")
    targets = tuple(map(nfc, config.targets)) or tuple(c for c in columns if c != date and c not in inputs)
    index = [c for c in targets if not config.targets and is_nameless(c) and numbers_rows(columns[c])]
    left_out = tuple(f"column {c!r}: it has no name and numbers the rows; to use it, list it in targets" for c in index)
    targets = tuple(c for c in targets if c not in index)
    if not targets:
        raise DataError(f"{where}: no column is left to predict. Columns: {', '.join(columns)}")
    names = (*targets, *inputs)
    values, notes, warnings = _values(columns, names, config, where)
    for j, name in enumerate(names):
        if np.isnan(values[:, j]).all():
            raise DataError(
                f"{where}: column {name!r} has no values: all {len(values):,} are missing. Choose other columns with data.source.targets and inputs"
            )
    zoned = False
    if date is None:
        times = np.arange(len(values)).astype("datetime64[s]")
        notes.append("the series has no dates: each row is one time step, in the order of the file")
    else:
        times = moments(columns[date], f"{where}: column {date!r}", config.date_format)
        zoned = has_zone(columns[date][0]) if config.date_format is None else "%z" in config.date_format
    if zoned:
        notes.append(f"dates in {date!r} have a time zone and are converted to UTC")
    if date is not None:
        times, values, said = in_order(times, values, where, unsorted=config.unsorted, repeated=config.repeated)
        notes += said
    if config.fill == "drop":
        times, values, said = without_lost_rows(times, values)
        notes += said
    at, step, season = grid_of(times, where, "rows" if date is None else config.calendar)
    if date is not None and config.calendar == "rows":
        notes += distances(times)
    times, values, filled = _filled(times, values, at, step, names, config, where)
    season = config.season or season
    return Series(
        times, values, names, len(targets), step, season, filled, zoned, left_out, tuple(notes), tuple(warnings), date is not None
    )


def _filled(
    times: NDArray[np.datetime64], values: NDArray[np.float64], at: NDArray[np.int64], step: str, names: Sequence[str],
    config: SeriesConfig, where: str,
) -> tuple[NDArray[np.datetime64], NDArray[np.float64], int]:  # fmt: skip
    """Return (times, values, number of filled steps and values) without gaps; `IncompleteSeries` if there are gaps and `fill` is `refuse`."""
    filled = int(at[-1]) + 1 - len(at)
    gaps, fill = np.flatnonzero(np.diff(at) != 1), config.fill
    if gaps.size and fill != "forward":
        i = int(gaps[0])
        raise IncompleteSeries(
            f"{where}: {filled:,} time steps are missing, the first after {times[i]} (the next row is {times[i + 1]}, the step is {step}). "
            "Complete the file, set data.source.fill: forward, or make each row a step (data.source.calendar: rows)"
        )
    if gaps.size:
        whole = np.full((int(at[-1]) + 1, len(names)), np.nan)
        whole[at] = values
        times = np.concatenate([between(times[i], times[i + 1], int(at[i + 1] - at[i])) for i in range(len(at) - 1)] + [times[-1:]])
        values = whole
    lost = np.isnan(values)
    if lost.any():
        i, j = (int(k) for k in np.argwhere(lost)[0])
        if fill != "forward":
            raise IncompleteSeries(
                f"{where}: {int(lost.sum()):,} values are missing, the first in column {names[j]!r} at {times[i]}. "
                "Complete the file, or set data.source.fill: forward"
            )
        if lost[0].any():
            j = int(np.argmax(lost[0]))
            raise DataError(
                f"{where}: column {names[j]!r} starts with a missing value, so there is no earlier value to repeat. Remove the first rows"
            )
        filled += int(lost.sum()) - (len(values) - len(at)) * len(names)
        last = np.maximum.accumulate(np.where(lost, 0, np.arange(len(values))[:, None]), axis=0)
        values = np.take_along_axis(values, last, axis=0)
    return times, values, filled


def _values(
    columns: dict[str, list[str]], names: Sequence[str], config: SeriesConfig, where: str
) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """Return (values (N, C) with NaN for missing, notes, warnings). How numbers are written is detected for each column as a whole."""
    missing, rule = frozenset(config.missing), None if config.numbers is None else config.numbers.form()
    cells = {n: [None if is_missing(v, missing) else v for v in columns[n]] for n in names}
    warnings: list[str] = []
    found = read_columns(cells, rule, lambda name: f"{where}: column {name!r}", warnings)
    values = np.empty((len(columns[names[0]]), len(names)))
    for j, name in enumerate(names):
        form, read = found.get(name, (CANONICAL, None))
        values[:, j] = read if read is not None else [math.nan if v is None else number_of(v, form) for v in cells[name]]
        lost = [i for i in np.flatnonzero(np.isnan(values[:, j])).tolist() if cells[name][i] is not None]
        if lost:
            odd = columns[name][lost[0]]
            raise DataError(
                f"{where}: column {name!r}: {shorten(odd)} in row {lost[0]} is not a number. If it means a missing value, set "
                f"data.source.missing: {[*dict.fromkeys((*config.missing, odd.strip()))]}; or leave the column out with targets: [...]"
            )
    return values, forms_in_words({n: form for n, (form, _) in found.items()}, columns), warnings
