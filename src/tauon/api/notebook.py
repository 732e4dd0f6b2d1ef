"""HTML of a run in a notebook: status, main metrics with intervals, loss curve. Loads nothing from the network."""

from __future__ import annotations

from typing import Any

from tauon.evaluate import Metric
from tauon.report import Records
from tauon.report.headline import status
from tauon.report.page import table
from tauon.report.plots import Line, chart
from tauon.report.records import number
from tauon.report.text import escape, label, spread

__all__ = ["run_html"]

_MOST_POINTS = 400
_MOST_METRICS = 8


def run_html(run: Any) -> str:
    """Return a run as a piece of HTML."""
    records = Records.read(run.folder)
    _, sentence = status(records)
    html = f"<b>{escape(run.name)}</b> <span>{escape(sentence)}</span>"
    first = run.evaluation.primary if run.evaluation is not None else ""
    rows = [_row(name, m) for name, m in sorted(run.metrics.items(), key=lambda item: item[0] != first)]
    if rows:
        html += table([("", ""), ("value", "num"), ("interval", "num")], rows[:_MOST_METRICS], "figures")
    if len(rows) > _MOST_METRICS:
        html += f"<p>and {len(rows) - _MOST_METRICS} more metrics: <code>run.metrics</code></p>"
    return f"<div>{html}{_curve(records)}</div>"


def _row(name: str, metric: Metric) -> list[str]:
    if metric.value is None:
        return [escape(label(name)), "–", ""]
    value, low, high = spread(metric.value, metric.low, metric.high)
    return [escape(label(name)), value, f"{low} to {high}" if metric.low is not None else ""]


def _curve(records: Records) -> str:
    """Plot training and validation loss by step."""
    lines = []
    for kind, name, tone in (("step", "training loss", "a"), ("validate", "validation loss", "b")):
        points = [
            (x, y)
            for e in records.events
            if e.get("kind") == kind and (x := number(e.get("step"))) is not None and (y := number(e.get("loss"))) is not None
        ]
        if len(points) > 1:
            every = -(-len(points) // _MOST_POINTS)
            lines.append(Line(name, [*points[:-1:every], points[-1]], tone))
    return chart("loss", "Loss", lines, x_label="step", y_label="loss", zero=False, log=False) if lines else ""
