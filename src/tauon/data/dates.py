"""Dates in text: ISO 8601 as pyarrow reads it, or a given format; time zones become UTC; parts of dates as numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tauon.data.numbers import shorten, stands_for_missing
from tauon.errors import DataError

__all__ = ["DatePart", "date_formats", "date_parts", "has_zone", "is_date", "moments", "wrong_date_format"]

DatePart = Literal["days", "year", "month", "day", "weekday", "hour"]
Moments = NDArray[np.datetime64]

_UNITS = ("s", "ms", "us", "ns")
_ZONE = re.compile(r"(?:[zZ]|[+-]\d{2}(?::?\d{2})?)$")


def is_date(text: str) -> bool:
    """Return whether a text begins like an ISO 8601 date: 2016-07-01."""
    text = text.strip()
    return len(text) >= 10 and text[4] == text[7] == "-" and text[:4].isdigit() and text[5:7].isdigit() and text[8:10].isdigit()


def has_zone(text: str) -> bool:
    """Return whether an ISO date has a time zone: 2024-10-20T00:00:00Z, 2024-10-20 00:00+02:00."""
    text = text.strip()
    return len(text) > 10 and bool(_ZONE.search(text[10:]))


_DAYS = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%y", "%m/%d/%y", "%d/%m/%y")
_TIMES = ("", " %H:%M", " %H:%M:%S", " %H.%M", " %I:%M %p", " %I:%M:%S %p")
_FORMATS = (
    *(day + time for day in _DAYS for time in _TIMES),
    "%Y-%m", "%Y%m%d", "%b %Y", "%B %Y", "%d %b %Y", "%b %d, %Y", "%B %d, %Y", "%Y-%m-%d %I:%M %p", "%Y%m%d%H%M", "%Y%m%d %H:%M",
)  # fmt: skip


def date_formats(texts: Sequence[str]) -> list[str]:
    """Return the formats for `strptime` in which every text is a date, of those that people use; "" is ISO 8601. Of 02.03.2024 there are two.

    >>> date_formats(["01.02.2024", "31.02.2024"]), date_formats(["1/2/2024", "1/31/2024"]), date_formats(["1/2/2024"])
    ([], ['%m/%d/%Y'], ['%d/%m/%Y', '%m/%d/%Y'])
    """
    if not texts:
        return []
    if all(map(is_date, texts[:50])) and all(map(is_date, texts)):
        return [""]
    fitting: list[str] = []
    for format_ in _FORMATS:
        if all(_fits(text, format_) for text in texts[:20]) and all(_fits(text, format_) for text in texts):
            fitting.append(format_)
    return fitting


def _fits(text: str, format_: str) -> bool:
    text = text.strip()
    if "%d" in format_ and not any(not c.isalnum() for c in text) and len(text) < 8:
        return False
    try:
        return 1000 <= datetime.strptime(text, format_).year <= 2999
    except ValueError:
        return False


def wrong_date_format(format_: str | None) -> str | None:
    """Return what is wrong with a `date_format`, or None."""
    if format_ is not None and "%Z" in format_:
        return "names of time zones (%Z) are ambiguous. Write a fixed name out ('%d.%m.%Y %H:%M UTC'), or use %z, which reads +0200"
    return None


def moments(texts: Sequence[str], where: str, format_: str | None = None) -> Moments:
    """Return dates as datetime64 of the coarsest unit (s, ms, us, ns) that loses nothing; times with a zone become UTC.

    Raises `DataError` with the first text that is not a date. All dates must have a time zone, or none.
    """
    return _coarse(_iso(texts, where) if format_ is None else _formatted(texts, where, format_))


def _coarse(found: Moments) -> Moments:
    ticks, unit = found.astype(np.int64), np.datetime_data(found.dtype)[0]
    at = _UNITS.index(unit)
    while at and not (ticks % 1000).any():
        ticks, at = ticks // 1000, at - 1
    return ticks.astype(f"datetime64[{_UNITS[at]}]")


def _formatted(texts: Sequence[str], where: str, format_: str) -> Moments:
    out = np.empty(len(texts), "datetime64[us]")
    zoned: bool | None = None
    for i, text in enumerate(texts):
        try:
            read = datetime.strptime(text.strip(), format_)
        except ValueError:
            raise DataError(
                f"{where}: {text!r} in row {i} is not a date of the format {format_!r}. Correct the row, or date_format"
            ) from None
        zoned = read.tzinfo is not None if zoned is None else zoned
        out[i] = np.datetime64(read.astimezone(UTC).replace(tzinfo=None) if read.tzinfo is not None else read, "us")
    return out


def _iso(texts: Sequence[str], where: str) -> Moments:
    import pyarrow as pa

    given = pa.array(texts, pa.string())
    for unit in _UNITS:
        for kind in (pa.timestamp(unit), pa.timestamp(unit, tz="UTC")):
            try:
                found = given.cast(kind)
            except pa.ArrowInvalid:
                continue
            if not found.null_count:
                ticks = found.cast(pa.int64()).to_numpy(zero_copy_only=False)
                return np.asarray(ticks, np.int64).astype(f"datetime64[{unit}]")
    odd = next((i for i, text in enumerate(texts) if not _reads(text)), None)
    if odd is None:
        i = next((i for i, text in enumerate(texts) if has_zone(text) != has_zone(texts[0])), 0)
        a, b = ("with", "without") if has_zone(texts[0]) else ("without", "with")
        raise DataError(
            f"{where}: {texts[0]!r} in row 0 is {a} a time zone, but {texts[i]!r} in row {i} {b}. Give all dates a time zone, or none"
        )
    raise DataError(
        f"{where}: {texts[odd]!r} in row {odd} is not a date like 2016-07-01 00:00:00. For another format set data.source.date_format: '%d.%m.%Y'"
    )


def _reads(text: str) -> bool:
    import pyarrow as pa

    for kind in (pa.timestamp("ns"), pa.timestamp("ns", tz="UTC"), pa.timestamp("s"), pa.timestamp("s", tz="UTC")):
        try:
            return bool(pa.array([text], pa.string()).cast(kind).null_count == 0)
        except pa.ArrowInvalid:
            continue
    return False


def date_parts(values: Sequence[Any], parts: Sequence[DatePart], where: Callable[[int], str]) -> list[NDArray[np.float64]]:
    """Return each part of dates as numbers; missing ones (None) as NaN."""
    lost = np.array([v is None for v in values], bool)
    texts = [str(v).strip() for v in values if v is not None]
    there = np.flatnonzero(~lost)
    try:
        found_there = moments(texts, "") if texts else np.empty(0, "datetime64[s]")
    except DataError as err:
        raise _named(texts, there, values, where, err) from None
    parts_there = _parts(found_there)
    out = []
    for part in parts:
        column = np.full(len(values), np.nan)
        column[there] = parts_there[part]
        out.append(column)
    return out


def _named(texts: Sequence[str], there: NDArray[np.int64], values: Sequence[Any], where: Callable[[int], str], err: DataError) -> DataError:
    for i, text in zip(there.tolist(), texts, strict=True):
        if not _reads(text):
            said = f" If it means a missing value, set data.source.missing: ['', {text!r}]" if stands_for_missing(text) else ""
            return DataError(f"{where(i)} is {shorten(values[i])}, expected a date (2016-07-01 or 2016-07-01 00:00:00).{said}")
    return DataError(f"{where(int(there[0]))}{err}")


def _parts(times: Moments) -> dict[DatePart, NDArray[np.float64]]:
    day = times.astype("datetime64[D]")
    month, year = day.astype("datetime64[M]"), day.astype("datetime64[Y]")
    ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[np.datetime_data(times.dtype)[0]] * 86400
    found: dict[DatePart, Iterator[Any] | NDArray[Any]] = {
        "days": times.astype(np.int64) / ticks,
        "year": year.astype(np.int64) + 1970,
        "month": (month - year).astype(np.int64) + 1,
        "day": (day - month).astype(np.int64) + 1,
        "weekday": (day.astype(np.int64) + 3) % 7,
        "hour": (times - day).astype(np.int64) // (ticks // 24),
    }
    return {name: np.asarray(value, np.float64) for name, value in found.items()}
