"""Two classes at every threshold: ROC and precision-recall curves, and what each threshold finds, spares and costs."""

from __future__ import annotations

from typing import Any

from tauon.report.page import missing, table
from tauon.report.plots import HEIGHT, WIDTH, frame, scale
from tauon.report.records import number
from tauon.report.text import escape, figure

__all__ = ["threshold_section"]


def threshold_section(curves: Any) -> str:
    """Return safe markup; "" if the record has no curves."""
    if not isinstance(curves, dict):
        return ""
    label, prevalence = str(curves.get("positive", "1")), number(curves.get("prevalence"))
    roc, pr = (c if isinstance(c := curves.get(k), dict) else {} for k in ("roc", "pr"))
    html = '<div class="pair">' + _curve(
        "roc",
        "ROC curve",
        roc.get("fpr"),
        roc.get("tpr"),
        ("false positive rate (1 − specificity)", "true positive rate (sensitivity)"),
        None,
    )
    html += _curve("pr", "Precision-recall curve", pr.get("recall"), pr.get("precision"), ("recall", "precision"), prevalence) + "</div>"
    ks, gini, at = (number(curves.get(k)) for k in ("ks", "gini", "ks_threshold"))
    words = f"{label}: {prevalence:.1%} of the examples. " if prevalence is not None else ""
    if ks is not None and gini is not None:
        words += f"Gini {figure(gini, 3)}; KS {figure(ks, 3)}, at a probability of {figure(at, 3)}."
    return f"<h3>Thresholds</h3><p>{escape(words, 400)}</p>{html}{_rows(curves, label)}"


def _curve(identity: str, title: str, xs: Any, ys: Any, names: tuple[str, str], level: float | None) -> str:
    if not isinstance(xs, list) or not isinstance(ys, list):
        return ""
    points = [(x, y) for a, b in zip(xs, ys, strict=False) if (x := number(a)) is not None and (y := number(b)) is not None]
    if len(points) < 2:
        return ""
    unit = scale([0.0, 1.0], pad=0.0, log=False, most=6)
    path = "L".join(f"{unit(x) * WIDTH:.1f} {(1 - unit(y)) * HEIGHT:.1f}" for x, y in points)
    y = HEIGHT if level is None else (1 - unit(level)) * HEIGHT
    end = 0.0 if level is None else y
    drawing = f'<path class="diagonal" d="M0 {y:.1f}L{WIDTH:.0f} {end:.1f}"/><path class="line tone-a" d="M{path}"/>'
    some = points[:: max(1, len(points) // 5)]
    words = "; ".join(f"{names[0]} {figure(a, 2)}: {names[1]} {figure(b, 2)}" for a, b in some)
    drawn = frame(identity, title, words, drawing, unit, unit, x_label=names[0], y_label=names[1])
    return f'<figure class="square"><figcaption><b>{escape(title)}</b></figcaption>{drawn}</figure>'


def _rows(curves: dict[str, Any], label: str) -> str:
    recorded = curves.get("rows")
    rows = [r for r in recorded if isinstance(r, dict)] if isinstance(recorded, list) else []
    if not rows:
        return ""
    has_cost = any(number(r.get("cost")) is not None for r in rows)
    cells = []
    for r in rows:
        share = [f"{v:.1%}" if (v := number(r.get(k))) is not None else "–" for k in ("flagged", "precision", "recall", "specificity")]
        line = [escape(r.get("why", ""), 100), figure(number(r.get("threshold")), 3), *share, figure(number(r.get("lift")), 3)]
        cells.append(line + ([figure(number(r.get("cost")), 3)] if has_cost else []))
    head = [("Threshold that", ""), ("Probability", "num"), ("Flagged", "num"), ("Precision", "num"), ("Recall (sensitivity)", "num"),
            ("Specificity", "num"), ("Lift", "num")]  # fmt: skip
    head += [("Cost an example", "num")] if has_cost else []
    note = f"Flagged: share of examples whose probability of {label} is at least the threshold; lift: precision over the share of {label}. "
    note += "The thresholds were chosen on these examples: on new ones they do a little worse."
    nothing = number(curves.get("cost_of_flagging_none"))
    if nothing is not None:
        note += f" Flagging none costs {figure(nothing, 3)} an example."
    return table(head, cells, "Thresholds") + missing(note)
