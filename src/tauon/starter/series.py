"""Time series: a column of dates and numbers, or numbers alone; which calendar they follow, and what is done about repeated moments and gaps.

Nothing is invented unless asked: where moments are missing, each row is a step, and a sentence says how to fill them instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.config import parse
from tauon.data import ColumnLook, SourceConfig, TableLook
from tauon.data.dates import moments
from tauon.data.sources.base import Series
from tauon.data.sources.index_column import is_nameless
from tauon.data.sources.series import IncompleteSeries
from tauon.errors import DataError
from tauon.starter.draft import Asked, Draft, training
from tauon.starter.roles import LABELS, choose_label, group_column, time_column, words_of

__all__ = ["is_series", "series"]

_FEWEST = 40
"""Rows that a forecast needs."""
_STEPS = frozenset([
    "index", "step", "t", "i", "row", "time", "n", "no", "nr", "idx", "sample", "tick", "period", "day", "hour", "minute", "second", "timestamp", "ts",
    "epoch", "unixtime", "cycle", "frame",
])  # fmt: skip


def is_series(look: TableLook, asked: Asked) -> bool:
    """Return whether a table is a series: one row a moment, and numbers; predicted is a number that is not a class."""
    time = _time_of(look, asked)
    columns = [c for c in look.columns if c is not time and c.kind != "constant" and not is_nameless(c.name)]
    if look.rows < _FEWEST or not columns or any(c.kind not in ("number", "identifier") or not _numeric(c) for c in columns):
        return False
    if group_column(look, None)[0] is not None and time is not None and time.distinct < 0.9 * look.rows:
        return False
    if time is None:
        return len(columns) == 1 and asked.label in (None, columns[0].name)
    if time.distinct < 0.9 * look.rows:
        return False
    label = next((c for c in columns if c.name == asked.label), None)
    if asked.label is not None and label is None:
        return False
    named = label or next((c for c in columns if c.name.lower() in LABELS), None)
    return named is None or named.distinct > 10 or not named.whole


def _numeric(c: ColumnLook) -> bool:
    return c.kind == "number" or c.whole


def _time_of(look: TableLook, asked: Asked) -> ColumnLook | None:
    """Return the column that orders the rows: dates, or numbers that count up and are called so (`index`, `step`, `year`)."""
    time = time_column(look, None)
    if time is not None and time.kind == "date":
        return time
    dates = [c for c in look.columns if c.kind == "date" and not c.missing]
    if dates:
        return dates[0]
    for c in look.columns:
        if c.name != asked.label and c.whole and not c.missing and ({*words_of(c.name)} & (_STEPS | {"year"}) or is_nameless(c.name)):
            numbers = np.array(look.cells[c.name], np.float64)
            if len(np.unique(numbers)) == len(numbers) and (np.diff(numbers) > 0).all():
                return c
    return None


def series(place: Path, look: TableLook, asked: Asked, found: dict[str, Any], why: list[str]) -> Draft:
    """Draft for a series. `found`: what is known about the source."""
    time = _time_of(look, asked)
    source: dict[str, Any] = {"kind": "series"} | {k: v for k, v in found.items() if k not in ("kind", "header")}
    if found.get("header") is False:
        raise DataError(f"{place}: a series needs a first line with the names of its columns. Write one (value, or date,value)")
    source, said = _dates(place, look, time, source)
    why = [*why, *said]
    if len(look.missing) > 1:
        source["missing"] = list(look.missing)
    chosen, said = _columns(place, look, time, asked)
    source |= chosen
    why += [*said, *(f"Numbers in {c.name} are written with {c.numbers} (numbers)." for c in look.columns if c.numbers)]
    source, more, read = _calendar(place, source)
    horizon, season = _horizon(read.step, read.season, len(read))
    context = max(2, min(96, 4 * horizon, len(read) // 4))
    about = f"What comes next in {place.name}: the next {horizon} steps of {read.targets} series from the last {context}"
    made = Draft(asked.name, about, examples=max(1, round(len(read) * 0.7) - context - horizon))
    data = {"source": source, "split": {"validation": "10%", "test": "20%"}, "window": {"context": context, "horizon": horizon}}
    made.set("data", data, *why, *more, f"The step is {read.step}{season}. The end of the series is held out.")
    made.set("task", {"kind": "forecasting", "loss_kind": "mae"}, "Absolute error: a few odd moments count less than with squares.")
    _model(made, read)
    train, reasons = training(made.examples, batch=32, seen=60_000, most=30)
    made.set("train", train, *reasons)
    return made


def _model(made: Draft, read: Series) -> None:
    """Set model and optimizer: a learned cycle where each step is the next unit of the calendar, else a linear map."""
    longer = "fast. patchtst needs longer series."
    part, cycle, name = _CYCLES.get(read.step, ("", 0, "")) if read.dated and read.targets == len(read.names) else ("", 0, "")
    if part and not _skips_days(read):
        made.sections["data"]["window"]["calendar"] = [part]
        made.set("model", {"kind": "cyclenet", "cycle": cycle}, f"A learned {name} cycle, and a linear map of what is left: {longer}")
        lr = 0.005
    else:
        own = "Each window is scaled by its own level first (revin), so that a level which drifts does not matter."
        made.set("model", {"kind": "dlinear", "revin": True}, f"A linear map of trend and remainder: {longer}", own)
        lr = 0.003
    made.set("optim", {"kind": "adam", "lr": lr, "schedule": {"kind": "cosine", "warmup": 0, "final": 0}})


_CYCLES = {"1 h": ("hour", 24, "daily"), "1 d": ("weekday", 7, "weekly"), "1 month": ("month", 12, "yearly")}
"""Step of a series -> part of the calendar that goes up by one with each step, its length, its name."""


def _skips_days(read: Series) -> bool:
    """Return whether a step is not always as long in the calendar: weekdays only, rows as they come."""
    return read.step == "1 d" and bool((np.diff(read.times.astype("datetime64[D]").astype(np.int64)) != 1).any())


def _dates(place: Path, look: TableLook, time: ColumnLook | None, source: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    if time is None:
        return source | {"date": None}, ["There are no dates: each row is one step, in the order of the file (date: null)."]
    if time.kind != "date" and "year" in words_of(time.name) and all(1000 <= int(v) <= 2999 for v in look.cells[time.name]):
        return source | {"date": time.name, "date_format": "%Y"}, [f"{time.name} is the year of each row."]
    if time.kind != "date":
        return source | {"date": None}, [f"{time.name} orders the rows: each row is one step, in the order of the file (date: null)."]
    source |= {"date": time.name}
    if time.formats and time.formats != ("",):
        source["date_format"], said = _format(place, look, time)
        return source, [said]
    return source, [f"{time.name} is a date and all else numbers: a time series."]


def _format(place: Path, look: TableLook, time: ColumnLook) -> tuple[str, str]:
    """Return (format of the dates, a sentence); of two, the one in which the rows are in order."""
    cells = look.cells[time.name]
    ordered = [f for f in time.formats if _steps_alike(moments(cells, "", f))]
    formats = ordered if len(ordered) == 1 else [*time.formats]
    if len(formats) > 1:
        raise DataError(
            f"{place}: dates in {time.name!r} like {cells[0]!r} can be read as {' or '.join(formats)}. Write them as 2016-07-01, or write "
            "data.source.date_format into a recipe"
        )
    return formats[
        0
    ], f"Dates in {time.name} are read as {formats[0]} (date_format), so {cells[0]} is {str(moments(cells[:1], '', formats[0])[0])[:10]}."


def _steps_alike(times: NDArray[np.datetime64]) -> bool:
    steps = np.diff(times.astype(np.int64))
    return bool((steps >= 0).mean() > 0.98)


def _columns(place: Path, look: TableLook, time: ColumnLook | None, asked: Asked) -> tuple[dict[str, Any], list[str]]:
    """Return (`targets` and `inputs`, the reasons)."""
    numbers = [c for c in look.columns if c is not time and _numeric(c) and c.kind != "constant" and not is_nameless(c.name)]
    constant = [c for c in look.columns if c is not time and c.kind == "constant"]
    gone = [c for c in numbers if c.missing > 0.2 * look.rows and c.name != asked.label]
    counting = [c for c in numbers if c.kind == "identifier" and len(numbers) > 1 and c.name != asked.label]
    kept = [c for c in numbers if c not in gone and c not in counting]
    if not kept:
        raise DataError(f"{place}: no column of numbers is left to predict")
    why = [f"{c.name} is left out: {c.why}." for c in (*constant, *counting)]
    why += [f"{c.name} is left out: {c.missing:,} of {look.rows:,} values are missing." for c in gone]
    label = asked.label
    if label is None and (named := choose_label(place, look, asked, needed=False)) in kept:
        label = named.name if named is not None else None
    if label is not None:
        inputs = [c.name for c in kept if c.name != label and (not asked.inputs or c.name in asked.inputs)]
        if inputs:
            why.append(f"{label} is predicted; {', '.join(inputs[:6])} are inputs.")
        return {"targets": [label]} | ({"inputs": inputs} if inputs else {}), why
    if why or len(look.columns) > len(kept) + (time is not None):
        return {"targets": [c.name for c in kept]}, why
    return {}, ["All columns are predicted. To predict one alone: source.targets."] if len(kept) > 1 else []


def _calendar(place: Path, source: dict[str, Any]) -> tuple[dict[str, Any], list[str], Any]:
    """Return (source that can be read, reasons, the series): sorted, with repeated moments and missing steps as its keys say."""
    why: list[str] = []
    if source["date"] is not None:
        anything: Any = parse(SourceConfig, source | {"calendar": "rows", "unsorted": "sort", "repeated": "keep", "fill": "drop"})
        source, why = _order(source, anything.series().times)
    for attempt in ({}, {"fill": "drop"}, {"calendar": "rows"}, {"calendar": "rows", "fill": "drop"}):
        if (source["date"] is None and "calendar" in attempt) or (source.get("repeated") == "keep" and "calendar" not in attempt):
            continue
        try:
            read = parse(SourceConfig, source | attempt).series()
        except IncompleteSeries as err:
            problem = str(err)
            continue
        except DataError as err:
            if "evenly spaced" not in str(err):
                raise
            problem = str(err)
            continue
        if attempt.get("fill") == "drop":
            lost = next((n for n in read.notes if "fill: drop" in n), "")
            why.append(f"{lost[:1].upper()}{lost[1:]}. To repeat the previous value instead: fill: forward." if lost else "")
        if "calendar" in attempt:
            why.append(_as_rows(read, problem if source.get("repeated") != "keep" else ""))
        elif read.step == "1 weekday":
            why.append("Dates are Monday to Friday: Friday is followed by Monday, and no weekend is filled.")
        return source | attempt, why, read
    raise DataError(f"{place}: {problem}")


def _as_rows(read: Any, problem: str) -> str:
    _, counts = np.unique(np.diff(read.times.astype(np.int64)), return_counts=True)
    odd = int(counts.sum() - counts.max())
    if "missing" in problem:
        missing = problem.partition(": ")[2].partition(" time steps")[0]
        return (
            f"{missing} time steps are missing ({odd:,} gaps): each row is one step, whatever its distance, and nothing is filled (calendar: rows).\n"
            "To fill gaps with the previous value, which is then also predicted: remove calendar, set fill: forward."
        )
    return f"{odd:,} of {int(counts.sum()):,} distances between rows differ: each row is one step, and nothing is filled (calendar: rows)."


def _order(source: dict[str, Any], times: NDArray[np.datetime64]) -> tuple[dict[str, Any], list[str]]:
    """Return (source with `unsorted` and `repeated`, reasons). `times` are sorted, with repeated ones."""
    why = []
    try:
        parse(SourceConfig, source | {"calendar": "rows", "repeated": "keep", "fill": "drop"}).series()
    except DataError as err:
        if "out of order" not in str(err):
            raise
        source = source | {"unsorted": "sort"}
        why.append("Rows are not in order of time: they are sorted (unsorted: sort).")
    same = np.flatnonzero(np.diff(times.astype(np.int64)) == 0)
    if not same.size:
        return source, why
    if _clock_changes(times, same):
        why.append(
            f"{same.size} moments occur twice, in the hour that clocks repeat in autumn: each row is a step (repeated: keep, calendar: rows)."
        )
        return source | {"repeated": "keep"}, why
    why.append(
        f"{same.size} moments occur in several rows, the first at {times[same[0]]}: their mean is used (repeated: mean; first, last and keep are possible)."
    )
    return source | {"repeated": "mean"}, why


def _clock_changes(times: NDArray[np.datetime64], same: NDArray[np.int64]) -> bool:
    """Return whether hours repeat as clocks do: on Sundays of autumn (March to May in the south) before 4 o'clock, at most two hours a year, and an
    hour is missing in spring wherever the data has one.
    """
    at = times[same].astype("datetime64[s]")
    day = at.astype("datetime64[D]")
    hours = (at - day).astype(np.int64) // 3600
    months = (at.astype("datetime64[M]").astype(np.int64) % 12) + 1
    sundays = (day.astype(np.int64) + 3) % 7 == 6
    years = len(np.unique(at.astype("datetime64[Y]")))
    fine = sundays & (hours < 4) & (np.isin(months, (9, 10, 11)) | np.isin(months, (3, 4)))
    spring_inside = (times[-1] - times[0]).astype("timedelta64[D]").astype(int) > 300
    gaps = np.flatnonzero(np.diff(times.astype("datetime64[s]").astype(np.int64)) == 7200)
    return bool(fine.all() and len(np.unique(day)) <= years and (gaps.size > 0 or not spring_inside))


def _horizon(step: str, season: int, rows: int) -> tuple[int, str]:
    """Return (steps to predict, the season in words): a season, if the series is long enough."""
    wanted = season if 1 < season <= 52 else 24
    said = f", {season} of them are a season" if season > 1 else ""
    return max(1, min(wanted, rows // 10)), said
