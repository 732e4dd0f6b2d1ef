"""Plots of a few forecast windows: context, truth, forecast, and the interval if the model predicts one."""

from __future__ import annotations

from typing import Any

from tauon.report.plots import Axis, Band, Line, Mark, chart
from tauon.report.records import number
from tauon.report.text import escape

__all__ = ["drawn_forecasts"]

_WINDOWS, _TARGETS = 3, 3


def drawn_forecasts(windows: Any, by_horizon: Any = None) -> str:
    """Return safe markup of at most three windows with three targets each, and of the error of each step ahead; "" if the record has none."""
    windows = [w for w in windows if isinstance(w, dict)] if isinstance(windows, list) else []
    html = ""
    for i, window in enumerate(windows[:_WINDOWS]):
        targets = [t for t in window.get("targets") or [] if isinstance(t, dict)]
        for j, target in enumerate(targets[:_TARGETS]):
            html += _one(f"forecast-{i}-{j}", window, target)
    ahead = _by_horizon(by_horizon)
    if not html:
        return ahead
    more = sum(len(w.get("targets") or []) for w in windows) > min(len(windows), _WINDOWS) * _TARGETS
    unit = "In the unit of the series" if windows[0].get("unit") == "series" else "Normalised scale"
    note = f"{unit}; the dashed line is the start of the forecast." + (" More targets are in evaluation.json." if more else "")
    return f'{ahead}<h3>Forecasts</h3><p class="note">{escape(note)}</p>{html}'


def _by_horizon(found: Any) -> str:
    values = _numbers(found.get("mae")) if isinstance(found, dict) else []
    if len(values) < 2:
        return ""
    unit = "in the unit of the series" if found.get("unit") == "series" else "normalised"
    line = Line("mean absolute error", [(float(i + 1), v) for i, v in enumerate(values)])
    return chart("by-horizon", "Error by step ahead", [line], x_label="steps ahead", y_label=f"MAE, {unit}", zero=True)


def _one(identity: str, window: dict[str, Any], target: dict[str, Any]) -> str:
    context, truth, forecast = (_numbers(target.get(k)) for k in ("context", "truth", "forecast"))
    low, high = _numbers(target.get("low")), _numbers(target.get("high"))
    start = -len(context)
    before = [(float(start + i), v) for i, v in enumerate(context)]
    pieces: list[Band | Line | Mark] = []
    if low and len(low) == len(high):
        levels = target.get("levels") or []
        name = f"{levels[0]:.0%} to {levels[1]:.0%} quantile" if len(levels) == 2 else "interval"
        pieces.append(Band(name, [(float(i), a, b) for i, (a, b) in enumerate(zip(low, high, strict=True))], tone="b"))
    pieces.append(Line("truth", before + [(float(i), v) for i, v in enumerate(truth)], tone="quiet"))
    pieces.append(Line("forecast", [(float(i), v) for i, v in enumerate(forecast)], tone="a"))
    if not truth or not forecast:
        return ""
    pieces.append(Mark("start of the forecast", [0.0], tone="quiet"))
    title = f"{target.get('label', '')} from {_day(str(window.get('origin', '')))}"[:200]
    ticks = _dates(window.get("times"), start, start + len(context) + len(truth))
    return chart(identity, title, pieces, x_label=Axis("time", ticks) if ticks else "step", y_label="value", log=False)


def _dates(times: Any, first: int, end: int) -> list[tuple[float, str]]:
    """Return (step, date) of about four ticks, with as much of the date as tells them apart."""
    if not isinstance(times, list) or len(times) != end - first or len(times) < 4:
        return []
    places = [round(i * (len(times) - 1) / 8) for i in (1, 3, 5, 7)]
    shown = [_day(str(times[i])) for i in places]
    if len({s[:10] for s in shown}) == len(shown):
        shown = [s[:10] for s in shown]
    elif len({s[:4] for s in shown}) == 1:
        shown = [s[5:] for s in shown]
    return [(float(first + i), text) for i, text in zip(places, shown, strict=True)]


def _day(time: str) -> str:
    """2024-01-01T00:00:00 -> 2024-01-01 00:00."""
    return time.replace("T", " ")[:16]


def _numbers(values: Any) -> list[float]:
    numbers = [number(v) for v in values] if isinstance(values, list) else []
    return [v for v in numbers if v is not None] if all(v is not None for v in numbers) else []
