"""What holds for the model as a whole: how far each method may be believed, importance of features, the tree, slices, units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tauon.report.page import missing, table
from tauon.report.records import number
from tauon.report.text import escape

__all__ = ["methods_html"]


def methods_html(record: Mapping[str, Any]) -> str:
    """Return the table of methods with what the checks say about each."""
    methods = [m for m in record.get("methods") or [] if isinstance(m, dict)]
    left_out = record.get("left_out") or {}
    if not methods and not left_out:
        return ""
    head = [("Method", ""), ("Deletion", "num"), ("Insertion", "num"), ("Shuffled weights", "num"), ("Small noise", "num")]
    rows = []
    for m in methods:
        faithful = m.get("faithful") or {}
        verdict = "; ".join(map(str, m.get("problems") or [])) if m.get("failed") else "passed" if faithful else "not tested"
        tone = ' class="tone-bad"' if m.get("failed") else ""
        rows.append(
            [
                f"{escape(m.get('title'), 60)}: <span{tone}>{escape(verdict, 400)}</span><small>{escape(m.get('why') or '', 160)}</small>",
                _ratio(faithful.get("deletion_ratio")), _ratio(faithful.get("insertion_ratio")),
                _ratio(m.get("weights")), _ratio(m.get("stable")),
            ]
        )  # fmt: skip
    for name, why in left_out.items():
        rows.append([f"{escape(name, 60)}<small>{escape(f'not used: {why}', 300)}</small>", "", "", "", ""])
    tested = next((m["faithful"] for m in methods if m.get("faithful")), None)
    what = (
        "" if tested is None else f" Tested on {tested['examples']} examples, {tested['regions']} regions, hidden by the {tested['fill']}."
    )
    note = (
        "Deletion: what is left of the answer while the marked parts are hidden, as a share of what is left while random parts are hidden; below 1 is "
        "better than random. Insertion: the same while they are shown; above 1 is better. Shuffled weights: rank correlation with the map of a model that "
        f"learned nothing; near 0 is good. Small noise: rank correlation with the map of nearly the same example; near 1 is good.{what}"
    )
    return "<h3>How far the maps may be believed</h3>" + table(head, rows, "Checks of the maps") + missing(note)


def _ratio(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{found:.2f}"
