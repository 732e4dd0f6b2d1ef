"""How far the models of a cross-validation agree about what counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tauon.explain.drawing.shapes import bars
from tauon.report.records import number
from tauon.report.text import escape

__all__ = ["folds_html"]

_MOST = 10


def folds_html(folds: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what the folds' explanations have in common, and which of them is shown below."""
    values: dict[str, list[float]] = {}
    for record in folds.values():
        for row in (record.get("features") or {}).get("importance") or []:
            value = number(row.get("value"))
            if value is not None:
                values.setdefault(str(row.get("name")), []).append(value)
    first = next(iter(folds))
    html = (
        f"<p>Each of the {len(folds)} folds is a model of its own, with an explanation in its own report (<code>{escape(first)}/report.html</code> and so "
        f"on). The sentences above, and what follows the comparison, are about <code>{escape(first)}</code>.</p>"
    )
    both = sorted(((sum(v) / len(v), min(v), max(v), name) for name, v in values.items() if len(v) == len(folds)), reverse=True)[:_MOST]
    if both and len(folds) > 1:
        tops = {str(((r.get("features") or {}).get("importance") or [{}])[0].get("name")) for r in folds.values()}
        said = (
            "All folds agree on the most important column."
            if len(tops) == 1
            else f"The folds name {len(tops)} different columns as the most important."
        )
        drawn = bars([n for *_, n in both], [m for m, *_ in both], low=[low for _, low, *_ in both], high=[high for _, _, high, _ in both])
        html += (
            f"<h3>Do the folds agree?</h3><p>{said}</p><p class='note'>Importance of each column: the mean over folds, and the smallest and largest of "
            f"any fold.</p>{drawn}"
        )
    return html
