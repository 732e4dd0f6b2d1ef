"""The time grid of a series: order, repeated moments, time step, usual season."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError

__all__ = ["between", "continued", "distances", "grid_of", "in_order", "ticks_a_second", "without_lost_rows"]


ROW, WEEKDAY = "1 row", "1 weekday"
Times = NDArray[np.datetime64]
Values = NDArray[np.float64]


def in_order(times: Times, values: Values, where: str, *, unsorted: str, repeated: str) -> tuple[Times, Values, list[str]]:
    """Return (times, values, notes) in order of time, with repeated moments as asked (`SeriesConfig`)."""
    notes = []
    back = np.flatnonzero(np.diff(times.astype(np.int64)) < 0)
    if back.size:
        i = int(back[0])
        if unsorted == "refuse":
            raise DataError(
                f"{where}: dates out of order: {times[i + 1]} (row {i + 1}) comes after {times[i]}. Sort the rows by date, or set "
                "data.source.unsorted: sort"
            )
        order = np.argsort(times, kind="stable")
        times, values = times[order], values[order]
        notes.append(f"rows were out of order ({back.size:,} places, the first at row {i + 1}): they are sorted by date")
    same = np.flatnonzero(np.diff(times.astype(np.int64)) == 0)
    if not same.size:
        return times, values, notes
    i = int(same[0])
    if repeated == "refuse":
        raise DataError(
            f"{where}: the date {times[i]} occurs twice (rows {i} and {i + 1}). Keep one row per date, or set data.source.repeated (mean, first, "
            "last; keep with calendar: rows)"
        )
    used = {"keep": "each is a step", "mean": "their mean is used", "first": "the first is used", "last": "the last is used"}[repeated]
    notes.append(f"{same.size:,} rows repeat the moment of the row before, the first at {times[i]}: {used}")
    if repeated == "keep":
        return times, values, notes
    once, first, of = np.unique(times, return_index=True, return_inverse=True)
    if repeated != "mean":
        rows = first if repeated == "first" else np.append(first[1:], len(times)) - 1
        return once, values[rows], notes
    known = ~np.isnan(values)
    sums, counts = np.zeros((len(once), values.shape[1])), np.zeros((len(once), values.shape[1]))
    np.add.at(sums, of, np.where(known, values, 0.0))
    np.add.at(counts, of, known)
    return once, np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0), notes


def without_lost_rows(times: Times, values: Values) -> tuple[Times, Values, list[str]]:
    """Return (times, values, notes) without rows that have a missing value."""
    lost = np.asarray(np.isnan(values).any(axis=1))
    said = [f"{int(lost.sum()):,} of {len(lost):,} rows are left out, because a value is missing (fill: drop)"] if lost.any() else []
    return times[~lost], values[~lost], said


def distances(times: Times) -> list[str]:
    """Return a note on rows that are each one step although their distances differ."""
    steps, counts = np.unique(np.diff(times.astype(np.int64)), return_counts=True)
    if len(steps) < 2:
        return []
    usual, second = int(steps[np.argmax(counts)]), ticks_a_second(times)
    odd = int(counts.sum() - counts.max())
    return [
        f"each row is one time step (calendar: rows): {odd:,} of {int(counts.sum()):,} distances are not the usual {_words(usual, second)}, "
        f"the longest is {_words(int(steps[-1]), second)}; nothing is filled"
    ]


_UNITS = ((86400 * 7, "week"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def ticks_a_second(times: Times) -> int:
    """Return how many units of this datetime type make a second."""
    return _TICKS[np.datetime_data(times.dtype)[0]]


def grid_of(times: Times, where: str, calendar: str = "auto") -> tuple[NDArray[np.int64], str, int]:
    """Return (index of each time on a grid from 0, step in words, usual season). `DataError` if there is no such grid.

    `calendar` is `SeriesConfig.calendar`.
    """
    if calendar == "rows":
        return np.arange(len(times)), ROW, 1
    if len(times) < 2:
        return np.zeros(len(times), np.int64), "?", 1
    weekend = np.flatnonzero(_weekday(times) > 4)
    if calendar == "weekdays" and weekend.size:
        i = int(weekend[0])
        raise DataError(f"{where}: {times[i]} (row {i}) is a Saturday or Sunday, but data.source.calendar is weekdays. Set even or rows")
    if calendar == "weekdays" or (calendar == "auto" and not weekend.size and _working_days(times)):
        days = times.astype("datetime64[D]")
        return np.busday_count(days[0], days).astype(np.int64), WEEKDAY, 5
    ticks, second = times.astype(np.int64), ticks_a_second(times)
    day = 86400 * second
    steps, counts = np.unique(np.diff(ticks), return_counts=True)
    step = int(steps[np.argmax(counts)])
    months = times.astype("datetime64[M]").astype(np.int64)
    rest = (times - times.astype("datetime64[M]")).astype(np.int64)
    ends = ((times.astype("datetime64[D]") + 1).astype("datetime64[M]").astype(np.int64) > months).all()
    if step >= 28 * day and (ends or (rest == rest[0]).all()):  # months differ in length
        gaps, counts = np.unique(np.diff(months), return_counts=True)
        stride = int(gaps[np.argmax(counts)])
        at, off = np.divmod(months - months[0], stride)
        if not off.any():
            return at, "1 month" if stride == 1 else f"{stride} months", max(1, 12 // stride)
    at, off = np.divmod(ticks - ticks[0], step)
    if off.any():
        i = int(np.argmax(off != 0))
        raise DataError(
            f"{where}: dates are not evenly spaced: {times[i]} (row {i}) is not a multiple of the usual step of {_words(step, second)} after "
            f"{times[0]}. Resample the series"
        )
    if step < day:
        season = day // step if day % step == 0 and step >= 60 * second else 1
    else:
        season = 7 if step == day else 52 if step == 7 * day else 1
    return at, _words(step, second), season


def _weekday(times: Times) -> NDArray[np.int64]:
    """Return the weekday of each time, Monday 0."""
    weekdays: NDArray[np.int64] = (times.astype("datetime64[D]").astype(np.int64) + 3) % 7
    return weekdays


def _working_days(times: Times) -> bool:
    """Return whether these are days, usually the next one, over at least two weekends."""
    rest = (times - times.astype("datetime64[D]")).astype(np.int64)
    steps = np.diff(times.astype("datetime64[D]").astype(np.int64))
    return bool((rest == rest[0]).all() and len(steps) >= 10 and np.median(steps) == 1 and (steps >= 1).all())


def continued(times: Times, n: int, step: str) -> Times:
    """Return `times` continued to `n` times by their step."""
    if n <= len(times):
        return times
    more = np.arange(len(times), n)
    if step == WEEKDAY:
        days = np.busday_offset(times[-1].astype("datetime64[D]"), more - len(times) + 1)
        later = days.astype(times.dtype) + (times[-1] - times[-1].astype("datetime64[D]"))
    elif "month" in step and len(times) > 1:
        grid, _, _ = grid_of(times, "the series", "even")
        stride = int((times[-1].astype("datetime64[M]") - times[0].astype("datetime64[M]")).astype(int)) // int(grid[-1])
        months = times[0].astype("datetime64[M]") + more * stride
        ends = (times.astype("datetime64[D]") + 1).astype("datetime64[M]") > times.astype("datetime64[M]")
        if ends.all():
            before_end = (times[0].astype("datetime64[M]") + 1).astype("datetime64[D]").astype(times.dtype) - times[0]
            later = (months + 1).astype("datetime64[D]").astype(times.dtype) - before_end
        else:
            later = months.astype(times.dtype) + (times[0] - times[0].astype("datetime64[M]").astype(times.dtype))
    else:
        usual = np.median(np.diff(times.astype(np.int64))).astype(np.int64) if len(times) > 1 else 0
        later = times[-1] + usual * (more - len(times) + 1)
    return np.concatenate([times, later.astype(times.dtype)])


def _words(step: int, second: int) -> str:
    size, unit = next((n, u) for s, u in _UNITS if (n := round(s * second)) >= 1 and step % n == 0)
    return f"{step // size} {unit}"


def between(start: Any, stop: Any, n: int) -> NDArray[np.datetime64]:
    """Return `n` times from `start`, evenly spaced, `stop` excluded."""
    a, b = start.astype(np.int64), stop.astype(np.int64)
    found: NDArray[np.datetime64] = (a + (b - a) * np.arange(n) // n).astype(start.dtype)
    return found
