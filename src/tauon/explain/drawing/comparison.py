"""Two models side by side: answers, classes, reasons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauon.explain.drawing.cases import draw_map
from tauon.explain.drawing.shapes import key_of_colours, picture
from tauon.report.page import missing, table
from tauon.report.records import number
from tauon.report.text import count, escape, figure

__all__ = ["comparison_html"]


def comparison_html(record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return a comparison as safe markup."""
    lead = "".join(f"<p>{escape(s)}</p>" for s in record.get("opening") or [])
    return f'<div class="lead">{lead}</div>{_classes(record)}{_methods(record)}{_cases(record, arrays)}'


def _classes(record: Mapping[str, Any]) -> str:
    rows = []
    for c in record.get("classes") or []:
        (a, b), intervals = c["accuracy"], c["intervals"]
        moved = intervals[0][1] < intervals[1][0] or intervals[1][1] < intervals[0][0]
        cells = [f"{v:.1%}<small>{low:.1%} to {high:.1%}</small>" for v, (low, high) in zip((a, b), intervals, strict=True)]
        change = f"{b - a:+.1%}"
        rows.append([escape(c["label"], 80), count(c["n"]), *cells, f"<b>{change}</b>" if moved else change])
    if not rows:
        return ""
    head = [("Class", ""), ("Examples", "num"), ("Before", "num"), ("After", "num"), ("Change", "num")]
    note = missing("Share of right answers. A change is bold where the intervals do not overlap.")
    return "<h3>Which classes moved</h3>" + table(head, rows, "Classes before and after") + note


def _methods(record: Mapping[str, Any]) -> str:
    rows = [
        [escape(m["title"], 60), figure(number(m.get("correlation")), 2), figure(number(m.get("lowest")), 2)]
        for m in record.get("methods") or []
    ]
    if not rows:
        return missing("The reasons cannot be compared: no attribution method suits both models.")
    head = [("Method", ""), ("Mean rank correlation", "num"), ("Lowest", "num")]
    note = missing("Rank correlation between both models' attributions of the same answer: 1 means the same reasons, 0 unrelated ones.")
    return "<h3>Do they have the same reasons?</h3>" + table(head, rows, "Attributions before and after") + note


def _cases(record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    cases = record.get("cases") or []
    if not cases:
        return ""
    methods = record.get("methods") or []
    html = f"<h3>Examples whose reasons changed most</h3>{key_of_colours(any(m.get('signed') for m in methods))}"
    for case in cases:
        i, shown = case["place"], case.get("shown") or {}
        original = arrays.get(f"{i}.shown")
        drawn = ""
        if shown.get("kind") == "image" and original is not None:
            drawn += f"<figure>{picture(original, 'The image that both models were given')}<figcaption>given</figcaption></figure>"
        for m in methods[:2]:
            for which in ("before", "after"):
                values = arrays.get(f"{i}.{m['name']}.{which}")
                if values is not None:
                    body = draw_map(shown.get("kind"), np.asarray(values), original, shown, bool(m.get("signed")), f"{m['title']}, {which}")
                    drawn += f"<figure>{body}<figcaption><b>{which}</b> {escape(m['title'], 60)}</figcaption></figure>"
        before, after = (_said(a) for a in case["answers"])
        truth = f", the truth is {escape(repr(case['truth']), 80)}" if case.get("truth") is not None else ""
        title = (
            f"{escape(case['from'], 80)}: {before} before, {after} after{truth} <small>rank correlation {case['correlation']:.2f}</small>"
        )
        html += f'<article class="case"><h4>{title}</h4><div class="maps {escape(shown.get("kind") or "array")}">{drawn}</div></article>'
    return html


def _said(answer: Any) -> str:
    if isinstance(answer, Mapping):
        sure = number(answer.get("probability"))
        return f'"{escape(answer.get("answer"), 80)}"' + (f" ({sure:.0%})" if sure is not None else "")
    return figure(number(answer))
