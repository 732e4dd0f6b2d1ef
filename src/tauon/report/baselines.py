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
    sentence += _difference(found.get("difference"), str(found.get("compared", "")), evaluation, said) + "."
    tone, warning = _TONES[said], _probabilities(found.get("probabilities"))
    return ("warn" if warning and tone == "good" else tone), sentence + warning


def _probabilities(found: Any) -> str:
    """Return what is said of a model whose probabilities are worse than the shares of the classes."""
    found = _mapping(found)
    ours, theirs = number(found.get("ours")), number(found.get("theirs"))
    if ours is None or theirs is None:
        return ""
    against = str(found.get("against", "")).replace("the most frequent class", "the classes' shares")
    return f" Its probabilities are worse than {against}: log loss {figure(ours)} against {figure(theirs)}."


def _value(difference: Any) -> float | None:
    return number(difference.get("value")) if isinstance(difference, dict) else None


def _difference(difference: Any, metric: str, evaluation: dict[str, Any], said: str) -> str:
    value = _value(difference)
    if value is None:
        return ""
    low, high = (number(difference.get(k)) for k in ("low", "high"))
    what = f" of {label(metric).lower()}" if metric != _mapping(evaluation.get("verdict")).get("metric") else ""
    if low is None or high is None:
        why = str(difference.get("reason") or "").replace("no interval: ", "")
        shown, _, _ = spread(abs(value), None, None)
        return (
            f", {'better' if value > 0 else 'worse'} by {shown}{what}" + (f", without an interval ({why})" if why else "") if value else ""
        )
    level = number(evaluation.get("confidence")) or 0.95
    if said == "worse":  # read from the other side, without minus signs
        value, low, high = -value, -high, -low
    shown, bottom, top = spread(value, low, high)
    words = {"better": "better by", "worse": "worse by"}.get(said, "a difference of")
    return f"; {words} {shown}{what} ({level:.0%} interval of the difference {bottom} to {top})"


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
