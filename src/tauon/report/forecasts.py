"""Plots of a few forecast windows: context, truth, forecast, and the interval if the model predicts one."""

from __future__ import annotations

from typing import Any

from tauon.report.plots import Band, Line, Mark, chart
from tauon.report.records import number
from tauon.report.text import escape

__all__ = ["drawn_forecasts"]

_WINDOWS, _TARGETS = 3, 3


def drawn_forecasts(windows: Any) -> str:
    """Return safe markup of at most three windows with three targets each; "" if the record has none."""
    windows = [w for w in windows if isinstance(w, dict)] if isinstance(windows, list) else []
    html = ""
    for i, window in enumerate(windows[:_WINDOWS]):
        targets = [t for t in window.get("targets") or [] if isinstance(t, dict)]
        for j, target in enumerate(targets[:_TARGETS]):
            html += _one(f"forecast-{i}-{j}", str(window.get("origin", "")), target)
    if not html:
        return ""
    more = sum(len(w.get("targets") or []) for w in windows) > min(len(windows), _WINDOWS) * _TARGETS
    note = "Normalised scale; step 0 is the first forecast step." + (" More targets are in evaluation.json." if more else "")
    return f'<h3>Forecasts</h3><p class="note">{escape(note)}</p>{html}'


def _one(identity: str, origin: str, target: dict[str, Any]) -> str:
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
    return chart(identity, f"{target.get('label', '')} from {origin}"[:200], pieces, x_label="step", y_label="value", log=False)


def _numbers(values: Any) -> list[float]:
    numbers = [number(v) for v in values] if isinstance(values, list) else []
    return [v for v in numbers if v is not None] if all(v is not None for v in numbers) else []
