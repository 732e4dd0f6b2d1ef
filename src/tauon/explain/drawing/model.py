"""What holds for the model as a whole: how far each method may be believed, importance of features, the tree, slices, units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tauon.report.page import missing, scroll
from tauon.report.records import number
from tauon.report.text import escape

__all__ = ["methods_html", "stacked"]


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
        verdict += "" if m.get("drawn", True) else "; not drawn"
        about = ". ".join(str(x) for x in (m.get("why"), m.get("note")) if x)
        tone = ' class="tone-bad"' if m.get("failed") else ""
        rows.append(
            [
                f"{escape(m.get('title'), 60)}: <span{tone}>{escape(verdict, 400)}</span><small>{escape(about, 300)}</small>",
                _ratio(faithful.get("deletion_ratio")), _ratio(faithful.get("insertion_ratio")),
                _ratio(m.get("weights")), _ratio(m.get("stable")),
            ]
        )  # fmt: skip
    for name, why in left_out.items():
        rows.append([f"{escape(name, 60)}<small>{escape(f'not used: {why}', 300)}</small>", "", "", "", ""])
    tested = next((m["faithful"] for m in methods if m.get("faithful")), None)
    what = (
        ""
        if tested is None
        else f" Tested on {tested['examples']} example{'s' if tested['examples'] != 1 else ''}, {tested['regions']} regions, hidden by the {tested['fill']}."
    )
    note = (
        "Deletion: what is left of the answer while the marked parts are hidden, as a share of what is left while random parts are hidden; below 1 is "
        "better than random. Insertion: the same while they are shown; above 1 is better. Shuffled weights: rank correlation with the map of a model that "
        f"learned nothing; near 0 is good. Small noise: rank correlation with the map of nearly the same example; near 1 is good.{what}"
    )
    return "<h3>How far the maps may be believed</h3>" + stacked(head, rows, "Checks of the maps") + missing(note)


def stacked(head: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], name: str) -> str:
    """Return a table whose rows become short lists on a phone. As `tauon.report.page.table` otherwise."""
    top = "".join(f'<th scope="col" class="{css}">{escape(text)}</th>' for text, css in head)
    body = ""
    for first, *cells in rows:
        body += f'<tr><th scope="row">{first}</th>'
        for cell, (text, css) in zip(cells, head[1:], strict=True):
            heading = f' data-h="{escape(text)}"' if cell else ""
            body += f'<td class="{css}"{heading}>{cell}</td>'
        body += "</tr>"
    return scroll(f'<table class="full stack"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>', name)


def _ratio(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{found:.2f}"
