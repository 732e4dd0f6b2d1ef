"""A time series in a CSV file: one column of dates, the others values, one row a moment.

Checks what a model would silently learn wrongly from: dates out of order, the same moment twice, gaps. Cutting the series into
windows and holding its end out is `data/series.py`'s business. Dates are read by pyarrow (ISO 8601), or by a format of yours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Count, register
from tauon.data.files import decode, expand, read_bytes
from tauon.data.sources.base import Kind, Series, SourceConfig
from tauon.data.sources.tables import separated
from tauon.errors import DataError

__all__ = ["SeriesConfig", "csv_columns", "moments", "series_of"]

Seconds = NDArray[np.int64]


@register("series")
class SeriesConfig(SourceConfig):
    """A multivariate time series in a CSV file: a column of dates in order, without gaps, and columns of numbers."""

    path: str
    """The CSV file; packed files (.gz, .zst) are read as they are."""
    date: str = "date"
    """Column of dates."""
    date_format: str | None = None
    """As `strptime` writes it: "%d.%m.%Y %H:%M". Left out: ISO 8601 (2016-07-01 00:00:00)."""
    targets: tuple[str, ...] = ()
    """Columns to predict. Left out: all, but `inputs`."""
    inputs: tuple[str, ...] = ()
    """Columns that are only read, as context: weather measured beside the load, say."""
    fill: Literal["refuse", "forward"] = "refuse"
    """Missing moments and values: `refuse` names them, `forward` repeats what came before (the past alone, so nothing leaks)."""
    missing: tuple[str, ...] = ("",)
    """Spellings of a missing value."""
    season: Count | None = Field(None, ge=1, le=10**6)
    """Steps after which the series is likely to repeat: what MASE compares with. Left out: from the step (of hours 24)."""
    delimiter: str = ","
    """One character; `blanks`: any run of blanks and tabs."""
    encoding: str = "utf-8"
    """Read strictly."""

    provides: ClassVar[Kind] = "series"

    def problems(self) -> Iterator[tuple[str, str]]:
        date, targets, inputs = self.peek("date"), self.peek("targets"), self.peek("inputs")
        for name, chosen in (("targets", targets), ("inputs", inputs)):
            if date in chosen:
                yield name, f"has the column of dates {date!r} among them; it has no value to predict"
            if len(set(chosen)) != len(chosen):
                yield name, f"names a column twice: {list(chosen)}"
        both = sorted({*targets} & {*inputs})
        if both:
            yield "inputs", f"{both[0]!r} is among the targets, too; a column that is predicted is read as context anyway"
        if len(self.peek("delimiter")) != 1 and self.peek("delimiter") != "blanks":
            yield "delimiter", f"{self.peek('delimiter')!r} is not one character, nor blanks"

    def files(self) -> list[tuple[Path, str]]:
        return expand(self.path)

    def series(self) -> Series:
        found = self.files()
        if len(found) != 1:
            raise DataError(f"{self.path}: {len(found)} files, expected one: a series is one file. Join them in order of time")
        path = found[0][0]
        text = decode(read_bytes(path), str(path), self.encoding)
        return series_of(csv_columns(text, str(path), self.delimiter), self, str(path))


def csv_columns(text: str, where: str, delimiter: str = ",") -> dict[str, list[str]]:
    """Cells by column of a CSV text with a header line."""
    lines = separated(text, where, delimiter)
    first = next(lines, None)
    if first is None:
        raise DataError(f"{where}: the file is empty")
    names = first[1]
    if len(set(names)) != len(names):
        raise DataError(f"{where}: two columns are called {next(n for n in names if names.count(n) > 1)!r}; rename one")
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
    """The series in these columns, checked; `config` says which are what."""
    date, missing = config.date, frozenset(config.missing)
    for name in (date, *config.targets, *config.inputs):
        if name not in columns:
            close = get_close_matches(name, columns, n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise DataError(f"{where}: no column {name!r}{hint} There are: {', '.join(columns)}")
    inputs = config.inputs
    targets = config.targets or tuple(c for c in columns if c != date and c not in inputs)
    if not targets:
        raise DataError(f"{where}: no column is left to predict. There are: {', '.join(columns)}")
    times = moments(columns[date], f"{where}: column {date!r}", config.date_format)
    names = (*targets, *inputs)
    values = np.stack([_numbers(columns[n], missing, f"{where}: column {n!r}") for n in names], axis=1)
    for j, name in enumerate(names):
        if np.isnan(values[:, j]).all():
            raise DataError(f"{where}: column {name!r} has no value at all: all {len(values):,} are missing. Name other columns")
    _check_order(times, where)
    at, step, season = _grid(times, where)
    filled = int(at[-1]) + 1 - len(at)
    gaps, fill = np.flatnonzero(np.diff(at) != 1), config.fill
    if gaps.size and fill == "refuse":
        i = int(gaps[0])
        raise DataError(
            f"{where}: {filled:,} moments are missing, the first after {times[i]} (the next is {times[i + 1]}, and the step is {step}). "
            "Complete the file, or say fill: forward"
        )
    if gaps.size:
        whole = np.full((int(at[-1]) + 1, len(names)), np.nan)
        whole[at] = values
        times = np.concatenate([_between(times[i], times[i + 1], int(at[i + 1] - at[i])) for i in range(len(at) - 1)] + [times[-1:]])
        values = whole
    lost = np.isnan(values)
    if lost.any():
        i, j = (int(k) for k in np.argwhere(lost)[0])
        if fill == "refuse":
            raise DataError(
                f"{where}: {int(lost.sum()):,} values are missing, the first in column {names[j]!r} at {times[i]}. "
                "Complete the file, or say fill: forward"
            )
        if lost[0].any():
            j = int(np.argmax(lost[0]))
            raise DataError(f"{where}: column {names[j]!r} begins with a missing value, and nothing comes before it. Drop the first rows")
        filled += int(lost.sum()) - (len(values) - len(at)) * len(names)
        last = np.maximum.accumulate(np.where(lost, 0, np.arange(len(values))[:, None]), axis=0)
        values = np.take_along_axis(values, last, axis=0)
    return Series(times, values, names, len(targets), step, config.season or season, filled)


def moments(texts: Sequence[str], where: str, format_: str | None = None) -> NDArray[np.datetime64]:
    """Dates as datetime64[s]; times with a zone become UTC. Raises `DataError` that names the first that is none."""
    import pyarrow as pa

    if format_ is not None:
        out = np.empty(len(texts), "datetime64[s]")
        for i, text in enumerate(texts):
            try:
                out[i] = np.datetime64(datetime.strptime(text.strip(), format_).replace(tzinfo=None), "s")
            except ValueError:
                raise DataError(f"{where}: {text!r} in row {i} is no date of the form {format_!r}") from None
        return out
    for kind in (pa.timestamp("s"), pa.timestamp("s", tz="UTC")):
        try:
            found = pa.array(texts, pa.string()).cast(kind)
        except pa.ArrowInvalid:
            continue
        if not found.null_count:
            return np.asarray(found.to_numpy(zero_copy_only=False)).astype("datetime64[s]")
    odd = next((i for i, text in enumerate(texts) if not _is_date(text)), 0)
    raise DataError(f"{where}: {texts[odd]!r} in row {odd} is no date (2016-07-01 00:00:00). For another form say date_format: '%d.%m.%Y'")


def _is_date(text: str) -> bool:
    import pyarrow as pa

    for kind in (pa.timestamp("s"), pa.timestamp("s", tz="UTC")):
        try:
            return bool(pa.array([text], pa.string()).cast(kind).null_count == 0)
        except pa.ArrowInvalid:
            continue
    return False


def _numbers(cells: Sequence[str], missing: frozenset[str], where: str) -> NDArray[np.float64]:
    out = np.empty(len(cells))
    for i, cell in enumerate(cells):
        try:
            out[i] = np.nan if cell in missing else float(cell)
        except ValueError:
            raise DataError(f"{where}: {cell[:40]!r} in row {i} is not a number. Leave the column out with targets: [...]") from None
    if np.isinf(out).any():
        raise DataError(f"{where}: row {int(np.argmax(np.isinf(out)))} is infinite. Repair the value")
    return out


def _check_order(times: NDArray[np.datetime64], where: str) -> None:
    steps = np.diff(times.astype(np.int64))
    bad = np.flatnonzero(steps <= 0)
    if not bad.size:
        return
    i = int(bad[0])
    if steps[i] == 0:
        raise DataError(f"{where}: the moment {times[i]} is there twice (rows {i} and {i + 1}). Keep one row a moment")
    raise DataError(f"{where}: dates out of order: {times[i + 1]} (row {i + 1}) comes after {times[i]}. Sort the rows by date")


_UNITS = ((86400 * 7, "week"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def _grid(times: NDArray[np.datetime64], where: str) -> tuple[Seconds, str, int]:
    """(number of each moment on a regular grid from 0, step in words, usual season). A `DataError` where there is no such grid."""
    if len(times) < 2:
        return np.zeros(len(times), np.int64), "?", 1
    seconds = times.astype(np.int64)
    steps, counts = np.unique(np.diff(seconds), return_counts=True)
    step = int(steps[np.argmax(counts)])
    months = times.astype("datetime64[M]").astype(np.int64)
    rest = (times - times.astype("datetime64[M]")).astype(np.int64)
    ends = ((times.astype("datetime64[D]") + 1).astype("datetime64[M]").astype(np.int64) > months).all()
    if step >= 28 * 86400 and (ends or (rest == rest[0]).all()):  # months differ in length
        gaps, counts = np.unique(np.diff(months), return_counts=True)
        stride = int(gaps[np.argmax(counts)])
        at, off = np.divmod(months - months[0], stride)
        if not off.any():
            return at, "1 month" if stride == 1 else f"{stride} months", max(1, 12 // stride)
    at, off = np.divmod(seconds - seconds[0], step)
    if off.any():
        i = int(np.argmax(off != 0))
        raise DataError(
            f"{where}: dates are not evenly spaced: {times[i]} (row {i}) is no multiple of the usual step of {_words(step)} after "
            f"{times[0]}. Resample the series"
        )
    if step < 86400:
        season = 86400 // step if 86400 % step == 0 and step >= 60 else 1
    else:
        season = 7 if step == 86400 else 52 if step == 7 * 86400 else 1
    return at, _words(step), season


def _words(step: int) -> str:
    size, unit = next((s, u) for s, u in _UNITS if step % s == 0)
    return f"{step // size} {unit}"


def _between(start: Any, stop: Any, n: int) -> NDArray[np.datetime64]:
    """`n` moments from `start` on, evenly, `stop` excluded."""
    a, b = start.astype(np.int64), stop.astype(np.int64)
    found: NDArray[np.datetime64] = (a + (b - a) * np.arange(n) // n).astype("datetime64[s]")
    return found
