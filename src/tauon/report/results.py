"""Sections of results: metrics with intervals, confusion matrix, reliability, classes, folds, generated samples.

Reads the evaluation as plain JSON, so that records of older versions and of other tools can be shown.
"""

from __future__ import annotations

import math
from typing import Any

from tauon.report.baselines import baseline_table
from tauon.report.forecasts import drawn_forecasts
from tauon.report.page import Section, missing, scroll, table
from tauon.report.plots import HEIGHT, WIDTH, frame, interval_bar, scale, tick_label
from tauon.report.records import Records, number
from tauon.report.text import count, cut, escape, figure, label, spread
from tauon.report.thresholds import threshold_section

__all__ = ["evaluation", "folds", "samples"]

_MATRIX = 25
"""Most classes for which the whole confusion matrix is shown."""
_ROWS = 100
"""Most rows of the table of classes."""


def evaluation(records: Records) -> Section | None:
    """Return the section of evaluation.json; None if only the folds were evaluated."""
    e = records.evaluation
    recorded = e.get("metrics")
    metrics = recorded if isinstance(recorded, dict) else {}
    if not metrics and records.only_folds:
        return None
    if not metrics:
        return Section(
            "evaluation",
            "Evaluation",
            missing("Not evaluated: evaluation.json is missing, or has no metric. To evaluate: tauon evaluate RUN."),
        )
    n, level = number(e.get("n")), number(e.get("confidence")) or 0.95
    unit = {"language-modelling": "sequences", "masked-language-modelling": "sequences", "forecasting": "windows"}.get(
        str(e.get("family")), "examples"
    )
    intro = f"Evaluated on {count(n) + ' ' + unit if n is not None else 'examples'} of the {e.get('split', 'unnamed')} split. "
    intro += f"Intervals have a confidence level of {level:.0%}."
    html = f"<p>{escape(intro)}</p>" + _metrics(metrics, level) + baseline_table(e, level)
    notes = e.get("notes") if isinstance(e.get("notes"), list) else []
    if notes:
        html += '<ul class="plain note">' + "".join(f"<li>{escape(x, 600)}</li>" for x in notes[:20]) + "</ul>"
    html += (
        threshold_section(e.get("curves"))
        + _confusion(e.get("confusion"), e.get("family"))
        + _reliability(e.get("calibration"), level)
        + _classes(e.get("per_class"), e.get("family"))
    )
    html += drawn_forecasts(e.get("forecasts"), e.get("by_horizon"))
    return Section("evaluation", "Evaluation", html)


# ---------------------------------------------------------------------------------------------- metrics


def _triple(metric: Any) -> tuple[float | None, float | None, float | None]:
    m = metric if isinstance(metric, dict) else {}
    value, low, high = (number(m.get(k)) for k in ("value", "low", "high"))
    return value, low, high


def _bounded(metric: Any) -> tuple[float, float, float] | None:
    """Return (value, low, high), or None if one of them is missing."""
    value, low, high = _triple(metric)
    return None if value is None or low is None or high is None else (value, low, high)


def _is_share(metric: Any) -> bool:
    """Return whether a metric belongs on the common axis: higher is better, and value and interval are between 0 and 1."""
    value = _triple(metric)[0]
    return (
        isinstance(metric, dict)
        and metric.get("better") == "higher"
        and value is not None
        and all(0 <= v <= 1 for v in _triple(metric) if v is not None)
    )


def _metrics(metrics: dict[str, Any], level: float) -> str:
    """Draw shares on one common axis; for other metrics draw the interval relative to the value, in percent."""
    shares = {k: m for k, m in metrics.items() if _is_share(m)}
    rest = {k: m for k, m in metrics.items() if k not in shares}
    html = ""
    if shares:
        spots = [v for m in shares.values() for v in _triple(m) if v is not None]
        # The axis begins at the tenth below the lowest end, or at the hundredth if all are above 0.9.
        fine = 100 if 0.9 <= min(spots) < 1 else 10
        start = math.floor(min(spots) * fine) / fine if min(spots) < 1 else 0.9
        stop = min(1.0, math.ceil(max(spots) * 10) / 10)
        stop = stop if stop > start else start + 0.1
        bars = {k: interval_bar(*t, start, stop) for k, m in shares.items() if (t := _bounded(m))}
        html += _metric_table(shares, bars, level, (tick_label(start, 0.01), tick_label(stop, 0.01)))
    if rest:
        known = {k: (v, low, high) for k, m in rest.items() if (t := _bounded(m)) for v, low, high in [t] if v}
        reach = [max(v - low, high - v) / abs(v) for v, low, high in known.values()]
        most = next((t for t in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if t >= max(reach, default=0)), 0.5)
        bars = {k: interval_bar(0.0, (low - v) / abs(v), (high - v) / abs(v), -most, most) for k, (v, low, high) in known.items()}
        html += _metric_table(rest, bars, level, (f"−{most * 100:g}%", f"+{most * 100:g}%"))
    return html


