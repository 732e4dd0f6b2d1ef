"""Plots as inline SVG inside HTML: axes with round ticks, bands, lines, dots, marks, a hover read-out. Does not depend on records of runs.

The drawing stretches with the page (`preserveAspectRatio="none"`, strokes that do not scale). Text is HTML next to or over the drawing, so
that it keeps its size from a phone to a desktop. `page.js` adds the read-out; the plot is complete without it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape as attribute

from tauon.report.text import escape, figure

__all__ = ["Axis", "Band", "Line", "Mark", "chart", "frame", "interval_bar", "nice_ticks", "scale"]

WIDTH, HEIGHT = 1000.0, 300.0
_LARGEST = 1e100

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Values over x; None is a gap. `dots`: single measurements, joined by a thin line."""

    name: str
    points: Sequence[Point | None]
    tone: str = "a"
    """a, b, c: colours of the page; quiet: grey."""
    dots: bool = False


@dataclass(frozen=True)
class Band:
    """The range (x, low, high) that values took; None is a gap."""

    name: str
    points: Sequence[tuple[float, float, float] | None]
    tone: str = "a"


@dataclass(frozen=True)
class Mark:
    """Positions on the x axis where something happened."""

    name: str
    xs: Sequence[float]
    tone: str = "bad"


@dataclass(frozen=True)
class Axis:
    """An x axis with texts instead of numbers, dates say."""

    label: str
    ticks: Sequence[tuple[float, str]] = ()
    """(place, text); empty: numbers."""


# ---------------------------------------------------------------------------------------------- axes


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most `most` multiples of 1, 2 or 5 times a power of ten inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]
    return [low, high]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / 6))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    return [t for e in range(first, last + 1, stride) for f in factors if low <= (t := f * 10.0**e) <= high] or [low, high]


def tick_label(value: float, step: float) -> str:
    """Format a tick with as few characters as the distance between ticks allows: 2k, 0.25, 3e-4."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e15:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for power, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= power:
            power = 1e3 if unit == "k" else power
            return f"{round(value / power, 6):g}{unit}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 3
    return f"{value:,.{min(decimals, 6)}f}"


@dataclass(frozen=True)
class Scale:
    """An axis: maps a value to its position, 0 to 1."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]
    texts: tuple[str, ...] = ()
    """Text of each tick; empty: the numbers."""

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, self.low)), math.log(low), math.log(high)
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def labels(self) -> list[tuple[float, str]]:
        """Return (position, text) of each tick."""
        if self.texts:
            return [(self(t), text) for t, text in zip(self.ticks, self.texts, strict=True)]
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 and not self.log else 0.0
        return [(self(t), tick_label(t, step or abs(t))) for t in self.ticks]


def scale(values: Iterable[float], *, zero: bool = False, pad: float = 0.05, log: bool | None = None, most: int = 6) -> Scale:
    """Return an axis that covers all finite values. log None: logarithmic if all are positive and span more than two decades."""
    # Larger or smaller values would overflow or underflow.
    finite = [v if abs(v) > 1 / _LARGEST else 0.0 for v in values if abs(v) < _LARGEST] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if log is None:
        log = not zero and low > 1 / _LARGEST and high / low > 100
    if log:
        ratio = (high / low) ** pad if high > low else 2.0
        low, high = low / ratio, high * ratio
        return Scale(low, high, True, tuple(_log_ticks(low, high)))
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if not high - low > 1e-12 * max(abs(high), abs(low)):
        around = abs(high) * 0.1 or 1.0
        low, high = (low - around * (not zero), high + around)
    margin = (high - low) * pad
    low, high = (low if zero and low == 0 else low - margin), (high if zero and high == 0 else high + margin)
    return Scale(low, high, False, tuple(nice_ticks(low, high, most)))


# ---------------------------------------------------------------------------------------------- pieces of SVG


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _runs(points: Sequence[tuple[float, ...] | None]) -> list[list[tuple[float, ...]]]:
    runs: list[list[tuple[float, ...]]] = [[]]
    for p in points:
        if p is None:
            runs.append([])
        else:
            runs[-1].append(p)
    return [r for r in runs if r]


def _line_path(line: Line, x: Scale, y: Scale) -> str:
    parts, dots = [], []
    for run in _runs(line.points):
        placed = [f"{_n(x(p[0]) * WIDTH)} {_n((1 - y(p[1])) * HEIGHT)}" for p in run]
        parts.append("M" + "L".join(placed) if len(placed) > 1 else f"M{placed[0]}h0")
        dots += [f"M{p}h0" for p in placed]
    path = f'<path class="line tone-{line.tone}{" thin" if line.dots else ""}" d="{"".join(parts)}"/>'
    return path + (f'<path class="dots tone-{line.tone}" d="{"".join(dots)}"/>' if line.dots else "")


def _band_path(band: Band, x: Scale, y: Scale) -> str:
    parts = []
    for run in _runs(band.points):
        if len(run) == 1:  # a single bucket has no width: make it one step wide
            run = [run[0], (run[0][0] + (x.high - x.low) / WIDTH, *run[0][1:])]
        upper = [f"{_n(x(p[0]) * WIDTH)} {_n((1 - y(p[2])) * HEIGHT)}" for p in run]
        lower = [f"{_n(x(p[0]) * WIDTH)} {_n((1 - y(p[1])) * HEIGHT)}" for p in reversed(run)]
        parts.append("M" + "L".join(upper + lower) + "Z")
    return f'<path class="band tone-{band.tone}" d="{"".join(parts)}"/>'


