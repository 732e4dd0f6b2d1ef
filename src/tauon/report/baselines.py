"""A model beside its baselines: the sentence at the top of the page, and the table of the evaluation."""

from __future__ import annotations

from typing import Any

from tauon.report.page import table
from tauon.report.records import number
from tauon.report.text import escape, figure, label, spread

__all__ = ["baseline_table", "verdict_line"]

_TONES = {"better": "good", "no better": "warn", "worse": "bad", "uncertain": "plain"}
_WORDS = {
    "better": "Better than {}", "no better": "No better than {}, as far as this many examples can tell", "worse": "Worse than {}",
    "uncertain": "Compared with {}",
}  # fmt: skip


def verdict_line(evaluation: dict[str, Any]) -> tuple[str, str] | None:
    """Return (tone, one sentence): how the model stands against its strongest baseline. None if no baseline was measured."""
    found = evaluation.get("verdict")
    if not isinstance(found, dict) or found.get("verdict") not in _TONES:
        return None
    said, against = str(found["verdict"]), str(found.get("against", "the baseline"))
    ours, theirs = number(found.get("ours")), number(found.get("theirs"))
    name = label(str(found.get("metric", "")))
    sentence = _WORDS[said].format(against)
    if said == "no better" and _value(found.get("difference")) == 0:
        sentence = f"No better than {against}"
    if ours is not None and theirs is not None:
        sentence += f": {name} {figure(ours)} against {figure(theirs)}"
    return _TONES[said], sentence + _difference(found.get("difference"), str(found.get("compared", "")), evaluation) + "."


def _value(difference: Any) -> float | None:
    return number(difference.get("value")) if isinstance(difference, dict) else None


def _difference(difference: Any, metric: str, evaluation: dict[str, Any]) -> str:
    value = _value(difference)
    if value is None:
        return ""
    low, high = (number(difference.get(k)) for k in ("low", "high"))
    shown, bottom, top = spread(value, low, high)
    what = f" of {label(metric).lower()}" if metric != _mapping(evaluation.get("verdict")).get("metric") else ""
    if low is None or high is None:
        return f", {shown}{what} better" if value > 0 else ""
    level = number(evaluation.get("confidence")) or 0.95
    how = f"better by {shown}" if value >= 0 else f"worse by {spread(-value, low, high)[0]}"
    return f"; {how}{what} ({level:.0%} interval of the difference {bottom} to {top})"


def baseline_table(evaluation: dict[str, Any], level: float) -> str:
    """Return the table of baselines beside the model; "" if none was measured."""
    recorded = evaluation.get("baselines")
    rows = [b for b in recorded if isinstance(b, dict)] if isinstance(recorded, list) else []
    metrics, primary = evaluation.get("metrics"), str(evaluation.get("primary", ""))
    if not rows or not isinstance(metrics, dict):
        return ""
    names = [primary, *(n for n in _BESIDE.get(primary, ()) if n in metrics)]
    cells = [["<b>this model</b>", *(_cell(metrics.get(n)) for n in names), "", ""]]
    for row in rows:
        own, difference = _mapping(row.get("metrics")), _mapping(row.get("difference"))
        value, low, high = (number(difference.get(k)) for k in ("value", "low", "high"))
        shown, bottom, top = spread(value, low, high) if value is not None else ("–", "", "")
        under = f"{bottom} to {top}" if low is not None and high is not None else str(difference.get("reason") or "")
        cells.append(
            [
                f"{escape(row.get('name', ''), 100)}<small>{escape(row.get('about', ''), 300)}</small>",
                *(_cell(own.get(n)) for n in names),
                f"{shown}<small>{escape(under, 200)}</small>",
                escape(row.get("verdict", ""), 40),
            ]
        )
    compared = str(rows[0].get("metric") or primary)
    head = [
        ("", ""),
        *((label(n), "num") for n in names),
        (f"Better by ({label(compared).lower()}), {level:.0%} interval", "num"),
        ("The model is", "any"),
    ]
    note = "Baselines predict the same examples. The last figures are the model's advantage, example by example: an interval above zero means better."
    return f'<h3>Beside simple baselines</h3>{table(head, cells, "Baselines")}<p class="note">{note}</p>'


_BESIDE = {
    "accuracy": ("roc_auc", "log_loss"), "roc_auc": ("average_precision", "log_loss"), "r2": ("rmse", "mae"), "mse": ("mae", "mase"),
    "pinball": ("mae", "mase"), "bits_per_byte": ("perplexity",), "map": ("f1_macro",), "rank_mae": ("kappa_quadratic",),
}  # fmt: skip


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _cell(metric: Any) -> str:
    return figure(_value(metric))