def _metric_table(metrics: dict[str, Any], bars: dict[str, str], level: float, ends: tuple[str, str]) -> str:
    rows, axis = "", escape(f"{ends[0]} to {ends[1]}")
    for name, metric in metrics.items():
        m = metric if isinstance(metric, dict) else {}
        value, low, high = _triple(m)
        shown, bottom, top = spread(value, low, high) if value is not None else ("–", "", "")
        interval = f"{bottom} to {top}" if low is not None and high is not None else "–"
        about = f"<small>{escape(m['about'], 300)}</small>" if m.get("about") else ""
        reason = f"<small>{escape(m['reason'], 300)}</small>" if m.get("reason") else ""
        rows += (
            f'<tr><th scope="row">{escape(label(str(name)), 100)}{about}</th><td class="num value">{shown}</td>'
            f'<td class="num" data-h="{level:.0%} interval">{interval}</td><td class="bar-cell" data-a="{axis}">{bars.get(name, "")}</td>'
            f'<td class="small">{escape(m.get("method") or "", 200)}{reason}</td></tr>'
        )
    top = f'<span class="bar-head"><span>{escape(ends[0])}</span><span>{escape(ends[1])}</span></span>' if bars else ""
    head = f'<th scope="col">Metric</th><th scope="col" class="num">Value</th><th scope="col" class="num">{level:.0%} interval</th>'
    head += f'<th scope="col" class="bar-cell">{top}</th><th scope="col">Interval from</th>'
    return scroll(f'<table class="full stack metrics"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>', "Metrics")


# ---------------------------------------------------------------------------------------------- classes


def _confusion(confusion: Any, family: Any = None) -> str:
    if not isinstance(confusion, dict):
        return ""
    names, head = confusion.get("labels"), "<h3>Confusion matrix</h3>"
    if isinstance(confusion.get("cells"), list):
        labels = [str(x) for x in names] if isinstance(names, list) else []
        cells = [[int(number(v) or 0) for v in c] for c in confusion["cells"] if isinstance(c, list) and len(c) == 3]
        if any(not (0 <= i < len(labels) and 0 <= j < len(labels)) for i, j, _ in cells):
            return missing("The confusion matrix is left out: some of its classes have no name.")
        size = len(labels)
    else:
        counts = [[int(number(c) or 0) for c in row] for row in _listed(confusion.get("counts")) if isinstance(row, list)]
        size = len(counts)
        if not size or any(len(row) != size for row in counts):
            return missing("The confusion matrix is left out: it is not square.") if _listed(confusion.get("counts")) else ""
        labels = [str(x) for x in names] if isinstance(names, list) and len(names) == size else [str(i) for i in range(size)]
        cells = [[i, j, c] for i, row in enumerate(counts) for j, c in enumerate(row) if c]
        if size <= _MATRIX:
            order = _neighbours(counts) if size > 3 and family != "ordinal" else range(size)
            counts, names_ = [[counts[i][j] for j in order] for i in order], [labels[i] for i in order]
            return head + _matrix(counts, names_) + _most_confused(cells, labels, 5 if size > 2 else 0)
    note = f"{count(size)} classes are too many for a matrix. All counts are in evaluation.json."
    return head + missing(note) + _most_confused(cells, labels, 20)


def _neighbours(counts: list[list[int]]) -> list[int]:
    """Return the classes in an order that puts those that are confused next to each other: a chain that grows at the end that is confused more."""
    size = len(counts)
    near = [[counts[i][j] + counts[j][i] if i != j else -1 for j in range(size)] for i in range(size)]
    start = max(range(size), key=lambda i: max(near[i]))
    chain, left = [start], set(range(size)) - {start}
    while left:
        first = max(sorted(left), key=lambda i: near[chain[0]][i])
        last = max(sorted(left), key=lambda i: near[chain[-1]][i])
        if near[chain[0]][first] > near[chain[-1]][last]:
            chain.insert(0, first)
            left.remove(first)
        else:
            chain.append(last)
            left.remove(last)
    return chain


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _matrix(counts: list[list[int]], labels: list[str]) -> str:
    top = "".join(f'<th scope="col" title="{escape(name, 100)}">{escape(name, 24)}</th>' for name in labels)
    body = ""
    for i, row in enumerate(counts):
        total = sum(row)
        cells = ""
        for j, c in enumerate(row):
            share = c / total if total else 0.0
            css = "deep" if share > 0.55 else "none" if c == 0 else ""
            tooltip = (
                f"{labels[i]} predicted as {labels[j]}: {c:,} of {total:,} ({share:.1%})"
                if i != j
                else f"{labels[i]}: {c:,} of {total:,} correct ({share:.1%})"
            )
            heat = f' style="--h:{0.06 + 0.84 * share:.3f}"' if c else ""
            cells += f'<td class="{css}"{heat} title="{escape(tooltip, 300)}">{c:,}</td>'
        body += f'<tr><th scope="row" title="{escape(labels[i], 100)}">{escape(labels[i], 24)}</th>{cells}</tr>'
    html = f'<table class="confusion"><thead><tr><td></td>{top}</tr></thead><tbody>{body}</tbody></table>'
    order = " Classes that are confused with each other stand together." if len(labels) > 3 else ""
    return scroll(html, "Confusion matrix") + missing(f"Rows: true class; columns: predicted class. Shading: share of the row.{order}")


