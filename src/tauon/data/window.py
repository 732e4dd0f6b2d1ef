"""How a series is cut into examples, and calendar features of a date. Values only; `series.py` does the cutting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tauon.config import Config, Count

__all__ = ["CalendarPart", "WindowConfig", "calendar_columns"]

CalendarPart = Literal["minute", "hour", "weekday", "day", "yearday", "month"]
_SPAN: dict[str, int] = {"minute": 59, "hour": 23, "weekday": 6, "day": 30, "yearday": 365, "month": 11}


class WindowConfig(Config):
    """Windows of a series: the number of input steps (context) and predicted steps (horizon)."""

    context: Count = Field(96, ge=1, le=10**6)
    """Steps that the model reads, T."""
    horizon: Count = Field(24, ge=1, le=10**6)
    """Steps that follow and are predicted, H."""
    stride: Count = Field(1, ge=1)
    """Steps between the starts of training windows."""
    origins: Count = Field(1, ge=1)
    """Steps between forecast origins in held-out parts (rolling origin). 1: from every step."""
    calendar: tuple[CalendarPart, ...] = ()
    """Calendar inputs beside the values: minute, hour, weekday, day, yearday, month; each from -0.5 to 0.5."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(set(self.raw_value("calendar"))) != len(self.raw_value("calendar")):
            yield "calendar", f"has a part twice: {list(self.raw_value('calendar'))}"


def calendar_columns(times: NDArray[np.datetime64], parts: tuple[CalendarPart, ...]) -> NDArray[np.float32]:
    """Return (N, parts) for datetime64 (N): the position of each time within its hour, day, week, month or year, from -0.5 to 0.5."""
    times = times.astype("datetime64[s]")
    day, month, year = (times.astype(f"datetime64[{u}]") for u in "DMY")
    found = {
        "minute": (times - times.astype("datetime64[h]")).astype(np.int64) // 60,
        "hour": (times - day).astype(np.int64) // 3600,
        "weekday": (day.astype(np.int64) + 3) % 7,  # 1970-01-01 was a Thursday
        "day": (day - month).astype(np.int64),
        "yearday": (day - year).astype(np.int64),
        "month": (month - year).astype(np.int64),
    }
    columns = [found[p] / _SPAN[p] - 0.5 for p in parts]
    return np.stack(columns, axis=1).astype(np.float32) if columns else np.empty((len(times), 0), np.float32)
