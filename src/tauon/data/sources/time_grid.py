"""The regular time grid of a series: order, time step, usual season."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.errors import DataError

__all__ = ["between", "check_order", "grid_of", "ticks_a_second"]


def check_order(times: NDArray[np.datetime64], where: str) -> None:
    steps = np.diff(times.astype(np.int64))
    bad = np.flatnonzero(steps <= 0)
    if not bad.size:
        return
    i = int(bad[0])
    if steps[i] == 0:
        raise DataError(f"{where}: the date {times[i]} occurs twice (rows {i} and {i + 1}). Keep one row per date")
    raise DataError(f"{where}: dates out of order: {times[i + 1]} (row {i + 1}) comes after {times[i]}. Sort the rows by date")


_UNITS = ((86400 * 7, "week"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def ticks_a_second(times: NDArray[np.datetime64]) -> int:
    """Return how many units of this datetime type make a second."""
    return _TICKS[np.datetime_data(times.dtype)[0]]


def grid_of(times: NDArray[np.datetime64], where: str) -> tuple[NDArray[np.int64], str, int]:
    """Return (index of each time on a regular grid from 0, step in words, usual season). `DataError` if there is no such grid."""
    if len(times) < 2:
        return np.zeros(len(times), np.int64), "?", 1
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


def _words(step: int, second: int) -> str:
    size, unit = next((n, u) for s, u in _UNITS if (n := round(s * second)) >= 1 and step % n == 0)
    return f"{step // size} {unit}"


def between(start: Any, stop: Any, n: int) -> NDArray[np.datetime64]:
    """Return `n` times from `start`, evenly spaced, `stop` excluded."""
    a, b = start.astype(np.int64), stop.astype(np.int64)
    found: NDArray[np.datetime64] = (a + (b - a) * np.arange(n) // n).astype(start.dtype)
    return found
