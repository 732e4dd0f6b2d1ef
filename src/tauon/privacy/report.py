"""The report's privacy section: the guarantee, its unit and assumptions, what is not covered, and the cost in accuracy.

Reads `privacy.json`, which training writes. Attacks on the trained model are in the audit's section.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tauon.report.page import Section, missing, table
from tauon.report.plots import Line, chart
from tauon.report.records import Records, number
from tauon.report.text import count, escape, figure, label

__all__ = ["privacy"]


def privacy(records: Records) -> Section | None:
    """The section; None if the run is not private."""
    found = records.json("privacy.json")
    if not isinstance(found, dict) or not isinstance(found.get("guarantee"), dict):
        if records.recipe.get("privacy"):
            return Section("privacy", "Privacy", missing("privacy.json is missing: training has not finished. Resume it: tauon train"))
        return None
    promise: Mapping[str, Any] = found["guarantee"]
    html = f"<p><b>{escape(_sentence(promise))}</b></p>"
    if found.get("generator") == "seeded":
        html += missing("Noise and sampling came from the recipe's seed: anyone who knows it can remove the noise. This run is a test.")
    html += _figures(found)
    curve = _curve(promise)
    noise = _noise(records)
    html += f'<div class="charts">{curve}{noise}</div>' if curve or noise else ""
    html += _cost(records.json("privacy_cost.json", found.get("cost")))  # older runs kept it in privacy.json
    for key, title in (("assumptions", "Assumed"), ("not_covered", "Not covered")):
        said = "".join(f"<li>{escape(line)}</li>" for line in promise.get(key, []))
        html += f"<h3>{title}</h3><ul>{said}</ul>" if said else ""
    return Section("privacy", "Privacy", html)


def _sentence(promise: Mapping[str, Any]) -> str:
    return (
        f"({figure(number(promise.get('epsilon')))}, {figure(number(promise.get('delta')))})-differential privacy for "
        f"one {promise.get('unit', 'example')} ({promise.get('neighbouring', '')})."
    )


def _figures(found: Mapping[str, Any]) -> str:
    promise = found["guarantee"]
    rows = [[f"epsilon at delta {figure(float(d))}", figure(number(e))] for d, e in promise.get("epsilons", {}).items()]
    for key in (
        "steps",
        "units",
        "rows_per_unit",
        "expected_batch",
        "sampling",
        "noise_multiplier",
        "clipping",
        "noise",
        "generator",
        "accountant",
    ):
        value = found.get(key, promise.get(key))
        if value is not None:
            shown = figure(value) if isinstance(value, float) else count(value) if isinstance(value, int) else escape(str(value))
            rows.append([escape(label(key)), shown])
    statistics = found.get("statistics")
    if isinstance(statistics, dict):
        rows.append(["noise multiplier of means and deviations", figure(number(statistics.get("noise")))])
        rows.append(["noise in a mean, as a share of half the bounds of its column", figure(number(statistics.get("error")))])
    return table([("", ""), ("", "num")], rows, "privacy figures")


def _curve(promise: Mapping[str, Any]) -> str:
    points = [(float(a), float(b)) for a, b in promise.get("curve", [])]
    if len(points) < 2:
        return ""
    lines = [Line("allowed by the guarantee", points), Line("random guessing", [(0.0, 1.0), (1.0, 0.0)], "quiet")]
    note = "Any test of whether one unit was in the data that has the false-positive rate x has at least the false-negative rate y."
    return chart(
        "trade-off", "Best possible membership attack", lines, y_label="false-negative rate", x_label="false-positive rate", note=note
    )


def _noise(records: Records) -> str:
    xs, ys = records.series("noise")
    return (
        chart("noise", "Noise", [Line("noise", list(zip(xs, ys, strict=True)))], y_label="std of the mean gradient's", zero=True)
        if xs
        else ""
    )


def _cost(cost: Any) -> str:
    if not isinstance(cost, dict):
        return ""
    rows = [
        [
            escape(label(name)),
            figure(number(pair.get("private"))),
            figure(number(pair.get("plain"))),
            figure(number(pair.get("difference"))),
        ]
        for name, pair in cost.items()
    ]
    return "<h3>Cost in accuracy</h3>" + table(
        [("", ""), ("private", "num"), ("the same without privacy", "num"), ("difference", "num")], rows, "cost of privacy"
    )
