"""Statistics of layers during training: size of updates relative to weights, and norms at the last measurement."""

from __future__ import annotations

import math
from typing import Any

from tauon.report.page import missing, table
from tauon.report.plots import Band, Line, chart
from tauon.report.records import Records, number
from tauon.report.text import count, escape, figure

__all__ = ["layers"]

SHOWN = 60


def layers(records: Records) -> str:
    """Return the layers part of the training section; empty if layers were not measured."""
    looks = [
        (step, e["layers"])
        for e in records.of_kind("layers")
        if (step := number(e.get("step"))) is not None and isinstance(e.get("layers"), dict)
    ]
    if not looks:
        return ""
    return "<h3>Layers</h3>" + _ratios(looks) + _last(*looks[-1])


def _share(look: Any) -> float | None:
    update, weight = number(look.get("update")), number(look.get("weight"))
    return update / weight if update is not None and weight and math.isfinite(update) else None


def _ratios(looks: list[tuple[float, dict[str, Any]]]) -> str:
    band: list[tuple[float, float, float] | None] = []
    middle: list[tuple[float, float] | None] = []
    for step, by_layer in looks:
        shares = sorted(s for look in by_layer.values() if (s := _share(look)) is not None and s > 0)
        if shares:
            band.append((step, shares[0], shares[-1]))
            middle.append((step, shares[len(shares) // 2]))
    if not middle:
        return ""
    pieces: list[Band | Line] = [Band("smallest to largest", band), Line("median layer", middle, dots=len(middle) <= 60)]
    note = "About 0.001 is usual for Adam. Far above, the learning rate is too high for that layer; far below, it hardly learns."
    return chart("updates", "Update / weights, by layer", pieces, y_label="norm of the update / norm of the weights", note=note)


def _last(step: float, by_layer: dict[str, Any]) -> str:
    rows = []
    for name, look in list(by_layer.items())[:SHOWN]:
        share = _share(look)
        numbers = [number(look.get("gradient")), number(look.get("weight")), share]
        rows.append([escape(name, 120), *(figure(x) if x is not None else "–" for x in numbers)])
    more = missing(f"… and {count(len(by_layer) - SHOWN)} more in events.jsonl.") if len(by_layer) > SHOWN else ""
    head = [("Parameter", ""), ("Gradient", "num"), ("Weights", "num"), ("Update / weights", "num")]
    shown = table(head, rows, f"L2 norms at step {count(step)}")
    return f"<details><summary>Every parameter at step {count(step)}</summary>{shown}{more}</details>"
