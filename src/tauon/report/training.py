"""The training section: loss, learning rate, gradient norm, throughput and memory by step, and incidents."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tauon.report.curves import POINTS, envelope, smooth, thin
from tauon.report.layers import layers
from tauon.report.page import Section, missing, table
from tauon.report.plots import Band, Line, Mark, chart
from tauon.report.records import Records, number
from tauon.report.text import count, escape, figure, label
from tauon.report.work import work

__all__ = ["training"]

_OTHER = {"step", "time", "kind", "loss", "examples", "tokens", "seconds", "n", "epoch", "best"}


def training(records: Records) -> Section | None:
    """Return the section with the curves of the event log; None if only the folds were trained."""
    if records.only_folds:
        return None
    steps = list(records.of_kind("step"))
    html = _together([_loss(records), _rate(records), _gradients(records), *_validation(records)])
    if not steps:
        html = missing("No training steps: events.jsonl is missing, or has no step.") + html
    machine = _together([*_throughput(records), _memory(records)]) + layers(records) + work(records)
    if machine:
        summary = "Figures of the machine: throughput, arithmetic, memory, layers"
        machine = f"<details><summary>{summary}</summary>{machine}</details>"
    return Section("training", "Training", html + _incidents(records) + machine)


def _together(charts: Sequence[str]) -> str:
    drawn = "".join(c for c in charts if c)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def _span(n: int) -> int:
    """Return the window of the smoothed line: a fortieth of the curve, between 5 and 500."""
    return max(5, min(500, n // 40))


def _measured(xs: Sequence[float], ys: Sequence[float], name: str, tone: str = "a") -> list[Line | Band]:
    """Return a noisy curve as its values (or their range, if there are too many to draw) and a smoothed line."""
    if len(xs) < 30:
        return [Line(name, thin(xs, ys), tone)]
    span = _span(len(xs))
    smoothed = Line(f"{name}, mean of {span} steps", thin(xs, smooth(ys, span)), tone)
    if len(xs) <= POINTS:
        return [Line(f"{name}, each step", thin(xs, ys), "quiet"), smoothed]
    return [Band(f"{name}, range over {math.ceil(len(xs) / POINTS)} steps", envelope(xs, ys), tone), smoothed]


def _broken(ys: Sequence[float], what: str) -> str:
    bad = sum(not math.isfinite(y) for y in ys)
    return f"{count(bad)} of {count(len(ys))} {what} are not finite numbers; the line has gaps there." if bad else ""


def _resumes(records: Records) -> list[Mark]:
    at = [x for e in records.of_kind("resume") if (x := number(e.get("step"))) is not None]
    return [Mark(f"resumed ({len(at)})", at[:200], "quiet")] if at else []


def _loss(records: Records) -> str:
    xs, ys = records.series("loss")
    vx, vy = records.series("loss", "validate")
    pieces: list[Line | Band | Mark] = [*_measured(xs, ys, "training")] if xs else []
    if vx:
        pieces.append(Line("validation", thin(vx, vy), "b", dots=len(vx) <= 60))
    if not any(isinstance(p, (Line, Band)) and any(q is not None for q in p.points) for p in pieces):
        return missing("The logged loss is never finite.") if xs or vx else ""
    note = " ".join(filter(None, (_broken(ys, "losses"), _broken(vy, "validation losses"))))
    unit = "loss, nats" if "language" in str(records.recipe.get("task")) or "classif" in str(records.recipe.get("task")) else "loss"
    return _wide(chart("loss", "Loss", [*pieces, *_resumes(records)], y_label=unit, note=note))


def _wide(html: str) -> str:
    return html.replace('<figure class="chart"', '<figure class="chart wide"', 1)


def _rate(records: Records) -> str:
    xs, ys = records.series("lr")
    if not any(math.isfinite(y) for y in ys):
        return ""
    return chart(
        "lr", "Learning rate", [Line("learning rate", thin(xs, ys))], y_label="learning rate", zero=True, note=_broken(ys, "values")
    )


def _gradients(records: Records) -> str:
    xs, ys = records.series("grad_norm")
    skips = [x for e in records.of_kind("skip") if (x := number(e.get("step"))) is not None]
    if not any(math.isfinite(y) for y in ys):
        return ""
    pieces: list[Line | Band | Mark] = [*_measured(xs, ys, "gradient norm")]
    if skips:
        pieces.append(Mark(f"skipped step ({len(skips)})", skips[:400]))
    return chart("gradients", "Gradient norm", pieces, y_label="norm, before clipping", note=_broken(ys, "norms"))


def _throughput(records: Records) -> list[str]:
    charts: list[str] = []
    for key, title, unit in (
        ("tokens_per_s", "Throughput", "tokens per second"),
        ("examples_per_s", "Throughput", "examples per second"),
        ("tflops", "Model arithmetic", "TFLOP/s"),
    ):
        xs, ys = records.series(key)
        if any(math.isfinite(y) and y > 0 for y in ys) and not (key == "examples_per_s" and charts):
            charts.append(chart(key.replace("_", "-"), title, _measured(xs, ys, unit), y_label=unit, zero=True))
    return charts


def _memory(records: Records) -> str:
    xs, ys = records.series("memory_mb")
    if not any(math.isfinite(y) and y > 0 for y in ys):
        return ""
    peak = max(y for y in ys if math.isfinite(y))
    return chart("memory", "Memory", [Line("memory", thin(xs, ys))], y_label="MB", zero=True, note=f"Peak {figure(peak)} MB.")


def _validation(records: Records) -> list[str]:
    """Return one small plot for each other number of validation events."""
    names = dict.fromkeys(str(k) for e in records.of_kind("validate") for k, v in e.items() if k not in _OTHER and number(v) is not None)
    charts = []
    for i, name in enumerate(list(names)[:6]):
        xs, ys = records.series(name, "validate")
        if len(xs) >= 2:
            line = Line(label(name), thin(xs, ys), "b", dots=len(xs) <= 60)
            charts.append(chart(f"validation-{i}", f"Validation: {label(name)[:60]}", [line], y_label=label(name)[:60]))
    return charts


def _incidents(records: Records) -> str:
    """Return a table of skipped steps, resumes, interruptions and warnings, oldest first."""
    rows = []
    kinds = {
        "skip": "skipped step",
        "resume": "resumed",
        "interrupted": "interrupted",
        "warning": "warning",
        "failed": "failed",
        "error": "error",
    }
    for event in records.of_kind(*kinds):
        step = number(event.get("step"))
        detail = event.get("reason") or event.get("message") or ""
        rows.append([escape(kinds[str(event["kind"])]), count(step) if step is not None else "–", escape(detail, 500)])
    if not rows:
        return ""
    more = missing(f"… and {count(len(rows) - 60)} more between these, in events.jsonl.") if len(rows) > 60 else ""
    shown = rows if len(rows) <= 60 else rows[:30] + rows[-30:]
    return "<h3>Incidents</h3>" + table([("Event", ""), ("Step", "num"), ("Detail", "any")], shown, "Incidents") + more