def _most_confused(cells: list[list[int]], labels: list[str], most: int) -> str:
    """Return a table of the classes that are confused most often. `cells`: [true, predicted, count]."""
    totals: dict[int, int] = {}
    for i, _, c in cells:
        totals[i] = totals.get(i, 0) + c
    pairs = sorted(((c, i, j) for i, j, c in cells if i != j and c), key=lambda p: (-p[0], p[1], p[2]))[:most]
    if not pairs:
        return ""
    rows = [[escape(labels[i], 80), escape(labels[j], 80), count(c), f"{c / totals[i]:.1%}"] for c, i, j in pairs]
    return "<h3>Most frequent confusions</h3>" + table(
        [("True class", ""), ("Predicted as", "any"), ("Count", "num"), ("Share of the class", "num")], rows, "Most frequent confusions", ""
    )


def _classes(rows: Any, family: Any) -> str:
    rows = [r for r in rows if isinstance(r, dict)] if isinstance(rows, list) else []
    if not rows:
        return ""
    order = rows
    if len(rows) > _ROWS:
        order = sorted(rows, key=lambda r: v if (v := _triple(r.get("f1"))[0]) is not None else -1.0)[:_ROWS]
    columns = [k for k in rows[0] if k != "label"]
    cells = []
    for row in order:
        line = [escape(row.get("label", ""), 100)]
        for key in columns:
            item = row.get(key)
            if isinstance(item, dict):
                value, low, high = _triple(item)
                shown, bottom, top = spread(value, low, high) if value is not None else ("–", "", "")
                under = f"{bottom} to {top}" if low is not None and high is not None else str(item.get("reason") or "")
                line.append(f"{shown}<small>{escape(under, 200)}</small>")
            else:
                line.append(escape(_plain(item)))
        cells.append(line)
    title = "Targets" if family in ("regression", "quantile-regression", "forecasting") else "Classes"
    note = (
        missing(f"The {_ROWS} of {count(len(rows))} classes with the lowest F1; all are in evaluation.json.") if len(rows) > _ROWS else ""
    )
    return f"<h3>{title}</h3>" + note + table([("", ""), *((label(k), "num") for k in columns)], cells, title)


def _plain(item: Any) -> str:
    v = number(item)
    return "–" if v is None else count(v) if v == int(v) else figure(v)


# ---------------------------------------------------------------------------------------------- calibration


