"""The report's section about compression: the choice and its reason, time against quality of every candidate, side effects. Reads
`compress/compress.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tauon.report.page import Section, table
from tauon.report.plots import HEIGHT, WIDTH, frame, scale
from tauon.report.records import Records, number
from tauon.report.text import count, escape, figure, human_bytes, label

__all__ = ["compression", "summary"]

RECORD = "compress/compress.json"


def compression(records: Records) -> Section | None:
    """Return the section; None if the run was not compressed."""
    found = records.json(RECORD)
    if not isinstance(found, dict) or not isinstance(found.get("points"), list):
        return None
    points = [p for p in found["points"] if isinstance(p, dict)]
    tone = "good" if found.get("best") else "bad"
    html = f'<p class="status {tone}">{escape(summary(found), 3000)}</p>'
    html += f'<div class="charts">{_plot(found, points)}</div>' + _points(found, points) + _effects(found.get("side_effects"))
    notes = [str(n) for n in found.get("notes") or []]
    notes.append(
        f"Quality was measured on {count(number(found.get('examples')) or 0)} examples of the {found.get('split')} part. The drop is relative, paired "
        "example by example, and the promise is on the upper end of its 95% interval. Times are medians of interleaved calls on the machine of the run."
    )
    html += '<ul class="plain note">' + "".join(f"<li>{escape(n, 600)}</li>" for n in notes) + "</ul>"
    return Section("compression", "Compression", html)


def summary(found: Mapping[str, Any]) -> str:
    """Return the choice and its reason."""
    return str(found.get("reason") or "")


def _plot(found: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    """Time of one example against the drop; the area grows with the size in bytes; the promise as a line."""
    drawn = []
    for i, point in enumerate(points, 1):
        cost = point.get("cost") if isinstance(point.get("cost"), dict) else None
        if cost is None:
            continue
        times = cost.get("latency_ms") or {}
        first = number(times.get(min(times, key=int))) if times else None
        drop = point.get("drop") or {}
        value = 0.0 if point["name"].startswith("as trained") else number(drop.get("value"))
        if first is not None and value is not None:
            drawn.append((i, point, first, 100 * value, 100 * (number(drop.get("high")) or value), number(cost.get("size_bytes")) or 0.0))
    if len(drawn) < 2:
        return ""
    promise = 100 * (number(found.get("max_drop")) or 0.0)
    shown = [d for d in drawn if d[3] <= max(5 * promise, 5.0)]
    x = scale([d[2] for d in shown], log=True)
    y = scale([*(d[3] for d in shown), *(min(d[4], 3 * promise + 1) for d in shown), promise, 0.0])
    largest = max(d[5] for d in shown) or 1.0
    parts = [f'<path class="diagonal" d="M0 {(1 - y(promise)) * HEIGHT:.1f}H{WIDTH:.0f}"/>']
    numbers = []
    for i, point, ms, drop, high, size in shown:
        left, top, upper = x(ms) * WIDTH, (1 - y(drop)) * HEIGHT, (1 - y(min(high, y.high))) * HEIGHT
        tone = "c" if point["name"] == found.get("best") else "quiet" if point.get("why_not") else "a"
        parts.append(f'<path class="whisker tone-{tone}" d="M{left:.1f} {upper:.1f}V{top:.1f}"/>')
        parts.append(
            f'<path class="dots tone-{tone}" style="stroke-width:{5 + 9 * (size / largest) ** 0.5:.1f}" d="M{left:.1f} {top:.1f}h0"/>'
        )
        numbers.append(
            f'<span aria-hidden="true" style="position:absolute;left:calc({100 * left / WIDTH:.2f}% + 8px);top:calc({100 * top / HEIGHT:.2f}% - 20px);'
            f'font-size:12px">{i}</span>'
        )
    said = "; ".join(f"{d[0]}: {d[1]['name']}, {figure(d[2], 3)} ms, drop {d[3]:.2f}%, {human_bytes(d[5])}" for d in shown)
    metric = next((str(d[1]["drop"]["metric"]) for d in shown if d[1].get("drop")), "quality")
    drawn_frame = frame(
        "compress", "Time and drop of each candidate", f"{said}. The promise is a drop of at most {promise:.2f}%.", "".join(parts), x, y,
        x_label="milliseconds for the smallest batch; numbers are those of the table; a larger dot is a larger file; a bar ends at the upper end of the drop",
        y_label=f"drop of {metric} in %; the broken line is the promise",
    )  # fmt: skip
    return drawn_frame.replace("</svg>", "</svg>" + "".join(numbers), 1)


def _points(found: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    """One row for each candidate."""
    sizes = sorted({int(k) for p in points if isinstance(p.get("cost"), dict) for k in (p["cost"].get("latency_ms") or {})})
    head = [("", "num"), ("Candidate", ""), ("Drop", "num"), ("Upper end", "num"), ("Size", "num")]
    head += [(f"{n} at once", "num") for n in sizes] + [("Memory", "num"), ("", "")]
    rows = []
    for i, point in enumerate(points, 1):
        cost = point.get("cost") if isinstance(point.get("cost"), dict) else {}
        assert isinstance(cost, dict)
        drop = point.get("drop") or {}
        times = [number((cost.get("latency_ms") or {}).get(str(n))) for n in sizes]
        name = escape(point["name"])
        floats = ", ".join(map(str, point.get("float_layers") or []))
        why = "<b>chosen</b>" if point["name"] == found.get("best") else escape(point.get("why_not") or "", 400)
        rows.append(
            [
                str(i),
                name + (f"<small>left in float: {escape(floats, 200)}</small>" if floats else ""),
                _percent(drop.get("value")),
                _percent(drop.get("high")),
                "–" if number(cost.get("size_bytes")) is None else human_bytes(float(cost["size_bytes"])),
                *("–" if t is None else f"{figure(t, 3)} ms" for t in times),
                "–" if number(cost.get("memory_bytes")) is None else human_bytes(float(cost["memory_bytes"])),
                why,
            ]
        )
    return table(head, rows, "Candidates")


def _percent(value: Any) -> str:
    share = number(value)
    return "–" if share is None else f"{share:.2%}"


def _effects(effects: Any) -> str:
    """What else changed: metrics, the worst class, reasons, membership inference."""
    if not isinstance(effects, dict):
        return ""
    html = (
        f"<h3>Side effects</h3><p>On {count(number(effects.get('examples')) or 0)} examples of the {escape(effects.get('split'))} part.</p>"
    )
    metrics = effects.get("metrics") or {}
    if isinstance(metrics.get("figures"), dict):
        rows = []
        for name, pair in metrics["figures"].items():
            a, b = (number(p.get("value")) for p in pair)
            if a is None or b is None:
                continue
            low, high = number(pair[1].get("low")), number(pair[1].get("high"))
            rows.append(
                [escape(label(name)), figure(a), figure(b), "–" if low is None or high is None else f"{figure(low)} to {figure(high)}"]
            )
        html += table(
            [("Metric", ""), ("Before", "num"), ("After", "num"), ("95% interval after", "num")], rows, "Metrics before and after"
        )
    lines = []
    reasons = effects.get("explanations") or {}
    for method in reasons.get("methods") or []:
        lines.append(
            f"Reasons of the answers ({method['title']}): rank correlation before and after {figure(number(method['correlation']), 3)} on average, "
            f"{figure(number(method['lowest']), 3)} at least (1: the same reasons)."
        )
    membership = effects.get("membership") or {}
    if isinstance(membership.get("auc"), list):
        a, b = membership["auc"]
        error = number(membership.get("standard_error")) or 0.0
        lines.append(
            f"Membership inference by the loss: AUC {a:.3f} before, {b:.3f} after (0.5: training examples cannot be told from others; "
            f"standard error {error:.3f})."
        )
    for name, part in (("Metrics", metrics), ("Reasons", reasons), ("Membership inference", membership)):
        if part.get("not_measured"):
            lines.append(f"{name}: not measured ({part['not_measured']}).")
    return html + "".join(f"<p>{escape(line, 600)}</p>" for line in lines)
