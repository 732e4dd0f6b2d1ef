"""Heat maps, coloured words and bars as HTML. Colours can be told apart by people with any colour blindness, and every drawing has words.

Signed maps: orange argues for the answer, blue against it (PuOr's and RdBu's ends differ in lightness and hue for all kinds of colour
blindness; Brewer 2003). Unsigned maps: from dark violet to yellow (viridis' anchors, van der Walt & Smith 2015).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tauon.data.grid import png
from tauon.report.text import escape, figure, spread

__all__ = ["bars", "diverging", "heat_image", "key_of_colours", "picture", "scaled", "sequential", "spectrogram", "words"]

_DIVERGING = np.array(
    [[5, 60, 120], [80, 140, 195], [190, 212, 232], [247, 247, 247], [250, 205, 150], [222, 120, 30], [140, 60, 4]], float
)
_SEQUENTIAL = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], float)
_SMALLEST = 160
"""Pixels of the shorter side of a drawing, at least; smaller pictures are enlarged by the browser without smoothing."""


def _blend(anchors: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.uint8]:
    place = np.clip(at, 0, 1) * (len(anchors) - 1)
    low = np.minimum(place.astype(int), len(anchors) - 2)
    share = (place - low)[..., None]
    colours: NDArray[np.uint8] = np.round(anchors[low] * (1 - share) + anchors[low + 1] * share).astype(np.uint8)
    return colours


def diverging(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colours of values from -1 (against) to 1 (for): (..., 3) bytes."""
    return _blend(_DIVERGING, (np.asarray(values, float) + 1) / 2)


def sequential(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colours of values from 0 to 1: (..., 3) bytes."""
    return _blend(_SEQUENTIAL, np.asarray(values, float))


def scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide by the 99th percentile of the sizes, so that one extreme feature does not hide all others; clip to [-1, 1]."""
    sizes = np.abs(values[np.isfinite(values)])
    top = float(np.percentile(sizes, 99)) if sizes.size else 0.0
    top = top if top > 0 else float(sizes.max(initial=0.0))
    clean = np.nan_to_num(np.asarray(values, float), nan=0.0, posinf=0.0, neginf=0.0)
    found: NDArray[np.float64] = np.clip(clean / top, -1, 1) if top > 0 else clean * 0
    return found


def heat_image(values_HW: NDArray[np.float64], under_HWC: NDArray[np.uint8] | None, *, signed: bool) -> NDArray[np.uint8]:
    """Return the picture (H, W, 3) of a map; where it is near 0, the example `under` it shows through in grey."""
    at = scaled(values_HW)
    if not signed:
        at = np.clip(at, 0, 1)
    colour = (diverging(at) if signed else sequential(at)).astype(float)
    if under_HWC is None:
        return np.asarray(colour, np.uint8)
    grey = under_HWC.astype(float).mean(2, keepdims=True) * 0.75 + 32
    share = (0.15 + 0.85 * np.abs(at) ** 0.7)[..., None] if signed else (0.25 + 0.6 * np.abs(at))[..., None]
    return np.asarray(np.round(colour * share + grey * (1 - share)), np.uint8)


def spectrogram(values_SM: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the picture (M, S, 3) of frames x bands: time to the right, high bands on top."""
    loud = np.asarray(values_SM, float).T[::-1]
    return heat_image(loud - loud.min(), None, signed=False)


def picture(pixels_HWC: NDArray[np.uint8], alt: str, css: str = "") -> str:
    """Return an <img> with the picture inside; `alt` says in words what it shows."""
    data = base64.b64encode(png(np.ascontiguousarray(pixels_HWC))).decode()
    crisp = " crisp" if min(pixels_HWC.shape[:2]) < _SMALLEST else ""
    return f'<img class="map{crisp}{" " + css if css else ""}" alt="{escape(alt, 500)}" src="data:image/png;base64,{data}">'


def words(tokens: Sequence[str], values: Sequence[float], *, signed: bool) -> str:
    """Return a text whose words are shaded by their attribution; the strongest are underlined, and their numbers are in the title."""
    at = scaled(np.array(values, float)) if len(values) else np.zeros(0)
    strong = set(np.argsort(-np.abs(at))[: max(1, min(8, len(at) // 4))].tolist())
    html = []
    for i, (token, value) in enumerate(zip(tokens, at.tolist(), strict=False)):
        colour = diverging(np.array(value)) if signed else sequential(np.array(abs(value)))
        r, g, b = (int(c) for c in colour)
        css = "for" if value > 0 else "against"
        alpha = min(1.0, abs(value)) * 0.75
        mark = f' class="strong {css}"' if i in strong and abs(value) > 0.05 else ""
        shown = escape(token, 60).replace("\n", "↵<br>")
        html.append(f'<span{mark} style="background:rgba({r},{g},{b},{alpha:.2f})" title="{figure(float(values[i]), 3)}">{shown}</span>')
    top = [tokens[i].strip() for i in sorted(strong, key=lambda i: -abs(at[i])) if i < len(tokens) and abs(at[i]) > 0.05]
    label = f"Words that count most: {', '.join(top[:8])}" if top else "No word counts more than the others"
    return f'<p class="words" role="img" aria-label="{escape(label, 400)}">{"".join(html)}</p>'


def bars(names: Sequence[str], values: Sequence[float], *, low: Sequence[float] = (), high: Sequence[float] = (), unit: str = "") -> str:
    """Return horizontal bars around zero with names and numbers; with `low` and `high`, intervals as whiskers."""
    ends = [abs(v) for v in (*values, *low, *high) if np.isfinite(v)]
    top = max(ends, default=0.0) or 1.0
    signed = any(v < 0 for v in (*values, *low))
    rows = []
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        zero, span = (50.0, 50.0) if signed else (0.0, 100.0)
        at = _share(value, top)
        start, width = (zero, span * at) if at >= 0 else (zero + span * at, -span * at)
        whisker = ""
        if low and high:
            a, b = (zero + span * _share(v, top) for v in (low[i], high[i]))
            whisker = f'<i class="whisker" style="left:{a:.1f}%;width:{max(b - a, 0.3):.1f}%"></i>'
        shown, *ends_ = spread(value, low[i], high[i]) if low and high else (figure(value, 3),)
        interval = f" <small>{ends_[0]} to {ends_[1]}</small>" if ends_ else ""
        css = "for" if value >= 0 else "against"
        rows.append(
            f'<li><span class="name">{escape(name, 80)}</span><span class="track"><i class="bar {css}" style="left:{start:.1f}%;width:{width:.1f}%"></i>'
            f'{whisker}</span><span class="value">{shown}{escape(unit)}{interval}</span></li>'
        )
    return f'<ul class="bars{" signed" if signed else ""}{" ranged" if low and high else ""}">{"".join(rows)}</ul>'


def _share(value: float, top: float) -> float:
    """Return value / top, at most 1 in size; 0 of what is not a number."""
    return 0.0 if np.isnan(value) else min(1.0, max(-1.0, value / top))


def key_of_colours(signed: bool, unsigned: bool = False) -> str:
    """Return the key of the maps' colours, in words too."""
    html = '<i class="for"></i> argues for the answer <i class="against"></i> argues against it' if signed else ""
    html += '<i class="much"></i> counts much <i class="little"></i> counts little' if unsigned else ""
    return f'<p class="key-of-map">{html}</p>' if html else ""