def _mark_path(mark: Mark, x: Scale) -> str:
    path = "".join(f"M{_n(x(at) * WIDTH)} 0V{_n(HEIGHT)}" for at in mark.xs)
    return f'<path class="mark tone-{mark.tone}" d="{path}"/>'


def _legend(pieces: Sequence[Line | Band | Mark]) -> str:
    def key(piece: Line | Band | Mark) -> str:
        shape = "band" if isinstance(piece, Band) else "mark" if isinstance(piece, Mark) else "dots" if piece.dots else "line"
        return f'<li><i class="key {shape} tone-{piece.tone}"></i>{escape(piece.name)}</li>'

    return '<ul class="legend">' + "".join(key(p) for p in pieces) + "</ul>" if len(pieces) > 1 else ""


def _readout(pieces: Sequence[Line | Band | Mark], x: Scale, x_label: str) -> str:
    """Return the values that `page.js` shows under the pointer, as JSON."""

    def short(v: float) -> float:
        return float(f"{v:.5g}")

    series = []
    for piece in pieces:
        if isinstance(piece, Mark):
            continue
        rows = [[float(f"{p[0]:.9g}"), *(short(v) for v in p[1:])] for p in piece.points if p is not None]
        series.append({"n": piece.name, "t": piece.tone, "p": rows})
    return json.dumps({"x": [x.low, x.high], "u": x_label, "s": series}, separators=(",", ":"))


def frame(identity: str, title: str, desc: str, drawing: str, x: Scale, y: Scale, *, x_label: str, y_label: str) -> str:
    """Return the axes around a drawing of WIDTH x HEIGHT units."""
    grid = "".join(f"M0 {_n((1 - at) * HEIGHT)}H{_n(WIDTH)}" for at, _ in y.labels())
    left = "".join(f'<span style="top:{(1 - at) * 100:.2f}%">{escape(t)}</span>' for at, t in y.labels())
    below = "".join(f'<span style="left:{at * 100:.2f}%">{escape(t)}</span>' for at, t in x.labels())
    return (
        f'<div class="frame"><div class="axis-name">{escape(y_label)}{" (log scale)" if y.log else ""}</div>'
        f'<div class="y-axis" aria-hidden="true">{left}</div><div class="plot">'
        f'<svg viewBox="0 0 {_n(WIDTH)} {_n(HEIGHT)}" preserveAspectRatio="none" role="img" aria-labelledby="{identity}-t {identity}-d">'
        f'<title id="{identity}-t">{escape(title)}</title><desc id="{identity}-d">{escape(desc)}</desc>'
        f'<path class="grid" d="{grid}"/>{drawing}</svg></div>'
        f'<div class="x-axis" aria-hidden="true">{below}</div><div class="x-name">{escape(x_label)}</div></div>'
    )


def chart(
    identity: str,
    title: str,
    pieces: Sequence[Line | Band | Mark],
    *,
    x_label: str | Axis = "step",
    y_label: str,
    zero: bool = False,
    log: bool | None = None,
    note: str = "",
) -> str:
    """Return a figure with title, legend, axes and read-out. `note`: a sentence below it."""
    axis = Axis(x_label) if isinstance(x_label, str) else x_label
    drawn = [p for p in pieces if isinstance(p, Mark) or any(q is not None for q in p.points)]
    spots = [q for p in drawn if not isinstance(p, Mark) for q in p.points if q is not None]
    x = scale([q[0] for q in spots], pad=0.0, log=False, most=5)
    if axis.ticks:
        x = replace(x, ticks=tuple(at for at, _ in axis.ticks), texts=tuple(text for _, text in axis.ticks))
    y = scale((v for q in spots for v in q[1:]), zero=zero, log=log)
    order = {Band: 0, Mark: 1, Line: 2}
    drawing = ""
    for piece in sorted(drawn, key=lambda p: order[type(p)]):
        if isinstance(piece, Band):
            drawing += _band_path(piece, x, y)
        elif isinstance(piece, Mark):
            drawing += _mark_path(piece, x)
        else:
            drawing += _line_path(piece, x, y)
    desc = "; ".join(_describe(p) for p in drawn)
    data = attribute(_readout(drawn, x, axis.label))
    return (
        f'<figure class="chart" data-chart="{data}"><figcaption><b>{escape(title)}</b>{_legend(drawn)}</figcaption>'
        + frame(identity, title, desc, drawing, x, y, x_label=axis.label, y_label=y_label)
        + (f'<p class="note">{escape(note)}</p>' if note else "")
        + "</figure>"
    )


def _describe(piece: Line | Band | Mark) -> str:
    """Describe a plot in words, for screen readers."""
    if isinstance(piece, Mark):
        return f"{piece.name}: {len(piece.xs)}"
    spots = [p for p in piece.points if p is not None]
    low, high = min(min(p[1:]) for p in spots), max(max(p[1:]) for p in spots)
    ends = f"from {figure(spots[0][1])} to {figure(spots[-1][1])}, " if isinstance(piece, Line) else ""
    return f"{piece.name}: {ends}lowest {figure(low)}, highest {figure(high)}"


def interval_bar(value: float, low: float, high: float, start: float, stop: float) -> str:
    """Return a value and its interval on the axis [start, stop], clipped to it; the column's header shows the axis."""

    def at(v: float) -> float:
        return min(max((v - start) / (stop - start), 0.0), 1.0) * 100

    return (
        '<svg class="interval" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true"><path class="grid" d="M0 6H100"/>'
        f'<path class="span" d="M{at(low):.2f} 6H{max(at(high), at(low) + 0.4):.2f}"/><path class="dots" d="M{at(value):.2f} 6h0"/></svg>'
    )