def _reliability(calibration: Any, level: float) -> str:
    """Plot accuracy against confidence with Wilson intervals, and the number of examples in each bin."""
    bins = calibration.get("bins") if isinstance(calibration, dict) else None
    bins = [b for b in bins if isinstance(b, dict) and (number(b.get("n")) or 0) > 0] if isinstance(bins, list) else []
    if not bins:
        return ""
    unit = scale([0.0, 1.0], pad=0.0, log=False, most=6)
    dots = whiskers = ""
    for b in bins:
        confidence, accuracy, low, high = (number(b.get(k)) for k in ("confidence", "accuracy", "accuracy_low", "accuracy_high"))
        if confidence is None or accuracy is None:
            continue
        at = f"{unit(confidence) * WIDTH:.1f}"
        dots += f"M{at} {(1 - unit(accuracy)) * HEIGHT:.1f}h0"
        if low is not None and high is not None:
            whiskers += f"M{at} {(1 - unit(low)) * HEIGHT:.1f}V{(1 - unit(high)) * HEIGHT:.1f}"
    drawing = f'<path class="diagonal" d="M0 {HEIGHT:.0f}L{WIDTH:.0f} 0"/><path class="whisker tone-a" d="{whiskers}"/>'
    drawing += f'<path class="dots tone-a" d="{dots}"/>'
    words = "; ".join(f"confidence {figure(number(b.get('confidence')), 2)}: accuracy {figure(number(b.get('accuracy')), 2)}" for b in bins)
    top = max(number(b.get("n")) or 0.0 for b in bins)
    sizes = scale([0.0, top], zero=True, pad=0.0, log=False, most=2)
    bars = ""
    for b in bins:
        low, high = number(b.get("low")), number(b.get("high"))
        if low is not None and high is not None:
            y = (1 - sizes(number(b.get("n")) or 0.0)) * HEIGHT
            bars += f"M{low * WIDTH + 4:.1f} {HEIGHT:.0f}V{y:.1f}H{high * WIDTH - 4:.1f}V{HEIGHT:.0f}Z"
    diagram = frame("reliability", "Reliability diagram", words, drawing, unit, unit, x_label="confidence", y_label="accuracy")
    description = "; ".join(f"from {figure(number(b.get('low')), 2)}: {count(number(b.get('n')) or 0)}" for b in bins)
    bar = f'<path class="bar tone-a" d="{bars}"/>'
    sizes_plot = frame("bins", "Examples per bin of confidence", description, bar, unit, sizes, x_label="confidence", y_label="examples")
    note = (
        f"Dots: share of correct predictions at that confidence, with {level:.0%} intervals. On the dashed line the model is calibrated; "
        "below it the model is overconfident, above it underconfident. Confidence is the probability of the predicted class."
    )
    return (
        f'<h3>Calibration</h3><div class="pair"><figure class="square"><figcaption><b>Reliability</b></figcaption>{diagram}</figure>'
        f'<div><figure class="low"><figcaption><b>Examples per bin</b></figcaption>{sizes_plot}</figure>'
        f'<p class="note">{note}</p></div></div>'
    )


# ---------------------------------------------------------------------------------------------- folds and samples


def folds(records: Records) -> Section | None:
    """Return the section of a k-fold cross-validation; None for a run without folds."""
    rows = records.folds.get("folds")
    rows = [r for r in rows if isinstance(r, dict) and isinstance(r.get("metrics"), dict)] if isinstance(rows, list) else []
    if not rows:
        return None
    names = list(dict.fromkeys(str(k) for r in rows for k in r["metrics"]))[:30]
    shown = rows[:20]
    summaries = [(k, t, s) for k, t in (("mean", "Mean"), ("std", "Std. dev.")) if isinstance(s := records.folds.get(k), dict)]

    def plain(value: Any) -> str:
        return figure(_triple(value)[0] if isinstance(value, dict) else number(value))

    cells = [
        [escape(label(k)), *(f"<b>{plain(s.get(k))}</b>" if key == "mean" else plain(s.get(k)) for key, _, s in summaries)]
        + [plain(r["metrics"].get(k)) for r in shown]
        for k in names
    ]
    columns = [
        ("", ""),
        *((t, "num") for _, t, _ in summaries),
        *((f"Fold {str(r.get('fold', i))[:20]}", "num") for i, r in enumerate(shown)),
    ]
    html = table(columns, cells, "Folds") + (missing(f"{len(rows) - 20} more folds are in folds.json.") if len(rows) > 20 else "")
    html += missing(
        "The standard deviation is between folds. Folds share training data, so it does not give a confidence interval of the mean."
    )
    reports = [i for i in range(len(shown)) if (records.folder / f"fold-{i}" / "report.html").is_file()]
    if reports:
        links = ", ".join(f'<a href="fold-{i}/report.html">fold {i}</a>' for i in reports)
        html += f'<p class="note">Each fold was trained and evaluated separately and has its own report: {links}.</p>'
    return Section("folds", f"Cross-validation, {len(rows)} folds", html)


def samples(records: Records) -> Section | None:
    """Return the section of generated texts; None if the task generates none."""
    if not records.samples:
        if records.evaluation.get("family") != "language-modelling":
            return None
        return Section("samples", "Samples", missing("No samples: samples.json is missing or empty."))
    html = ""
    for sample in records.samples[:40]:
        prompt, text = str(sample.get("prompt") or ""), str(sample.get("text") or "")
        text = text.removeprefix(prompt)
        settings = ", ".join(
            f"{label(str(k)).lower()} {v}" for k, v in sample.items() if k not in ("prompt", "text") and isinstance(v, (str, int, float))
        )
        head = f"<figcaption>{escape(settings, 200)}</figcaption>" if settings else ""
        html += (
            f'<figure class="sample">{head}<pre><span class="prompt">{escape(cut(prompt, 2000))}</span>{escape(text, 4000)}</pre></figure>'
        )
    more = len(records.samples) - 40
    return Section("samples", "Samples", html + (missing(f"… and {count(more)} more in samples.json.") if more > 0 else ""))
